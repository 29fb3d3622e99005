"""Messages: anything may be sent; what is wrong changes nothing and is refused in words."""

from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError

from activities import ids
from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from tests.workflows.world import refused as refusal
from workflows.cleanup import CleanupWorkflow
from workflows.migration import MigrationWorkflow
from workflows.switchover import SwitchoverWorkflow

SERVICE = "trading_engine"
GATE = "give-up-way-back"


async def at_gate(make: Make) -> tuple[Harness, str]:
    """A cleanup run at its first gate, which needs evidence and two people."""
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE] = "deprecated"
    run = ids.cleanup(harness.plan)
    await harness.start(CleanupWorkflow, run)
    await harness.at_gate(run, GATE)
    return harness, run


@pytest.mark.parametrize(
    ("payloads", "why"),
    [
        ([], "one JSON object was expected, not 0"),
        ([{"by": "alice"}, {"by": "bob"}], "one JSON object was expected, not 2"),
        ([None], "one JSON object was expected"),
        (["alice"], "not a string"),
        ([7], "not a number"),
        ([True], "not a boolean"),
        ([["alice"]], "not a list"),
        ([{}], "'by' is missing"),
        ([{"by": ""}], "'by'"),
        ([{"by": {"name": "alice"}}], "'by'"),
        ([{"by": "alice", "evidense": "k7gi"}], "'evidense' is not known"),
        ([{"by": "alice", "evidence": "zzzz"}], 'the right one is "k7gi"'),
        ([{"by": "alice"}], 'needs the evidence you approve: "evidence": "k7gi"'),
        ([{"by": "alice", "evidence": "k7gi", "gate": "drop"}], "'drop' is not open"),
    ],
)
async def test_a_wrong_approval_is_refused_in_words_and_changes_nothing(
    make: Make, payloads: list[Any], why: str
) -> None:
    harness, run = await at_gate(make)
    await harness.signal(run, "approve", *payloads) if payloads else await harness.handle(run).signal("approve")
    status = await harness.until(run, lambda one: bool(one.refused))
    assert why in status.refused[-1].text
    assert status.gates[0].approvals == []
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await harness.handle(run).execute_update("approve", args=payloads)
    assert why in str(refused.value.cause)
    assert harness.world.decisions == []


async def test_approvals_count_by_person_and_duplicates_count_once(make: Make) -> None:
    harness, run = await at_gate(make)
    assert "1 of 2" in await harness.update(run, "approve", by="alice", evidence="K7GI")
    assert "counted already" in await harness.update(run, "approve", by=" Alice ", evidence="k7gi")
    await harness.signal(run, "approve", by="alice", evidence="k7gi")
    status = await harness.status(run)
    assert [one.by for one in status.gates[0].approvals] == ["alice"]
    assert status.evidence == "k7gi"
    assert "1 approval of gate 'give-up-way-back' with evidence k7gi (alice so far)" in status.waiting_for
    assert '--input \'{"by": "YOU", "evidence": "k7gi"}\'' in status.commands[0].temporal
    await harness.update(run, "approve", by="bob", evidence="k7gi")
    await harness.until(run, lambda one: not one.gates or one.gates[0].name != GATE)
    assert [one.by for one in harness.world.decisions] == ["alice", "bob"]


async def test_an_approval_expires_after_the_plans_time(make: Make) -> None:
    harness, run = await at_gate(make)
    await harness.update(run, "approve", by="alice", evidence="k7gi")
    await harness.advance(run, timedelta(hours=23))
    assert len((await harness.status(run)).gates[0].approvals) == 1
    await harness.advance(run, timedelta(hours=2))
    status = await harness.until(run, lambda one: not one.gates[0].approvals)
    assert "alice expired" in status.gates[0].note
    await harness.update(run, "approve", by="bob", evidence="k7gi")
    assert (await harness.status(run)).gates[0].name == GATE


async def test_a_rejection_parks_and_retry_opens_the_gate_anew(make: Make) -> None:
    harness, run = await at_gate(make)
    await harness.update(run, "approve", by="alice", evidence="k7gi")
    await harness.signal(run, "reject", by="bob", reason="not this week")
    status = await harness.parked(run)
    assert "rejected by bob: not this week" in status.attention
    with pytest.raises(WorkflowUpdateFailedError):
        await harness.update(run, "skip", by="bob")
    await harness.signal(run, "retry", by="bob")
    status = await harness.at_gate(run, GATE)
    assert status.gates[0].approvals == []


async def test_evidence_that_does_not_hold_keeps_the_gate_closed_until_it_does(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE] = "deprecated"
    harness.world.problems[GATE] = ["trades: 3 rows differ"]
    run = ids.cleanup(harness.plan)
    await harness.start(CleanupWorkflow, run)
    status = await harness.until(run, lambda one: "3 rows differ" in one.waiting_for)
    assert status.state == "WAITING"
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await harness.update(run, "approve", by="alice", evidence="k7gi")
    assert "3 rows differ" in str(refused.value.cause)
    harness.world.problems.clear()
    await harness.update(run, "retry", by="alice")
    await harness.at_gate(run, GATE)


async def test_a_misspelt_signal_and_a_rollback_in_the_wrong_place_are_shown(make: Make) -> None:
    harness, run = await at_gate(make)
    await harness.signal(run, "aprove", by="alice")
    await harness.signal(run, "rollback", by="alice")
    await harness.signal(run, "hand_over", by="alice")
    status = await harness.until(run, lambda one: len(one.refused) == 3)
    texts = " | ".join(one.text for one in status.refused)
    assert "'aprove' is no message" in texts
    assert ids.switchover(harness.plan, SERVICE) in texts


async def test_a_refused_record_takes_the_approval_back(make: Make) -> None:

    harness, run = await at_gate(make)
    harness.world.faults["record_decision"] = [refusal("that code stands for nothing")]
    await harness.signal(run, "approve", by="alice", evidence="k7gi")
    status = await harness.until(run, lambda one: bool(one.refused))
    assert "stands for nothing" in status.refused[0].text
    assert status.gates[0].approvals == []


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("ai-trader", "must be one JSON object"),
        ([], "must be one JSON object"),
        ({}, "'plan' is missing"),
        ({"plan": "x", "servce": "y"}, "'servce' is not known"),
        ({"plan": "nothing-registered"}, "cutover plan register"),
    ],
)
async def test_a_wrong_start_fails_at_once_with_what_would_be_right(make: Make, payload: Any, why: str) -> None:
    harness = await make(SERVICE)
    handle = await harness.start(MigrationWorkflow, f"migration/{harness.plan}", payload)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert why in str(failed.value.cause)


async def test_an_unknown_service_is_refused_with_the_known_ones(make: Make) -> None:
    harness = await make(SERVICE)
    handle = await harness.start(SwitchoverWorkflow, ids.switchover(harness.plan, "x"), service="x")
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert SERVICE in str(failed.value.cause)
