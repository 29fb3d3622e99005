"""A Temporal server with skipped time for the session, and a world with a worker for each test."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest_asyncio
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import TimeSkippingConfig, WorkflowEnvironment

from tests.workflows.harness import Harness, running
from tests.workflows.world import World
from workflows import search

Make = Callable[..., Awaitable[Harness]]


@pytest_asyncio.fixture(scope="session")
async def skipping(temporal_cli: Path) -> AsyncIterator[WorkflowEnvironment]:
    """Time stands still for a test until it says `advance`; every run has its own clock."""
    async with await start_skipping(temporal_cli) as environment:
        yield environment


async def start_skipping(cli: Path | str, *, continue_after: int | None = None) -> WorkflowEnvironment:
    """The server as the tests and the recording of histories use it.

    `continue_after`: the number of events from which on it suggests to continue as new (4096 by default).
    """
    suggest = [] if continue_after is None else [f"limit.historyCount.suggestContinueAsNew={continue_after}"]
    return await WorkflowEnvironment.start_time_skipping_v2(
        ts_config=TimeSkippingConfig(enabled=False, max_session_skip_count=5000),
        dev_server_existing_path=str(cli),
        data_converter=pydantic_data_converter,
        search_attributes=list(search.ALL),
        dev_server_extra_args=[
            "--dynamic-config-value",
            "frontend.WorkflowTimeSkippingEnabled=true",
            "--dynamic-config-value",
            'history.timerProcessorMaxTimeShift="10ms"',
            *(part for value in suggest for part in ("--dynamic-config-value", value)),
        ],
    )


@pytest_asyncio.fixture
async def make(skipping: WorkflowEnvironment) -> AsyncIterator[Make]:
    """`await make("trading_engine", soak=…)`: a world of those services with its worker."""
    async with AsyncExitStack() as stack:

        async def build(*services: str, **rules: Any) -> Harness:
            world = World(f"plan-{uuid.uuid4().hex[:8]}", services or ("trading_engine",), **rules)
            return await stack.enter_async_context(running(skipping, world))

        yield build
