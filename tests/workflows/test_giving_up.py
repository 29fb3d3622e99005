"""Giving up the way back: what people decided can be taken away until the last run has let go."""

from activities import ids
from activities.models import Standing
from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from workflows.cleanup import CleanupWorkflow
from workflows.replication import ReplicationWorkflow
from workflows.switchover import SwitchoverWorkflow

FIRST, SECOND = "trading_engine", "analytics"
GATE = "give-up-way-back"


async def handing_over(make: Make) -> tuple[Harness, str]:
    """The gate is passed and the runs of the services, which are paused, have not let go."""
    harness = await make(FIRST, SECOND)
    harness.world.stage = "prepared"
    for service in (FIRST, SECOND):
        harness.world.stages_of[service], harness.world.primary[service] = "deprecated", "service"
        await harness.start(SwitchoverWorkflow, ids.switchover(harness.plan, service), service=service)
        await harness.start(ReplicationWorkflow, ids.replication(harness.plan, service), service=service)
        await harness.until(ids.switchover(harness.plan, service), lambda one: one.phase == "deprecated")
        await harness.update(ids.switchover(harness.plan, service), "pause", by="erin")
    run = ids.cleanup(harness.plan)
    await harness.start(CleanupWorkflow, run)
    await harness.approve(run, GATE, "ann", "ben")
    await asked_to_hand_over(harness, FIRST)
    return harness, run


async def asked_to_hand_over(harness: Harness, service: str) -> None:
    words = f"the switchover run of {service} to hand over"
    await harness.until(ids.cleanup(harness.plan), lambda one: words in one.waiting_for)


async def resumed(harness: Harness, *services: str) -> None:
    """Their runs let go once they have been asked to."""
    for service in services:
        await asked_to_hand_over(harness, service)
        await harness.update(ids.switchover(harness.plan, service), "resume", by="erin")
        await harness.stage(service, "released")


async def test_another_plan_opens_the_gate_again_and_says_so(make: Make) -> None:
    harness, run = await handing_over(make)
    harness.world.adopt()
    harness.world.standing = Standing(ok=False, detail="0 of 2 approvals of gate 'give-up-way-back'")
    await harness.signal(run, "plan_adopted", hash="hash-2")
    status = await harness.at_gate(run, GATE)
    assert status.gates[0].approvals == []
    assert any("0 of 2 approvals" in one.text for one in harness.world.alerts if one.kind == "give-up-again")
    harness.world.standing = Standing()
    await harness.approve(run, GATE, "ann", "ben")
    await resumed(harness, FIRST, SECOND)
    await harness.until(run, lambda one: any(gate.name == "task:docs" for gate in one.gates))


async def test_a_service_that_was_rolled_back_has_the_way_back_given_up_anew(make: Make) -> None:
    harness, run = await handing_over(make)
    harness.world.stages_of[FIRST] = "rolled-back"
    await harness.signal(run, "stage_changed", service=FIRST, stage="rolled-back")
    status = await harness.parked(run)
    assert f"{FIRST} is 'rolled-back'" in status.attention
    assert harness.world.stages_of[SECOND] == "deprecated"
    looked = harness.world.count("stages")
    await harness.update(run, "retry", by="ann")
    await harness.until(run, lambda one: one.state == "NEEDS_ATTENTION" and harness.world.count("stages") > looked)
    harness.world.stages_of[FIRST] = "deprecated"
    await harness.update(run, "retry", by="ann")
    assert (await harness.at_gate(run, GATE)).gates[0].approvals == []


async def test_no_stream_stops_before_the_last_run_has_let_go(make: Make) -> None:
    harness, run = await handing_over(make)
    harness.world.stages_of[FIRST] = "released"
    await harness.signal(run, "stage_changed", service=FIRST, stage="released")
    await asked_to_hand_over(harness, SECOND)
    assert (await harness.status(ids.replication(harness.plan, FIRST))).phase == "watching"
    await resumed(harness, SECOND)
    for service in (FIRST, SECOND):
        assert await harness.handle(ids.replication(harness.plan, service)).result() == "released"


async def test_the_approval_stands_for_a_run_that_is_gone_and_is_asked_for_again_where_it_stands_no_more(
    make: Make,
) -> None:
    harness = await make(FIRST)
    harness.world.stages_of[FIRST] = "deprecated"
    harness.world.refused_stage = "released"
    run = ids.cleanup(harness.plan)
    await harness.start(CleanupWorkflow, run)
    await harness.approve(run, GATE, "ann", "ben")
    await harness.parked(run)
    harness.world.standing = Standing(ok=False, detail="0 of 2 approvals")
    await harness.update(run, "retry", by="ann")
    await harness.at_gate(run, GATE)
    harness.world.standing, harness.world.refused_stage = Standing(), ""
    await harness.approve(run, GATE, "ann", "ben")
    await harness.stage(FIRST, "released")


async def test_the_evidence_that_was_approved_goes_with_the_hand_over(make: Make) -> None:
    harness, _ = await handing_over(make)
    await resumed(harness, FIRST)
    asked = [query.evidence for name, query in harness.world.calls if name == "given_up"]
    assert set(asked) == {"k7gi"}
