"""`cutover flags serve` as a process: the OFREP provider from PyPI against it, and how it ends."""

import asyncio
import re
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from cutover.control import plans
from cutover.control.database import Control
from cutover.flags import store
from cutover.postgres.databases import Database
from tests.control.plans import plan
from tests.dualwrite.waiting import until
from tests.relay import Relay

M, S = "ai-trader", "trading_engine"
CUTOVER = [sys.executable, "-m", "cutover.cli.main"]


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_sdk() -> Iterator[None]:
    yield
    api.clear_providers()


def environment(database: Database, **more: str) -> dict[str, str]:
    return {"CUTOVER_DSN_CONTROL": database.dsn, "CUTOVER_ENV_FILE": "none", "PATH": "/usr/bin:/bin", **more}


async def started(database: Database, *arguments: str, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *CUTOVER, "flags", "serve", *arguments,
        env=environment(database, **env), cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@asynccontextmanager
async def serving(
    database: Database, *arguments: str, **env: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process, and the address that it says it listens on."""
    process = await started(database, "--port", "0", *arguments, **env)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"OFREP at (http://\S+) ", line)
        assert found, line + (await process.communicate())[1].decode()
        yield process, found[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_the_ofrep_provider_reads_flags_follows_a_change_and_the_server_ends_in_good_order(
    control: Control, control_db: Database
) -> None:
    await plans.register(control, plan(M), "alice")
    await store.ensure(control, M, S)
    async with Relay(control_db) as relay, serving(relay.database, M) as (process, address):
        provider = OFREPProvider(address)
        domain = uuid.uuid4().hex
        api.set_provider_and_wait(provider, domain)
        client = api.get_client(domain)
        context = EvaluationContext("user-1", {"plan": "gold"})

        def share() -> int:
            return client.get_integer_value(f"{S}_percentage", 7, context)

        assert await asyncio.to_thread(share) == 0
        await store.set_percentage(control, M, S, 30, actor="alice")
        await until(lambda: share() == 30)
        details = await asyncio.to_thread(client.get_boolean_details, f"{S}_read_from_new", True, context)
        assert (details.value, details.reason, details.variant) == (False, Reason.STATIC, "off")
        assert details.flag_metadata["service"] == S
        unknown = await asyncio.to_thread(client.get_boolean_details, "nothing", True)
        assert (unknown.value, unknown.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
        wrong = await asyncio.to_thread(client.get_string_details, f"{S}_percentage", "x")
        assert (wrong.value, wrong.error_code) == ("x", ErrorCode.TYPE_MISMATCH)

        await relay.cut()
        async with httpx.AsyncClient() as http:

            async def state() -> str:
                return str((await http.get(f"{address}/healthz")).json()["status"])

            async def is_stale() -> bool:
                return await state() == "stale"

            await until(is_stale)
        assert share() == 30
        provider.session.close()
        process.send_signal(signal.SIGTERM)
        assert (await ended(process))[0] == 0


async def test_ctrl_c_ends_it_without_a_word_and_a_token_is_asked_for(control: Control, control_db: Database) -> None:
    await store.ensure(control, M, S)
    # the only migration with flags needs no name
    async with serving(control_db, CUTOVER_FLAGS_TOKEN="hunter2") as (process, address):
        async with httpx.AsyncClient() as http:
            assert (await http.post(f"{address}/ofrep/v1/evaluate/flags")).status_code == 401
        process.send_signal(signal.SIGINT)
        assert await ended(process) == (0, "")


async def test_a_port_in_use_is_named_with_what_to_do(control_db: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await started(control_db, "--port", str(port))
        status, errors = await ended(process)
    assert status == 2
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in errors
    assert "Traceback" not in errors
