"""What the demo's people answer, and what they never answer."""

from datetime import UTC, datetime
from typing import Any

import pytest

from examples.ai_trader.demo_person import RETRIES, Answer, GaveUp, Mind
from workflows.messages import PastApproval
from workflows.status import GateStatus, State, Status, command

NOW = datetime(2026, 1, 5, 9, tzinfo=UTC)
SWITCHOVER = "migration/ai-trader/trading_engine/switchover"


def run(state: State = "WAITING", workflow_id: str = SWITCHOVER, **fields: Any) -> Status:
    shown: dict[str, Any] = {
        "workflow": "Switchover",
        "workflow_id": workflow_id,
        "migration": "ai-trader",
        "phase": "write gate",
        "waiting_for": "something, since now",
        "since": NOW,
    }
    return Status(**{**shown, "state": state, **fields})


def gate(name: str = "write", *approved: str, required: int = 2, **fields: Any) -> GateStatus:
    approvals = [PastApproval(gate=name, by=by, at=NOW) for by in approved]
    shown: dict[str, Any] = {"question": "?", "opened": NOW, "needs_evidence": True, "evidence": "k7f2"}
    return GateStatus(**{**shown, "name": name, "required": required, "approvals": approvals, **fields})


@pytest.fixture
def mind() -> Mind:
    return Mind("ai-trader", rollback_of="trading_engine")


def test_two_people_approve_with_the_evidence_that_is_shown(mind: Mind) -> None:
    said = mind.answers([run(gates=[gate()])], {}, 0)
    assert said == [
        Answer(SWITCHOVER, "approve", "alice", "write", "k7f2"),
        Answer(SWITCHOVER, "approve", "bob", "write", "k7f2"),
    ]
    assert said[0].payload == {"by": "alice", "gate": "write", "evidence": "k7f2"}


def test_only_what_a_gate_still_lacks_is_sent(mind: Mind) -> None:
    assert [one.by for one in mind.answers([run(gates=[gate("write", "alice")])], {}, 0)] == ["bob"]
    assert mind.answers([run(gates=[gate("write", "alice", "bob")])], {}, 0) == []


def test_evidence_that_does_not_hold_is_never_approved(mind: Mind) -> None:
    assert mind.answers([run(gates=[gate(ok=False)])], {}, 0) == []


def test_evidence_that_is_not_measured_yet_is_waited_for(mind: Mind) -> None:
    assert mind.answers([run(gates=[gate(evidence="")])], {}, 0) == []


def test_a_gate_that_opens_by_evidence_alone_is_left_alone(mind: Mind) -> None:
    assert mind.answers([run(gates=[gate("read", required=0)])], {}, 0) == []


def test_tasks_are_acknowledged_one_by_one_without_evidence(mind: Mind) -> None:
    tasks = [gate(f"task:{name}", required=1, needs_evidence=False) for name in ("one", "two")]
    said = mind.answers([run(gates=tasks)], {}, 0)
    assert [(one.gate, one.by, one.evidence) for one in said] == [("task:one", "alice", ""), ("task:two", "alice", "")]


def test_a_voided_approval_is_given_again_for_the_new_evidence(mind: Mind) -> None:
    mind.answers([run(gates=[gate("write", "alice", "bob")])], {}, 0)
    said = mind.answers([run(gates=[gate(evidence="m3qq")])], {}, 1)
    assert [(one.by, one.evidence) for one in said] == [("alice", "m3qq"), ("bob", "m3qq")]


def test_the_chosen_service_is_rolled_back_once_after_its_write_switch(mind: Mind) -> None:
    back = command(SWITCHOVER, "rollback", "Go back")
    shown = run(rollback=back)
    assert mind.answers([shown], {"trading_engine": "ready"}, 0) == []
    (said,) = mind.answers([shown], {"trading_engine": "switched"}, 1)
    assert (said.action, said.by) == ("rollback", "carol")
    mind.heard(said, accepted=False)
    (said,) = mind.answers([shown], {"trading_engine": "switched"}, 2)
    mind.heard(said, accepted=True)
    assert mind.answers([shown], {"trading_engine": "switched"}, 3) == []


def test_no_other_service_is_rolled_back(mind: Mind) -> None:
    other = "migration/ai-trader/analytics/switchover"
    shown = run(workflow_id=other, rollback=command(other, "rollback", "Go back"))
    assert mind.answers([shown], {"analytics": "switched", "trading_engine": "switched"}, 0) == []


def test_the_rolled_back_service_is_let_in_again_by_approval(mind: Mind) -> None:
    shown = run("WAITING", gates=[gate("switch-again", required=1, needs_evidence=False)])
    (said,) = mind.answers([shown], {"trading_engine": "rolled-back"}, 0)
    assert (said.action, said.gate) == ("approve", "switch-again")


def test_a_parked_run_is_retried_after_a_pause_and_given_up_in_the_end(mind: Mind) -> None:
    parked = run("NEEDS_ATTENTION", attention="preflight: 2 blocking findings")
    now, retries = 0.0, 0
    assert mind.answers([parked], {}, now) == []
    with pytest.raises(GaveUp, match="2 blocking findings"):  # noqa: PT012
        for _ in range(100):
            now += 1
            retries += len(mind.answers([parked], {}, now))
    assert retries == RETRIES


def test_a_parked_run_is_not_approved_meanwhile(mind: Mind) -> None:
    assert mind.answers([run("NEEDS_ATTENTION", attention="x: y", gates=[gate()])], {}, 0) == []
