"""The relays of an outbox service: at work from the start of its stream to the end of its run, whatever happens."""

import asyncio
from datetime import timedelta
from pathlib import Path

from activities import ids
from tests.waiting import until
from tests.workflows.conftest import Make
from tests.workflows.harness import DEADLINE, Harness
from tests.workflows.test_continuing import hasty
from tests.workflows.world import refused
from workflows.replication import ReplicationWorkflow

SERVICE = "trading_engine"
#: No time is skipped here: that waits for every activity to end, and relays do not.
SECOND = timedelta(seconds=1)


async def relaying(harness: Harness, count: int = 1) -> None:
    async def so_many() -> bool:
        return harness.world.relaying == count

    await until(so_many, f"{count} relays are at work")


async def prepared(make: Make) -> Harness:
    harness = await make(SERVICE, dual_write_at_least=SECOND, watch_every=SECOND)
    harness.world.stage = "prepared"
    harness.world.carry()
    return harness


async def test_relays_are_at_work_from_the_start_of_the_stream_until_the_release(make: Make) -> None:
    harness = await prepared(make)
    run = ids.replication(harness.plan, SERVICE)
    handle = await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "dual-write")
    await relaying(harness)
    names = [name for name, _ in harness.world.calls]
    assert names.index("start_stream") < names.index("relay")
    assert names.count("copy_rows") == 1 < names.count("backfill_progress")
    await harness.until(run, lambda one: one.phase == "watching")
    await relaying(harness)
    await harness.signal(run, "released", by="ann")
    assert await asyncio.wait_for(handle.result(), DEADLINE) == "released"
    await relaying(harness, 0)
    assert harness.world.count("relay") == 1


async def test_a_logical_stream_has_neither_relays_nor_a_copy_of_ours(make: Make) -> None:
    harness = await make(SERVICE, dual_write_at_least=SECOND)
    harness.world.stage = "prepared"
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "dual-write")
    assert harness.world.count("relay") == harness.world.count("copy_rows") == 0


async def test_a_copy_that_fails_for_good_parks_the_run_and_goes_on_with_retry(make: Make) -> None:
    harness = await prepared(make)
    harness.world.faults["copy_rows"] = [refused("rows of trades are at the target already")]
    enough = harness.world.backfill_progress
    harness.world.backfill_progress = lambda ref: enough(ref).model_copy(update={"complete": False})  # type: ignore[method-assign]
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    assert "rows of trades" in (await harness.parked(run)).waiting_for
    await relaying(harness)
    del harness.world.backfill_progress
    await harness.update(run, "retry", by="ann")
    await harness.until(run, lambda one: one.phase == "dual-write")
    assert harness.world.count("copy_rows") == 2


async def test_relays_go_on_while_a_run_is_parked_or_paused_and_end_with_its_cancellation(make: Make) -> None:
    harness = await prepared(make)
    harness.world.faults["arm_fences"] = [refused("the first copy is not done")]
    run = ids.replication(harness.plan, SERVICE)
    handle = await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.parked(run)
    await relaying(harness)
    await harness.update(run, "pause", by="erin")
    await harness.update(run, "retry", by="ann")
    await harness.until(run, lambda one: one.state == "PAUSED")
    await relaying(harness)
    await handle.cancel()
    await relaying(harness, 0)


async def test_relays_that_cannot_begin_are_told_of_and_tried_again(make: Make) -> None:
    harness = await prepared(make)
    harness.world.faults["relay"] = [refused("CUTOVER_DSN_TRADING_ENGINE_DB is not set")]
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "dual-write")
    await harness.advance(run, timedelta(seconds=30))
    await relaying(harness)
    told = [one for one in harness.world.alerts if one.kind == "relay"]
    assert [one.severity for one in told] == ["critical"]
    assert "CUTOVER_DSN_TRADING_ENGINE_DB" in told[0].text


async def test_an_adopted_plan_has_the_relays_begin_anew(make: Make) -> None:
    harness = await prepared(make)
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "dual-write")
    await relaying(harness)
    harness.world.adopt(plan_hash="hash-2")
    await harness.signal(run, "plan_adopted")

    async def anew() -> bool:
        plans = [ref.plan_hash for name, ref in harness.world.calls if name == "relay"]
        return plans == ["hash-1", "hash-2"] and harness.world.relaying == 1

    await until(anew, "the relays go by the adopted plan")


async def test_the_run_after_it_takes_the_relays_over(temporal_cli: Path) -> None:
    async with hasty(temporal_cli, "ready", watch_every=SECOND) as harness:
        harness.world.carry()
        run = ids.replication(harness.plan, SERVICE)
        first = await harness.start(ReplicationWorkflow, run, service=SERVICE)
        await harness.until(run, lambda one: one.phase == "watching")
        await relaying(harness)

        async def continued() -> bool:
            return (await harness.handle(run).describe()).run_id != first.result_run_id

        await until(continued, "the run continues as new")
        await relaying(harness)
