"""What arrives while a run is about to continue as new takes effect: before it does, or in the run after it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.service import RPCError

from activities import ids
from activities import models as m
from tests.workflows.conftest import start_skipping
from tests.workflows.harness import DEADLINE, Harness, running
from tests.workflows.world import World
from workflows.replication import ReplicationWorkflow
from workflows.status import Status
from workflows.switchover import SwitchoverWorkflow

SERVICE = "trading_engine"
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
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


async def test_a_hand_over_during_the_last_step_before_it_is_not_lost(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "deprecated") as harness:
        harness.world.primary[SERVICE] = "service"
        run = ids.switchover(harness.plan, SERVICE)

        async def hand_over() -> None:
            if harness.world.count("sample_thresholds") == 1:
                await harness.signal(run, "hand_over", by="ann")

        harness.world.on["sample_thresholds"] = hand_over
        handle = await harness.start(SwitchoverWorkflow, run, service=SERVICE)
        await harness.until(run, lambda one: one.phase == "deprecated" and one.state == "WAITING")
        await harness.advance(run, HOUR + MINUTE)
        assert await asyncio.wait_for(handle.result(), DEADLINE) == "released"


async def step(harness: Harness, run: str, by: timedelta, until: Callable[[], bool]) -> None:
    """Let time pass in steps, as a step ends where a run gives way to the next one."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not until():
        assert asyncio.get_running_loop().time() < end, await harness.status(run)
        with suppress(RPCError):  # between two runs
            await harness.advance(run, by)


async def soaking(harness: Harness) -> tuple[str, str]:
    """A run in its soak, and the id of the first of the runs it is made of."""
    run = ids.switchover(harness.plan, SERVICE)
    first = await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    assert first.result_run_id is not None
    return run, first.result_run_id


async def test_a_soak_that_goes_on_in_another_run_lasts_no_longer_and_counts_on(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "ready", soak=10 * MINUTE, soak_samples=10) as harness:
        run, first = await soaking(harness)
        began = await harness.status(run)

        def counted(status: Status) -> bool:
            return status.phase == "soak" and status.progress.get("soak samples") == harness.world.samples

        await step(harness, run, MINUTE, lambda: harness.world.samples >= 5)
        status = await harness.until(run, counted)
        assert (await harness.handle(run).describe()).run_id != first
        assert status.rollback is not None
        windows = [argument.window_seconds for name, argument in harness.world.calls if name == "sample_thresholds"]
        assert windows == sorted(windows), "each sample looks back to the beginning of the soak"
        assert status.deadlines["soak ends"] == began.deadlines["soak ends"]
        await step(harness, run, MINUTE, lambda: harness.world.count("measure_write") > 0)
        assert 10 <= harness.world.samples <= 12
        await harness.approve(run, "write", "alice", "bob")
        await harness.stage(SERVICE, "switched")


async def test_a_soak_that_goes_on_in_another_run_can_be_rolled_back_and_touches_no_writes(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "ready") as harness:
        run, _ = await soaking(harness)
        await step(harness, run, MINUTE, lambda: harness.world.samples >= 4)
        await harness.until(run, lambda one: one.phase == "soak" and one.rollback is not None)
        await harness.update(run, "rollback", by="dora")
        await harness.at_gate(run, "switch-again")
        assert not harness.world.read_new[SERVICE]
        assert harness.world.count("restore_keys") == 0


async def test_a_breach_that_lasts_over_several_runs_is_a_lasting_one(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "ready") as harness:
        run, _ = await soaking(harness)
        harness.world.breached = ["write_latency"]
        await step(harness, run, MINUTE, lambda: not harness.world.read_new[SERVICE])
        assert harness.world.samples == 3
        status = await harness.parked(run)
        assert "write_latency" in status.attention
        harness.world.breached = []
        await harness.update(run, "retry", by="alice")
        await harness.at_gate(run, "read")


async def test_a_soak_that_waits_for_good_samples_goes_on_waiting_in_the_next_run(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "ready", soak=timedelta(seconds=0.3), soak_samples=3) as harness:
        unsure = m.Readings(readings=[m.Reading(name="write_latency", waiting=True)])
        harness.world.sample_thresholds = lambda request: unsure  # type: ignore[method-assign]
        run, first = await soaking(harness)
        await step(harness, run, timedelta(seconds=1), lambda: harness.world.count("sample_thresholds") > 7)
        await harness.until(run, lambda one: "good samples of write_latency" in one.waiting_for)
        assert (await harness.handle(run).describe()).run_id != first


@pytest.mark.parametrize("by_us", [False, True])
async def test_a_backfill_of_weeks_goes_on_in_another_run(temporal_cli: Path, by_us: bool) -> None:
    async with hasty(temporal_cli, "") as harness:
        world, run = harness.world, ids.replication(harness.plan, SERVICE)
        del world.stages_of[SERVICE]
        polls = 4 if by_us else 20
        if by_us:
            world.carry()
            world.on["copy_rows"] = world.never
        copying = m.TableBackfill(table="rows", state="copy", rows=100, rows_estimated=300, bytes=9000)
        world.backfill_progress = lambda ref: m.Backfill(  # type: ignore[method-assign]
            complete=world.count("backfill_progress") > polls, tables=[copying]
        )
        first = await harness.start(ReplicationWorkflow, run, service=SERVICE)
        await harness.until(run, lambda one: one.phase == "backfill" and one.state == "WAITING")
        if not by_us:  # no time is skipped while activities are at work
            await step(harness, run, MINUTE, lambda: world.stages_of.get(SERVICE) == "replicating")
        await harness.until(run, lambda one: one.phase == "dual-write")
        assert (await harness.handle(run).describe()).run_id != first.result_run_id
        assert world.count("backfill_progress") == polls + 1
        assert world.count("start_stream") > 2
        assert world.count("copy_rows") == (world.count("start_stream") if by_us else 0)
