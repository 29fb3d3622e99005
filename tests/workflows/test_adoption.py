"""A plan that a person adopts: every open run takes it over between two steps, told or not."""

from datetime import timedelta

import pytest
from temporalio.client import WorkflowUpdateFailedError

from activities import ids
from activities import models as m
from cutover.cli.plan import _tell
from cutover.settings import Settings
from tests.control.plans import plan
from tests.waiting import until
from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from tests.workflows.world import unreachable
from workflows.cleanup import CleanupWorkflow
from workflows.migration import MigrationWorkflow
from workflows.preparation import PreparationWorkflow
from workflows.reconciliation import ReconciliationWorkflow
from workflows.replication import ReplicationWorkflow
from workflows.switchover import SwitchoverWorkflow

SERVICE = "trading_engine"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


async def at_write_gate(make: Make) -> tuple[Harness, str]:
    # what is done hourly is done every six hours here: each jump in time costs a moment of the test
    harness = await make(SERVICE, soak=timedelta(seconds=0.3), soak_samples=3, hour=6 * HOUR)
    harness.world.stages_of[SERVICE] = "ready"
    run = ids.switchover(harness.plan, SERVICE)
    await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    await harness.approve(run, "read", "alice")
    await harness.at_gate(run, "write")
    return harness, run


async def told(harness: Harness, run: str) -> None:
    """As `cutover plan register --adopt` does."""
    await harness.signal(run, "plan_adopted", hash=harness.world.rules.plan_hash)


def sections(harness: Harness) -> list[str]:
    return [order.ref.plan_hash for name, order in harness.world.calls if name == "fenced_section"]


async def test_an_open_gate_is_measured_and_approved_anew_under_the_adopted_plan(make: Make) -> None:
    harness, run = await at_write_gate(make)
    await harness.update(run, "approve", by="alice", evidence="k7wr")
    harness.world.adopt(approvals_required=3)
    await told(harness, run)
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and bool(one.gates) and one.gates[0].ok)
    assert status.gates[0].approvals == []
    assert (status.gates[0].required, status.evidence) == (3, "k7wr2")
    assert "adopted by carol" in status.gates[0].note
    assert "plan hash-2 in place of hash-1, adopted by carol: ~ a: 1 → 2" in str(status.progress["plan adopted"])
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await harness.update(run, "approve", by="alice", evidence="k7wr")
    assert "not what stands now" in str(refused.value.cause)
    await harness.approve(run, "write", "alice", "bob")
    assert harness.world.count("fenced_section") == 0
    await harness.approve(run, "write", "cleo")
    await harness.stage(SERVICE, "switched")
    assert sections(harness) == ["hash-2"]
    assert harness.world.primary[SERVICE] == "service"


async def test_a_run_that_was_not_told_finds_the_plan_when_an_approval_reaches_it(make: Make) -> None:
    harness, run = await at_write_gate(make)
    await harness.update(run, "approve", by="alice", evidence="k7wr")
    await harness.until(run, lambda one: len(harness.world.decisions) == 2)
    harness.world.adopt()
    await harness.update(run, "approve", by="bob", evidence="k7wr")
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and bool(one.gates) and one.gates[0].ok)
    assert status.gates[0].approvals == []
    assert "bob" in status.refused[-1].text
    assert sections(harness) == []
    assert [one.by for one in harness.world.decisions] == ["alice", "alice"]


async def test_approvals_that_were_all_recorded_before_the_adoption_open_nothing(make: Make) -> None:
    harness, run = await at_write_gate(make)
    await harness.signal(run, "pause", by="erin")
    await harness.update(run, "approve", by="alice", evidence="k7wr")
    await harness.update(run, "approve", by="bob", evidence="k7wr")
    await harness.until(run, lambda one: one.state == "PAUSED")
    harness.world.adopt()
    await harness.signal(run, "resume", by="erin")
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and bool(one.gates) and one.gates[0].ok)
    assert status.gates[0].approvals == []
    assert sections(harness) == []


async def test_a_gate_without_evidence_looks_for_another_plan_before_it_opens(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE] = "released"
    harness.world.tasks = []
    run = ids.cleanup(harness.plan)
    await harness.start(CleanupWorkflow, run)
    await harness.at_gate(run, "rename")
    await harness.signal(run, "pause", by="erin")
    await harness.update(run, "approve", by="alice")
    await harness.until(run, lambda one: one.state == "PAUSED")
    harness.world.adopt()
    await harness.signal(run, "resume", by="erin")
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and one.state == "WAITING")
    assert (status.gates[0].name, status.gates[0].approvals) == ("rename", [])
    assert harness.world.count("rename_tables") == 0


async def test_a_plan_adopted_between_the_write_gate_and_the_section_opens_the_gate_again(make: Make) -> None:
    harness, run = await at_write_gate(make)

    async def adopt() -> None:
        if harness.world.count("prepare_reverse") == 1:
            harness.world.adopt()

    harness.world.on["prepare_reverse"] = adopt
    await harness.approve(run, "write", "alice", "bob")
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and bool(one.gates) and one.gates[0].ok)
    assert (status.gates[0].name, status.gates[0].approvals) == ("write", [])
    assert harness.world.primary[SERVICE] == "monolith"
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    assert harness.world.primary[SERVICE] == "service"


async def test_running_deadlines_move_by_what_the_plan_changed(make: Make) -> None:
    harness, run = await at_write_gate(make)
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    before = await harness.until(run, lambda one: one.phase == "deprecation")
    harness.world.adopt(deprecation=2 * DAY)
    await told(harness, run)
    after = await harness.until(run, lambda one: one.plan_hash == "hash-2")
    name = "rollback possible at least until"
    assert after.deadlines[name] - before.deadlines[name] == DAY
    await harness.advance(run, 47 * HOUR)
    assert (await harness.status(run)).phase == "deprecation"
    await harness.advance(run, HOUR + MINUTE)
    await harness.stage(SERVICE, "deprecated")


async def test_a_rollback_is_not_held_up_by_another_plan(make: Make) -> None:
    harness, run = await at_write_gate(make)
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    harness.world.adopt()
    harness.world.down["bind_plan"] = unreachable()
    await told(harness, run)
    await harness.until(run, lambda one: "cannot be reached" in one.waiting_for)
    await harness.signal(run, "rollback", by="dora")
    await harness.until(run, lambda one: harness.world.primary[SERVICE] == "monolith")
    await harness.until(run, lambda one: [alert.kind for alert in harness.world.alerts] == ["rollback"])
    del harness.world.down["bind_plan"]
    await harness.at_gate(run, "switch-again")
    await harness.approve(run, "switch-again", "alice")
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and bool(one.gates))
    assert status.gates[0].name == "switch-again"


async def test_the_schedules_follow_the_plan_and_a_sample_finds_it_without_a_message(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stage, harness.world.stages_of[SERVICE] = "prepared", "replicating"
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    before = await harness.until(run, lambda one: one.phase == "dual-write")
    harness.world.adopt(dual_write_at_least=15 * DAY)
    await harness.advance(run, HOUR)
    after = await harness.until(run, lambda one: one.plan_hash == "hash-2")
    name = "dual-write at least until"
    assert after.deadlines[name] - before.deadlines[name] == DAY
    await harness.until(run, lambda one: harness.world.count("create_schedules") == 1)
    assert [ref.plan_hash for name, ref in harness.world.calls if name == "create_schedules"] == ["hash-2"]
    harness.world.adopt(dual_write_at_least=timedelta(0))
    await told(harness, run)
    await harness.stage(SERVICE, "ready")
    await harness.until(run, lambda one: one.phase == "watching")
    harness.world.adopt()
    await told(harness, run)
    await harness.until(run, lambda one: one.plan_hash == "hash-4" and harness.world.count("create_schedules") == 3)
    await harness.signal(run, "released", by="ann")
    assert await harness.handle(run).result() == "released"


async def test_the_preparation_starts_over_and_asks_for_the_tasks_of_the_adopted_plan(make: Make) -> None:
    harness = await make(SERVICE)
    run = ids.preparation(harness.plan)
    await harness.start(PreparationWorkflow, run)
    await harness.until(run, lambda one: len(one.gates) == 2)
    await harness.update(run, "approve", by="ann", gate="task:staging")
    await harness.until(run, lambda one: len(one.gates) == 1)
    harness.world.tasks = [*harness.world.tasks, m.TaskRules(key="drill", owner="qa", phase="preparation")]
    services = [*harness.world.rules.services, m.ServiceRules(name="analytics", tables=[])]
    harness.world.adopt(services=services)
    await told(harness, run)
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and len(one.gates) == 2)
    assert {one.name for one in status.gates} == {"task:runbook", "task:drill"}
    built = [ref.service for name, ref in harness.world.calls if name == "install_fences"]
    assert built == [SERVICE, SERVICE, "analytics"]
    assert harness.world.count("claim_tables") == 2
    await harness.update(run, "approve", by="ann", gate="tasks")
    await harness.at_gate(run, "prepared")
    # not told: the measurement that follows the approval finds it, and the services are looked through again
    harness.world.adopt()
    await harness.update(run, "approve", by="ann")
    await harness.until(run, lambda one: one.plan_hash == "hash-3" and any(gate.ok for gate in one.gates))
    assert harness.world.stage == "registered"
    await harness.approve(run, "prepared", "ann")
    assert await harness.handle(run).result() == "prepared"


async def test_the_tasks_of_a_phase_are_read_again_and_done_ones_stay_done(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE] = "released"
    run = ids.cleanup(harness.plan)
    harness.world.tasks = [m.TaskRules(key=key, owner="all", phase="cleanup") for key in ("docs", "wiki")]
    await harness.start(CleanupWorkflow, run)
    await harness.until(run, lambda one: len(one.gates) == 2)
    await harness.update(run, "approve", by="ann", gate="task:docs")
    await harness.until(run, lambda one: len(one.gates) == 1)
    harness.world.tasks = [m.TaskRules(key=key, owner="all", phase="cleanup") for key in ("docs", "drill")]
    harness.world.adopt()
    await told(harness, run)
    await harness.until(run, lambda one: [gate.name for gate in one.gates] == ["task:drill"])
    await harness.update(run, "approve", by="ann")
    status = await harness.at_gate(run, "rename")
    assert [one.task for one in harness.world.tasks_done] == ["docs", "drill"]
    assert [gate.name for gate in status.gates] == ["rename"]


async def test_the_programme_takes_the_plan_over_at_a_phase_end_and_hands_it_to_its_children(make: Make) -> None:
    harness = await make(SERVICE)
    run = ids.migration(harness.plan)
    await harness.start(MigrationWorkflow, run)
    await harness.until(run, lambda one: "stage 'prepared'" in one.waiting_for)
    harness.world.adopt()
    harness.world.stage = "prepared"
    await harness.signal(run, "stage_changed", service="", stage="prepared")
    await harness.until(run, lambda one: one.plan_hash == "hash-2" and one.phase == "dual-write")
    child = ids.replication(harness.plan, SERVICE)
    status = await harness.until(child, lambda one: one.plan_hash == "hash-2")
    assert "plan adopted" not in status.progress


async def test_a_run_that_begins_under_a_replaced_plan_takes_the_one_in_force(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.adopt()
    handle = await harness.start(
        ReconciliationWorkflow,
        f"{harness.plan}/pass-1",
        {"plan": harness.plan, "service": SERVICE, "table": f"{SERVICE}_rows", "plan_hash": "hash-1"},
    )
    assert "300 rows" in await handle.result()
    [request] = [request for name, request in harness.world.calls if name == "walk_span"]
    assert request.ref.plan_hash == "hash-2"


async def test_the_command_line_tells_every_open_run(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stage, harness.world.stages_of[SERVICE] = "prepared", "ready"
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "watching")
    harness.world.adopt()
    address = harness.client.service_client.config.target_host
    settings = Settings({"TEMPORAL_ADDRESS": address, "TEMPORAL_NAMESPACE": harness.client.namespace})

    async def tell() -> bool:
        runs, problem = await _tell(settings, plan(harness.plan))
        assert problem == ""
        return run in runs

    await until(tell, "the run is in the server's list")
    await harness.until(run, lambda one: one.plan_hash == "hash-2")


async def test_a_calendar_that_another_plan_changed_is_read_again(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stage, harness.world.stages_of[SERVICE] = "prepared", "ready"
    run = ids.migration(harness.plan)
    await harness.start(MigrationWorkflow, run, resume="switchover")
    await harness.until(run, lambda one: "window of trading_engine" in one.waiting_for)
    harness.world.adopt()
    # not told: before the window is used, what is in force is looked up
    await harness.advance(run, DAY + MINUTE)
    status = await harness.until(run, lambda one: one.plan_hash == "hash-2" and "window of" in one.waiting_for)
    assert status.phase == "switchover"
    harness.world.adopt()
    await told(harness, run)
    await harness.until(run, lambda one: one.plan_hash == "hash-3" and harness.world.count("calendar") == 3)


async def test_a_parked_step_is_tried_again_under_the_adopted_plan(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.blocking = 1
    run = ids.preparation(harness.plan)
    await harness.start(PreparationWorkflow, run)
    await harness.parked(run)
    harness.world.adopt()
    await told(harness, run)
    await harness.until(run, lambda one: one.plan_hash == "hash-2" and one.state == "NEEDS_ATTENTION")
    harness.world.blocking = 0
    await harness.update(run, "retry", by="ann")
    await harness.until(run, lambda one: len(one.gates) == 2)
    assert [ref.plan_hash for name, ref in harness.world.calls if name == "preflight"] == ["hash-1", "hash-2"]
