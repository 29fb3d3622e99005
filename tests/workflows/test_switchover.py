"""A service's switchover with real durations: the soak is an hour and the deprecation a day."""

from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError

from activities import ids
from activities.models import Standing
from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from tests.workflows.world import refused, unreachable
from workflows.switchover import SwitchoverWorkflow

SERVICE = "trading_engine"
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


async def begin(make: Make, stage: str = "ready", **rules: Any) -> tuple[Harness, str]:
    harness = await make(SERVICE, **rules)
    harness.world.stages_of[SERVICE] = stage
    run = ids.switchover(harness.plan, SERVICE)
    await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    return harness, run


async def found(make: Make, stage: str) -> tuple[Harness, str]:
    """A run that begins when the writes have moved already."""
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE], harness.world.primary[SERVICE] = stage, "service"
    run = ids.switchover(harness.plan, SERVICE)
    await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    return harness, run


async def soaked(make: Make, **rules: Any) -> tuple[Harness, str]:
    """At the write gate, after a soak that is compressed to three samples."""
    harness, run = await begin(make, soak=timedelta(seconds=0.3), soak_samples=3, **rules)
    await harness.approve(run, "read", "alice")
    await harness.at_gate(run, "write")
    return harness, run


async def switched(make: Make, **rules: Any) -> tuple[Harness, str]:
    harness, run = await soaked(make, **rules)
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    return harness, run


async def test_a_switchover_soaks_for_an_hour_and_keeps_the_way_back_for_a_day(make: Make) -> None:
    harness, run = await begin(make)
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    await harness.advance(run, 59 * MINUTE)
    assert (await harness.status(run)).phase == "soak"
    await harness.advance(run, 2 * MINUTE)
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    assert harness.world.samples >= 60
    await harness.advance(run, 23 * HOUR)
    status = await harness.status(run)
    assert status.phase == "deprecation"
    assert status.rollback is not None
    assert "would pause writes about 8 ms" in status.rollback_note
    await harness.advance(run, HOUR + MINUTE)
    await harness.stage(SERVICE, "deprecated")
    await harness.until(run, lambda one: "cleanup" in one.waiting_for and one.rollback is not None)
    assert harness.world.count("summarise") >= 24
    await harness.signal(run, "hand_over", by="carol", evidence="k7gi")
    assert await harness.handle(run).result() == "released"
    assert harness.world.stages_of[SERVICE] == "released"
    assert [one.action for one in harness.world.decisions] == ["approve", "approve", "approve", "hand_over"]


async def test_it_refuses_to_start_before_the_service_is_ready(make: Make) -> None:
    harness, run = await begin(make, stage="replicating")
    with pytest.raises(WorkflowFailureError) as failed:
        await harness.handle(run).result()
    assert "'ready' is needed" in str(failed.value.cause)
    assert harness.world.count("set_read_flag") == 0


async def test_a_rollback_in_the_soak_sends_the_reads_back_and_touches_no_writes(make: Make) -> None:
    harness, run = await begin(make)
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    assert harness.world.read_new[SERVICE]
    await harness.signal(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")
    assert not harness.world.read_new[SERVICE]
    assert harness.world.count("fenced_section") == 0
    assert [one.kind for one in harness.world.alerts] == ["rollback"]


async def test_a_rollback_at_the_write_gate_closes_it(make: Make) -> None:
    harness, run = await soaked(make)
    await harness.at_gate(run, "write")
    await harness.update(run, "rollback", by="dora")
    status = await harness.at_gate(run, "switch-again")
    assert [gate.name for gate in status.gates] == ["switch-again"]
    assert not harness.world.read_new[SERVICE]


async def test_a_rollback_in_the_deprecation_moves_the_writes_back_and_the_second_switch_copies_nothing(
    make: Make,
) -> None:
    harness, run = await switched(make)
    assert "rolls back" in await harness.update(run, "rollback", by="dora", reason="orders look odd")
    status = await harness.at_gate(run, "switch-again")
    assert harness.world.primary[SERVICE] == "monolith"
    assert not harness.world.read_new[SERVICE]
    assert harness.world.stages_of[SERVICE] == "rolled-back"
    assert [alert.kind for alert in harness.world.alerts] == ["rollback"]
    assert "dora" in status.gates[0].question
    assert status.rollback is None
    with pytest.raises(WorkflowUpdateFailedError) as again:
        await harness.update(run, "rollback", by="dora")
    assert "nothing of trading_engine has been switched" in str(again.value.cause)
    await harness.approve(run, "switch-again", "alice")
    await harness.approve(run, "read", "alice")
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    assert harness.world.primary[SERVICE] == "service"
    assert harness.world.epochs[SERVICE] == 3
    assert harness.world.count("start_stream") == 0


async def test_a_rollback_after_the_deprecation_works_until_the_hand_over(make: Make) -> None:
    harness, run = await switched(make, deprecation=2 * HOUR)
    await harness.advance(run, 3 * HOUR)
    await harness.stage(SERVICE, "deprecated")
    await harness.until(run, lambda one: one.phase == "deprecated")
    await harness.signal(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")
    assert harness.world.primary[SERVICE] == "monolith"


async def test_a_rollback_that_arrives_in_the_fenced_section_takes_effect_right_after_it(make: Make) -> None:
    harness, run = await soaked(make)

    async def ask() -> None:
        if harness.world.count("fenced_section") == 1:
            await harness.signal(run, "rollback", by="dora")

    harness.world.on["fenced_section"] = ask
    await harness.approve(run, "write", "alice", "bob")
    await harness.at_gate(run, "switch-again")
    orders = [order.to_side for name, order in harness.world.calls if name == "fenced_section"]
    assert orders == ["service", "monolith"]


async def test_a_lasting_breach_in_the_soak_flips_the_reads_back_alerts_and_parks(make: Make) -> None:
    harness, run = await begin(make)
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    harness.world.breached = ["write_latency"]
    await harness.advance(run, 5 * MINUTE)
    status = await harness.parked(run)
    assert "write_latency" in status.attention
    assert not harness.world.read_new[SERVICE]
    assert "rollback" in [one.kind for one in harness.world.alerts]
    harness.world.breached = []
    await harness.update(run, "retry", by="alice")
    await harness.at_gate(run, "read")


async def test_an_undone_write_switch_is_tried_again_and_approvals_still_hold(make: Make) -> None:
    harness, run = await soaked(make)
    harness.world.undone = ["a lock was not obtained", "a lock was not obtained"]
    await harness.approve(run, "write", "alice", "bob")
    await harness.until(run, lambda one: "another attempt" in one.waiting_for)
    await harness.advance(run, MINUTE)
    await harness.stage(SERVICE, "switched")
    ids_used = {order.switch_id for name, order in harness.world.calls if name == "fenced_section"}
    assert len(ids_used) == 3


async def test_a_write_switch_that_stays_undone_parks_and_its_steps_cannot_be_skipped(make: Make) -> None:
    harness, run = await soaked(make)
    harness.world.undone = ["a lock was not obtained"] * 4
    await harness.approve(run, "write", "alice", "bob")
    await harness.until(run, lambda one: "another attempt" in one.waiting_for)
    await harness.advance(run, 3 * MINUTE)
    status = await harness.parked(run)
    assert "a lock was not obtained" in status.attention
    assert {one.does for one in status.commands} >= {"Try again"}
    with pytest.raises(WorkflowUpdateFailedError) as skipped:
        await harness.update(run, "skip", by="alice")
    assert "cannot be skipped" in str(skipped.value.cause)
    await harness.update(run, "retry", by="alice")
    await harness.stage(SERVICE, "switched")


async def test_evidence_that_got_worse_after_the_approvals_voids_them(make: Make) -> None:
    harness, run = await soaked(make)
    await harness.at_gate(run, "write")
    harness.world.worse["write"] = "differences 0 → 3"
    await harness.approve(run, "write", "alice", "bob")
    status = await harness.until(run, lambda one: bool(one.gates) and "void" in one.gates[0].note)
    assert status.gates[0].approvals == []
    assert harness.world.count("fenced_section") == 0
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")


async def test_a_pause_holds_before_the_next_step_and_resume_goes_on(make: Make) -> None:
    harness, run = await begin(make)
    await harness.at_gate(run, "read")
    await harness.signal(run, "pause", by="erin")
    await harness.update(run, "approve", by="alice")
    status = await harness.until(run, lambda one: one.state == "PAUSED")
    assert "erin" in status.waiting_for
    assert harness.world.count("set_read_flag") == 0
    await harness.update(run, "resume", by="erin")
    await harness.until(run, lambda one: one.phase == "soak")


async def test_an_unreachable_database_is_waited_out_in_words(make: Make) -> None:
    harness, run = await begin(make)
    await harness.at_gate(run, "read")
    harness.world.down["set_read_flag"] = unreachable()
    await harness.update(run, "approve", by="alice")
    status = await harness.until(run, lambda one: "cannot be reached" in one.waiting_for)
    assert status.state == "WAITING"
    del harness.world.down["set_read_flag"]
    await harness.until(run, lambda one: one.phase == "soak")


async def test_a_rollback_is_heard_while_a_database_is_away(make: Make) -> None:
    harness, run = await switched(make)
    harness.world.down["sample_thresholds"] = unreachable()
    await harness.advance(run, HOUR + MINUTE)
    await harness.until(run, lambda one: "cannot be reached" in one.waiting_for)
    await harness.signal(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")


async def test_a_step_that_fails_for_good_parks_until_it_is_retried(make: Make) -> None:
    harness, run = await begin(make)
    await harness.at_gate(run, "read")
    harness.world.faults["set_read_flag"] = [refused("the route is missing")]
    await harness.update(run, "approve", by="alice")
    status = await harness.parked(run)
    assert "the route is missing" in status.attention
    assert any(one.does == "Try again" and "--name retry" in one.temporal for one in status.commands)
    await harness.signal(run, "retry", by="alice")
    await harness.until(run, lambda one: one.phase == "soak")


async def test_a_run_started_again_after_a_cancellation_goes_on_where_the_service_stands(make: Make) -> None:
    harness, run = await switched(make)
    await harness.handle(run).cancel()
    with pytest.raises(WorkflowFailureError):
        await harness.handle(run).result()
    assert harness.world.primary[SERVICE] == "service"
    await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    status = await harness.until(run, lambda one: one.phase == "deprecation")
    assert status.rollback is not None


@pytest.mark.parametrize("stage", ["switched", "deprecated"])
async def test_a_run_that_begins_when_the_writes_have_moved_says_that_a_rollback_pauses_them(
    make: Make, stage: str
) -> None:
    harness, run = await found(make, stage)
    status = await harness.until(run, lambda one: one.phase.startswith("deprecat"))
    assert "would pause writes about a few ms" in status.rollback_note
    await harness.update(run, "rollback", by="dora")
    await harness.approve(run, "switch-again", "alice")
    await harness.approve(run, "read", "alice")
    status = await harness.until(run, lambda one: one.phase == "soak")
    assert "pauses no writes" in status.rollback_note


async def test_a_cancellation_in_the_soak_sends_the_reads_back(make: Make) -> None:
    harness, run = await begin(make)
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    await harness.handle(run).cancel()
    with pytest.raises(WorkflowFailureError):
        await harness.handle(run).result()
    assert not harness.world.read_new[SERVICE]


async def test_a_deprecation_does_not_end_before_the_items_of_its_phase_hold(make: Make) -> None:
    harness, run = await switched(make, deprecation=2 * HOUR)
    harness.world.unchecked["switchover"] = "no summary row since its writes moved"
    await harness.advance(run, 3 * HOUR)
    status = await harness.parked(run)
    assert "no summary row since its writes moved" in status.attention
    assert status.rollback is not None
    assert harness.world.count("checklist") == 2, "what is missing just now is taken first, and looked at again"
    assert harness.world.stages_of[SERVICE] == "switched"
    harness.world.unchecked.clear()
    await harness.update(run, "retry", by="carol")
    await harness.stage(SERVICE, "deprecated")


async def test_a_hand_over_that_people_did_not_approve_changes_nothing(make: Make) -> None:
    harness, run = await switched(make, hour=6 * HOUR)
    harness.world.standing = Standing(ok=False, detail="0 of 2 approvals")
    await harness.advance(run, 25 * HOUR)
    await harness.until(run, lambda one: one.phase == "deprecated")
    await harness.signal(run, "hand_over", by="mallory")
    await harness.until(run, lambda one: any("0 of 2 approvals" in refusal.text for refusal in one.refused))
    assert harness.world.stages_of[SERVICE] == "deprecated"
    await harness.signal(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")
    assert harness.world.primary[SERVICE] == "monolith"


@pytest.mark.parametrize("then", ["rollback", "hand-over"])
async def test_a_hand_over_whose_stage_is_refused_leaves_the_way_back_as_it_was(make: Make, then: str) -> None:
    harness, run = await found(make, "deprecated")
    await harness.until(run, lambda one: one.phase == "deprecated")
    harness.world.refused_stage = "released"
    await harness.signal(run, "hand_over", by="carol", evidence="k7gi")
    status = await harness.until(run, lambda one: any("'released' is refused" in said.text for said in one.refused))
    assert (status.state, status.attention) == ("WAITING", "")
    assert "Rollback possible" in status.rollback_note
    if then == "rollback":
        await harness.update(run, "rollback", by="dora")
        await harness.at_gate(run, "switch-again")
        assert harness.world.primary[SERVICE] == "monolith"
    else:
        harness.world.refused_stage = ""
        await harness.signal(run, "hand_over", by="carol", evidence="k7gi")
        assert await harness.handle(run).result() == "released"


async def test_a_hand_over_that_cannot_be_looked_into_parks_with_the_way_back_open(make: Make) -> None:
    harness, run = await switched(make, hour=6 * HOUR)
    await harness.advance(run, 25 * HOUR)
    await harness.until(run, lambda one: one.phase == "deprecated")
    harness.world.faults["given_up"] = [refused("no such plan"), refused("no such plan")]
    await harness.signal(run, "hand_over", by="carol")
    assert "no such plan" in (await harness.parked(run)).attention
    looked = harness.world.count("given_up")
    await harness.update(run, "retry", by="carol")
    await harness.until(run, lambda one: one.state == "NEEDS_ATTENTION" and harness.world.count("given_up") > looked)
    await harness.update(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")
    assert harness.world.primary[SERVICE] == "monolith"


async def test_a_switch_that_an_earlier_run_left_half_done_is_ended_first(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE] = "ready"
    harness.world.unfinished = "left-over"
    run = ids.switchover(harness.plan, SERVICE)
    await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    await harness.at_gate(run, "read")
    (order,) = [argument for name, argument in harness.world.calls if name == "fenced_section"]
    assert order.switch_id == "left-over"
