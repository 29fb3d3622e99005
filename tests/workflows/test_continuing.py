"""What arrives while a run is about to continue as new takes effect: before it does, or in the run after it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from activities import ids
from tests.workflows.conftest import start_skipping
from tests.workflows.harness import DEADLINE, Harness, running
from tests.workflows.world import World
from workflows.replication import ReplicationWorkflow
from workflows.switchover import SwitchoverWorkflow

SERVICE = "trading_engine"
HOUR = timedelta(hours=1)
#: So few that the first look around is the last step before it.
CONTINUE_AFTER = 8


@asynccontextmanager
async def hasty(cli: Path, stage: str, **rules: Any) -> AsyncIterator[Harness]:
    """On a server that suggests to continue as new after a few events."""
    async with await start_skipping(cli, continue_after=CONTINUE_AFTER) as environment:
        world = World("hasty", (SERVICE,), **rules)
        world.stage, world.stages_of[SERVICE] = "prepared", stage
        async with running(environment, world) as harness:
            yield harness


async def test_a_rollback_during_the_last_step_before_it_is_not_lost(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "switched", deprecation=timedelta(days=2)) as harness:
        harness.world.primary[SERVICE] = "service"
        run = ids.switchover(harness.plan, SERVICE)

        async def ask() -> None:
            if harness.world.count("sample_thresholds") == 1:
                await harness.signal(run, "rollback", by="dora")

        harness.world.on["sample_thresholds"] = ask
        first = await harness.start(SwitchoverWorkflow, run, service=SERVICE)
        await harness.until(run, lambda one: one.state == "WAITING")
        await harness.advance(run, 2 * HOUR)
        await harness.at_gate(run, "switch-again")
        assert [one.action for one in harness.world.decisions] == ["rollback"]
        assert (await harness.handle(run).describe()).run_id == first.result_run_id


async def test_a_release_during_the_last_step_before_it_is_not_lost(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "ready", watch_every=HOUR) as harness:
        run = ids.replication(harness.plan, SERVICE)

        async def release() -> None:
            if harness.world.count("process_loose_keys") == 1:
                await harness.signal(run, "released", by="ann")

        harness.world.on["process_loose_keys"] = release
        handle = await harness.start(ReplicationWorkflow, run, service=SERVICE)
        await harness.until(run, lambda one: one.phase == "watching")
        await harness.advance(run, 2 * HOUR)
        assert await asyncio.wait_for(handle.result(), DEADLINE) == "released"
