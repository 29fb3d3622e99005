"""Runs that are brought into each state of `states.py`, but for those of the switchover."""

from datetime import timedelta
from typing import Any

from temporalio.client import WorkflowExecutionStatus

from activities import ids
from activities import models as m
from tests.replay.recorder import DAY, HOUR, SERVICE, Recorder
from tests.workflows.harness import Harness
from tests.workflows.world import refused, unreachable
from workflows.cleanup import CleanupWorkflow
from workflows.migration import MigrationWorkflow
from workflows.monitor import MonitorWorkflow
from workflows.preparation import PreparationWorkflow
from workflows.reconciliation import ReconciliationWorkflow
from workflows.replication import ReplicationWorkflow
from workflows.switchover import SwitchoverWorkflow


def task(phase: str, service: str | None = None) -> m.TaskRules:
    """A task of people in that phase."""
    return m.TaskRules(key=f"rehearse-{phase}", owner="backend", phase=phase, service=service, duration="3d")


async def outage(recorder: Recorder, h: Harness, run: str, activity: str, name: str) -> None:
    """Keep the state in which the run waits for a database, then let it go on. The activity is next in the run."""
    await recorder.keep(h, run, name)
    del h.world.down[activity]


async def preparation(recorder: Recorder) -> None:
    async with recorder.harness(migration="registered") as h:
        await h.start(PreparationWorkflow, "migration/unknown/preparation", {"plan": "unknown"})
        await recorder.keep(h, "migration/unknown/preparation", "preparation-refused")
    async with recorder.harness(migration="registered") as h:
        run = ids.preparation(h.plan)
        h.world.blocking = 1
        h.world.down["bind_plan"] = unreachable()
        h.world.problems["prepared"] = ["the schemas differ"]
        await h.start(PreparationWorkflow, run)
        await outage(recorder, h, run, "bind_plan", "preparation-unreachable")
        await recorder.keep(h, run, "preparation-parked")
        h.world.blocking = 0
        await h.update(run, "pause", by="erin")
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "preparation-paused")
        await h.update(run, "resume", by="erin")
        await recorder.keep(h, run, "preparation-tasks")
        await h.update(run, "reject", by="ben", gate="task:staging", reason="not rehearsed")
        await recorder.keep(h, run, "preparation-task-rejected")
        await h.update(run, "retry", by="ann")
        await h.until(run, lambda one: one.state == "WAITING" and len(one.gates) == 2)
        await h.update(run, "approve", by="ann", gate="tasks")
        await recorder.keep(h, run, "preparation-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "preparation-gate")
        await h.approve(run, "prepared", "ann")
        await recorder.keep(h, run, "preparation-done")


async def replication(recorder: Recorder) -> None:
    async with recorder.harness(migration="registered") as h:
        run = ids.replication(h.plan, SERVICE)
        await h.start(ReplicationWorkflow, run, service=SERVICE)
        await recorder.keep(h, run, "replication-refused")
    async with recorder.harness(dual_write_at_least=2 * DAY) as h:
        run = ids.replication(h.plan, SERVICE)
        h.world.tasks.append(task("dual_write", SERVICE))
        h.world.problems["ready"] = ["trades: 3 rows differ"]
        h.world.faults["arm_fences"] = [refused("the first copy is not done")]
        h.world.down["record_baseline"] = unreachable()
        copying = m.Backfill(
            complete=False, tables=[m.TableBackfill(table="rows", state="copy", rows=1, rows_estimated=9, bytes=9)]
        )
        h.world.backfill_progress = lambda ref: copying  # type: ignore[method-assign]
        await h.start(ReplicationWorkflow, run, service=SERVICE)
        await outage(recorder, h, run, "record_baseline", "replication-unreachable")
        await recorder.keep(h, run, "replication-backfill")
        del h.world.backfill_progress
        await recorder.keep(h, run, "replication-parked")
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "replication-dual-write")
        await h.update(run, "pause", by="erin")
        await h.advance(run, 5 * HOUR)
        await recorder.keep(h, run, "replication-paused")
        await h.update(run, "resume", by="erin")
        await h.advance(run, 2 * DAY)
        await recorder.keep(h, run, "replication-tasks")
        await h.update(run, "approve", by="ann", gate="tasks")
        await recorder.keep(h, run, "replication-ready-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "replication-watching")
        await h.signal(run, "released", by="ann")
        await recorder.keep(h, run, "replication-done")
    async with recorder.harness(hasty=True) as h:
        copying = m.Backfill(
            complete=False, tables=[m.TableBackfill(table="rows", state="copy", rows=1, rows_estimated=9, bytes=9)]
        )
        h.world.backfill_progress = lambda ref: copying  # type: ignore[method-assign]
        await continued(recorder, h, "backfill", timedelta(seconds=20))
    # no time is skipped while relays are at work
    async with recorder.harness(dual_write_at_least=timedelta(seconds=2), watch_every=timedelta(seconds=1)) as h:
        await relayed(recorder, h)
    async with recorder.harness(dual_write_at_least=DAY) as h:
        await not_relayed(recorder, h)
    async with recorder.harness("replicating", hasty=True) as h:
        await continued(recorder, h, "dwell", timedelta(days=7))
    async with recorder.harness("ready", hasty=True) as h:
        await continued(recorder, h, "watch", timedelta(days=7))


async def relayed(recorder: Recorder, h: Harness) -> None:
    """A replication run of an outbox service, to the end of its relays."""
    run = ids.replication(h.plan, SERVICE)
    h.world.carry()
    copied = h.world.backfill_progress
    h.world.backfill_progress = lambda ref: copied(ref).model_copy(update={"complete": False})  # type: ignore[method-assign]
    await h.start(ReplicationWorkflow, run, service=SERVICE)
    await recorder.keep(h, run, "replication-outbox-backfill")
    del h.world.backfill_progress
    await recorder.keep(h, run, "replication-outbox-dual-write")
    await h.until(run, lambda one: one.phase == "watching")
    await h.signal(run, "released", by="ann")
    await recorder.keep(h, run, "replication-outbox-done")


async def not_relayed(recorder: Recorder, h: Harness) -> None:
    """A replication run of an outbox service whose relays cannot begin."""
    run = ids.replication(h.plan, SERVICE)
    h.world.carry()
    h.world.faults["relay"] = [refused("a DSN is missing")]
    await h.start(ReplicationWorkflow, run, service=SERVICE)
    await recorder.keep(h, run, "replication-outbox-not-relayed")


async def continued(recorder: Recorder, h: Harness, name: str, length: timedelta) -> None:
    """A replication run that hands over to the next one, and that one."""
    run = ids.replication(h.plan, SERVICE)
    first = await h.start(ReplicationWorkflow, run, service=SERVICE)
    await h.until(run, lambda one: one.state == "WAITING")
    await h.advance(run, length)
    await recorder.keep(h, run, f"replication-{name}-continued", first.result_run_id)
    await recorder.keep(h, run, f"replication-{name}-resumed")


async def cleanup(recorder: Recorder) -> None:
    async with recorder.harness("switched") as h:
        await h.start(CleanupWorkflow, ids.cleanup(h.plan))
        await recorder.keep(h, ids.cleanup(h.plan), "cleanup-refused")
    async with recorder.harness("deprecated") as h:
        await hand_over(recorder, h)
    async with recorder.harness("deprecated") as h:
        run = ids.cleanup(h.plan)
        h.world.down["measure_way_back"] = unreachable()
        h.world.problems["give-up-way-back"] = ["trades: 3 rows differ"]
        h.world.faults["archive_tables"] = [refused("the disk is full")]
        await h.start(CleanupWorkflow, run)
        await outage(recorder, h, run, "measure_way_back", "cleanup-unreachable")
        await recorder.keep(h, run, "cleanup-give-up-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await h.at_gate(run, "give-up-way-back")
        await h.signal(run, "approve", "nonsense")
        await h.update(run, "reject", by="ben", reason="not today")
        await recorder.keep(h, run, "cleanup-rejected")
        await h.update(run, "retry", by="ben")
        await recorder.keep(h, run, "cleanup-give-up-gate")
        await h.approve(run, "give-up-way-back", "ann", "ben")
        await recorder.keep(h, run, "cleanup-parked")
        await h.update(run, "retry", by="ben")
        await recorder.keep(h, run, "cleanup-tasks")
        await h.update(run, "pause", by="erin")
        await h.update(run, "approve", by="ann")
        await recorder.keep(h, run, "cleanup-paused")
        await h.update(run, "resume", by="erin")
        await recorder.keep(h, run, "cleanup-rename-gate")
        h.world.problems["drop"] = ["trades was read 3 minutes ago"]
        await h.approve(run, "rename", "ann")
        await recorder.keep(h, run, "cleanup-quiet")
        await h.advance(run, timedelta(days=7, minutes=1))
        await recorder.keep(h, run, "cleanup-drop-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "cleanup-drop-gate")
        await h.approve(run, "drop", "ann", "ben")
        await recorder.keep(h, run, "cleanup-done")


async def hand_over(recorder: Recorder, h: Harness) -> None:
    """The switchover run is paused, so it does not let go; then it is gone back."""
    run, other = ids.cleanup(h.plan), ids.switchover(h.plan, SERVICE)
    h.world.primary[SERVICE] = "service"
    await h.start(SwitchoverWorkflow, other, service=SERVICE)
    await h.until(other, lambda one: one.phase == "deprecated")
    await h.update(other, "pause", by="erin")
    await h.start(CleanupWorkflow, run)
    await h.approve(run, "give-up-way-back", "ann", "ben")
    await recorder.keep(h, run, "cleanup-hand-over")
    h.world.stages_of[SERVICE] = "rolled-back"
    await h.signal(run, "stage_changed", by="x")
    await recorder.keep(h, run, "cleanup-rolled-back")
    h.world.stages_of[SERVICE], h.world.refused_stage = "deprecated", "released"
    await h.handle(other).terminate("ended by hand")
    await h.update(run, "retry", by="ann")
    await h.approve(run, "give-up-way-back", "ann", "ben")
    await recorder.keep(h, run, "cleanup-take-over-parked")


async def migration(recorder: Recorder) -> None:
    async with recorder.harness(migration="registered") as h:
        run = ids.migration(h.plan)
        h.world.down["bind_plan"] = unreachable()
        h.world.faults["stages"] = [refused("the migration is not registered")]
        first = await h.start(MigrationWorkflow, run)
        await outage(recorder, h, run, "bind_plan", "migration-unreachable")
        await recorder.keep(h, run, "migration-parked")
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "migration-preparation")
        await h.update(run, "pause", by="erin")
        await h.signal(run, "stage_changed", {})
        await recorder.keep(h, run, "migration-paused")
        await h.update(run, "resume", by="erin")
        h.world.stage = "prepared"
        await h.signal(run, "stage_changed", {})
        await recorder.keep(h, run, "migration-continued", first.result_run_id)
        await recorder.keep(h, run, "migration-dual-write")
        await h.handle(ids.replication(h.plan, SERVICE)).terminate("ended by hand")
        await recorder.keep(h, run, "migration-child-parked")
        h.world.tasks += [task("dual_write"), task("switchover")]
        h.world.stages_of[SERVICE] = "ready"
        h.world.calendar = lambda request: m.Calendar()  # type: ignore[method-assign]
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "migration-dual-write-tasks")
        await h.update(run, "approve", by="ann")
        await recorder.keep(h, run, "migration-switchover-tasks")
        await h.update(run, "approve", by="ann")
        await recorder.keep(h, run, "migration-calendar-parked")
        del h.world.calendar
        await h.update(run, "retry", by="ann")
        await recorder.keep(h, run, "migration-calendar")
    async with recorder.harness("ready", compress=200_000.0) as h:
        run = ids.migration(h.plan)
        await h.start(MigrationWorkflow, run)
        await recorder.keep(h, run, "migration-switchover")
        await to_stage(h, run, "rolled-back")
        await recorder.keep(h, run, "migration-rolled-back")
        await to_stage(h, run, "deprecated")
        await recorder.keep(h, run, "migration-cleanup")
        h.world.stage = "cleaned"
        await h.signal(run, "stage_changed", {})
        await recorder.keep(h, run, "migration-done")


async def to_stage(h: Harness, run: str, stage: str) -> None:
    h.world.stages_of[SERVICE] = stage
    await h.signal(run, "stage_changed", {})


async def monitor(recorder: Recorder) -> None:
    lost = m.Found(key="a/slot/b", severity="critical", text="a: slot is gone → cutover doctor a --rebuild-stream")
    async with recorder.harness(migration="registered") as h:
        await h.start(MonitorWorkflow, "migration/unknown/monitor", {"plan": "unknown"})
        await recorder.keep(h, "migration/unknown/monitor", "monitor-refused")
    async with recorder.harness() as h:
        run = ids.monitor(h.plan)
        h.world.on["watch"] = h.world.watching
        h.world.down["bind_plan"] = unreachable()
        await h.start(MonitorWorkflow, run)
        await h.signal(run, "pause", by="erin")
        await outage(recorder, h, run, "bind_plan", "monitor-unreachable")
        await recorder.keep(h, run, "monitor-paused")
        await h.update(run, "resume", by="erin")
        await recorder.keep(h, run, "monitor-watching")
        h.world.found = [lost]
        await recorder.keep(h, run, "monitor-found")
        h.world.faults["watch"] = [refused("no DSN is set")]
        h.world.found = []
        await recorder.keep(h, run, "monitor-parked")
        await h.update(run, "retry", by="ann")
        await h.until(run, lambda one: one.state == "RUNNING")
        h.world.stage = "cleaned"
        await recorder.keep(h, run, "monitor-done")
    async with recorder.harness(hasty=True) as h:
        run = ids.monitor(h.plan)
        h.world.on["watch"] = h.world.watching
        first = await h.start(MonitorWorkflow, run)
        for number in range(40):
            h.world.found = [lost] if number % 2 else []
            state = "WAITING" if number % 2 else "RUNNING"
            await h.until(run, lambda one: one.state == state)  # noqa: B023
            described = await h.client.get_workflow_handle(run, run_id=first.result_run_id).describe()
            if described.status == WorkflowExecutionStatus.CONTINUED_AS_NEW and not number % 2:
                break
        await recorder.keep(h, run, "monitor-continued", first.result_run_id)
        await recorder.keep(h, run, "monitor-resumed")


async def reconciliation(recorder: Recorder) -> None:
    async with recorder.harness("ready") as h:
        h.world.differences = 2
        table: dict[str, Any] = {"service": SERVICE, "table": f"{SERVICE}_rows"}
        run = f"{h.plan}/pass"
        h.world.down["bind_plan"] = unreachable()
        h.world.down["walk_span"] = unreachable("database 'trading_engine_db' cannot be reached: ConnectionError")
        await h.start(ReconciliationWorkflow, run, **table)
        await h.signal(run, "pause", by="erin")
        await outage(recorder, h, run, "bind_plan", "reconciliation-unreachable")
        await recorder.keep(h, run, "reconciliation-paused")
        await h.update(run, "resume", by="erin")
        await outage(recorder, h, run, "walk_span", "reconciliation-pass-unreachable")
        await recorder.keep(h, run, "reconciliation-done")
        h.world.spans, h.world.on["walk_span"] = 3, h.world.never
        run = f"{h.plan}/large"
        await h.start(ReconciliationWorkflow, run, **table)
        await recorder.keep(h, run, "reconciliation-comparing")
        await h.update(run, "pause", by="erin")
        await recorder.keep(h, run, "reconciliation-pass-paused")
        del h.world.on["walk_span"]
        h.world.frozen_for = HOUR
        await h.update(run, "resume", by="erin")
        await recorder.keep(h, run, "reconciliation-frozen")
        await h.advance(run, HOUR)
        assert "300 rows" in await h.client.get_workflow_handle(run).result()
        h.world.faults["walk_span"] = [refused("no primary key")]
        await h.start(ReconciliationWorkflow, f"{h.plan}/failed", **table)
        await recorder.keep(h, f"{h.plan}/failed", "reconciliation-failed")
