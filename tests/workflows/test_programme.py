"""The whole programme with real durations, and each phase's own ways to wait."""

import asyncio
from datetime import timedelta

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError

from activities import ids
from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from tests.workflows.world import refused
from workflows.cleanup import CleanupWorkflow
from workflows.migration import MigrationWorkflow
from workflows.preparation import PreparationWorkflow
from workflows.reconciliation import ReconciliationWorkflow
from workflows.replication import ReplicationWorkflow

FIRST, SECOND = "trading_engine", "analytics"
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


async def sample_statuses(harness: Harness, runs: list[str], seen: list[str]) -> None:
    """Look at every run all the time; `Harness.status` fails on an empty line."""
    while True:
        for run in runs:
            try:
                seen.append((await harness.status(run)).waiting_for)
            except AssertionError:
                raise
            except Exception:  # not started yet, or between two runs of it
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)


async def prepare(harness: Harness) -> None:
    run = ids.preparation(harness.plan)
    await harness.until(run, lambda one: len(one.gates) == 2 and one.state == "WAITING")
    await harness.update(run, "approve", by="ann", gate="task:staging", reason="rehearsed")
    await harness.update(run, "approve", by="ann", gate="tasks")
    await harness.approve(run, "prepared", "ann")


async def dwell(harness: Harness, service: str) -> None:
    run = ids.replication(harness.plan, service)
    await harness.until(run, lambda one: one.phase == "dual-write")
    await harness.advance(run, 13 * DAY)
    assert harness.world.stages_of[service] == "replicating"
    await harness.advance(run, DAY + timedelta(minutes=5))
    await harness.stage(service, "ready")


async def switch(harness: Harness, service: str) -> None:
    run = ids.switchover(harness.plan, service)
    await harness.approve(run, "read", "ann")
    await harness.until(run, lambda one: one.phase == "soak")
    await harness.advance(run, 5 * MINUTE)
    await harness.approve(run, "write", "ann", "ben")
    await harness.stage(service, "switched")
    await harness.until(run, lambda one: one.phase == "deprecation")
    await harness.advance(run, DAY + timedelta(minutes=1))
    await harness.stage(service, "deprecated")


@pytest.mark.slow
async def test_the_programme_runs_from_preparation_to_cleanup_over_its_real_days(make: Make) -> None:
    # The calendar alone is compressed: a parent's clock stands while its children run (see the toolchain notes).
    # What is done hourly or by the minute has tests of its own; each jump in time costs a moment here.
    harness = await make(
        FIRST, SECOND, compress=200_000.0, watch_every=12 * HOUR, hour=6 * HOUR, soak=4 * MINUTE, soak_samples=5
    )
    plan = harness.plan
    main = ids.migration(plan)
    await harness.start(MigrationWorkflow, main)
    runs = [main, ids.preparation(plan), ids.replication(plan, FIRST), ids.switchover(plan, FIRST), ids.cleanup(plan)]
    seen: list[str] = []
    watching = asyncio.create_task(sample_statuses(harness, runs, seen))
    await prepare(harness)
    await asyncio.gather(*(dwell(harness, service) for service in (FIRST, SECOND)))
    await harness.until(main, lambda one: "switchover" in one.phase)
    await harness.until(main, lambda one: "stage 'deprecated'" in one.waiting_for)
    with pytest.raises(WorkflowUpdateFailedError) as refusal:
        await harness.update(main, "approve", by="ann")
    assert ids.switchover(plan, FIRST) in str(refusal.value.cause)
    for service in (FIRST, SECOND):
        await switch(harness, service)
    run = ids.cleanup(plan)
    await harness.approve(run, "give-up-way-back", "ann", "ben")
    await harness.until(run, lambda one: any(gate.name == "task:docs" for gate in one.gates))
    await harness.update(run, "approve", by="ann")
    await harness.approve(run, "rename", "ann")
    await harness.until(run, lambda one: one.phase == "quiet")
    await harness.advance(run, 7 * DAY + HOUR)
    await harness.approve(run, "drop", "ann", "ben")
    assert await harness.handle(main).result() == "complete"
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert len(seen) > 20
    assert harness.world.stage == "cleaned"
    assert set(harness.world.stages_of.values()) == {"archived"}
    for service in (FIRST, SECOND):
        assert await harness.handle(ids.switchover(plan, service)).result() == "released"
        assert await harness.handle(ids.replication(plan, service)).result() == "released"
        assert harness.world.backfills[service] == 1
    assert harness.world.count("drop_tables") == 2


async def test_a_window_that_compression_makes_shorter_than_a_look_at_the_stages_is_met_all_the_same(
    make: Make,
) -> None:
    harness = await make(FIRST, compress=1_000_000.0)
    harness.world.stages_of[FIRST], harness.world.stage = "ready", "prepared"
    main = ids.migration(harness.plan)
    await harness.start(MigrationWorkflow, main)
    await harness.until(main, lambda one: "stage 'deprecated'" in one.waiting_for)


async def test_blocking_findings_park_the_preparation_until_they_are_gone(make: Make) -> None:
    harness = await make(FIRST)
    harness.world.blocking = 2
    run = ids.preparation(harness.plan)
    await harness.start(PreparationWorkflow, run)
    status = await harness.parked(run)
    assert "2 blocking findings" in status.attention
    assert "cutover preflight" in status.attention
    assert harness.world.count("create_schema") == 0
    harness.world.blocking = 0
    await harness.update(run, "retry", by="ann")
    await prepare(harness)
    assert await harness.handle(run).result() == "prepared"
    assert {one.task for one in harness.world.tasks_done} == {"staging", "runbook"}


async def test_a_bare_approval_of_several_tasks_is_asked_to_name_one(make: Make) -> None:
    harness = await make(FIRST)
    run = ids.preparation(harness.plan)
    await harness.start(PreparationWorkflow, run)
    await harness.until(run, lambda one: len(one.gates) == 2)
    with pytest.raises(WorkflowUpdateFailedError) as refusal:
        await harness.update(run, "approve", by="ann")
    assert "task:staging" in str(refusal.value.cause)


async def test_a_failed_child_parks_the_programme_and_retry_starts_it_again(make: Make) -> None:
    harness = await make(FIRST)
    harness.world.stage = "prepared"
    run = ids.migration(harness.plan)
    harness.world.faults["stages"] = []
    await harness.start(MigrationWorkflow, run)
    child = ids.replication(harness.plan, FIRST)
    await harness.until(child, lambda one: one.phase == "dual-write")
    await harness.handle(child).terminate("somebody ended it by hand")
    status = await harness.parked(run)
    assert child in status.attention
    await harness.update(run, "retry", by="ann")
    await harness.until(child, lambda one: one.phase == "dual-write")


async def test_a_baseline_or_first_pass_that_fails_may_be_skipped_and_the_stream_may_not(make: Make) -> None:
    harness = await make(FIRST)
    harness.world.stage = "prepared"
    harness.world.faults["record_baseline"] = [refused("no statistics")]
    harness.world.faults["start_stream"] = [refused("wal_level is replica")]
    harness.world.faults["walk_span"] = [refused("no primary key")]
    run = ids.replication(harness.plan, FIRST)
    await harness.start(ReplicationWorkflow, run, service=FIRST)

    async def parked_at(step: str) -> set[str]:
        status = await harness.until(run, lambda one: step in one.attention and one.state == "NEEDS_ATTENTION", step)
        return {one.does for one in status.commands}

    assert "Leave this step out" in await parked_at("baseline")
    assert "skip: baseline" in await harness.update(run, "skip", by="ann", reason="no client uses the library yet")
    assert "Leave this step out" not in await parked_at("starting the stream")
    with pytest.raises(WorkflowUpdateFailedError) as refusal:
        await harness.update(run, "skip", by="ann")
    assert "starting the stream cannot be skipped" in str(refusal.value.cause)
    await harness.update(run, "retry", by="ann")
    assert "Leave this step out" in await parked_at("first full pass")
    await harness.update(run, "skip", by="ann")
    await harness.until(run, lambda one: one.phase == "dual-write")
    assert [one.action for one in harness.world.decisions] == ["skip", "retry", "skip"]
    assert harness.world.count("record_baseline") == 1


async def test_replication_refuses_before_the_preparation(make: Make) -> None:
    harness = await make(FIRST)
    handle = await harness.start(ReplicationWorkflow, ids.replication(harness.plan, FIRST), service=FIRST)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert "not prepared yet" in str(failed.value.cause)


async def test_cleanup_refuses_while_a_way_back_is_needed(make: Make) -> None:
    harness = await make(FIRST, SECOND)
    harness.world.stages_of.update({FIRST: "deprecated", SECOND: "switched"})
    handle = await harness.start(CleanupWorkflow, ids.cleanup(harness.plan))
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert f"{SECOND} is 'switched'" in str(failed.value.cause)


async def test_a_pass_with_differences_repairs_them_and_one_that_fails_alerts(make: Make) -> None:
    harness = await make(FIRST)
    harness.world.differences = 3
    table = {"table": f"{FIRST}_rows", "service": FIRST}
    handle = await harness.start(ReconciliationWorkflow, f"{harness.plan}/pass-1", **table)
    assert "3 missing" in await handle.result()
    assert harness.world.count("resolve_conflicts") == 1
    harness.world.faults["walk_span"] = [refused("no primary key")]
    handle = await harness.start(ReconciliationWorkflow, f"{harness.plan}/pass-2", **table)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert [one.kind for one in harness.world.alerts] == ["reconciliation-failed"]


async def test_a_replication_that_is_restarted_does_not_copy_again(make: Make) -> None:
    harness = await make(FIRST)
    harness.world.stage, harness.world.stages_of[FIRST] = "prepared", "ready"
    run = ids.replication(harness.plan, FIRST)
    await harness.start(ReplicationWorkflow, run, service=FIRST)
    await harness.until(run, lambda one: one.phase == "watching")
    assert harness.world.count("start_stream") == 0
    await harness.signal(run, "released", by="ann")
    assert await harness.handle(run).result() == "released"


async def test_what_people_said_survives_continue_as_new(make: Make) -> None:
    harness = await make(FIRST)
    run = ids.migration(harness.plan)
    first = await harness.start(MigrationWorkflow, run)
    await harness.until(run, lambda one: "stage 'prepared'" in one.waiting_for)
    await harness.signal(run, "approve", "nonsense")
    await harness.signal(run, "pause", by="erin")
    await harness.until(run, lambda one: "erin" in one.waiting_for)
    harness.world.stage = "prepared"
    await harness.signal(run, "stage_changed", service="", stage="prepared")
    await harness.until(run, lambda one: one.state == "PAUSED")
    await harness.signal(run, "resume", by="erin")
    status = await harness.until(run, lambda one: one.phase == "dual-write" and "stage 'ready'" in one.waiting_for)
    assert (await harness.handle(run).describe()).run_id != first.result_run_id
    assert "not a string" in status.refused[0].text
    assert status.plan_hash == "hash-1"


async def test_an_automatic_item_that_does_not_hold_parks_the_preparation_with_its_evidence(make: Make) -> None:
    harness = await make(FIRST)
    harness.world.unchecked["preparation"] = "trades: column price differs"
    run = ids.preparation(harness.plan)
    await harness.start(PreparationWorkflow, run)
    status = await harness.parked(run)
    assert "checks of preparation (trades: column price differs)" in status.attention
    assert harness.world.count("claim_tables") == 1
    names = [name for name, _ in harness.world.calls]
    assert names.index("preflight") < names.index("claim_tables") < names.index("create_schema")
    harness.world.unchecked.clear()
    await harness.update(run, "retry", by="ann")
    await prepare(harness)
    assert await harness.handle(run).result() == "prepared"
