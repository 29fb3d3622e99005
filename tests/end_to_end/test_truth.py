"""The judge of `status` lines finds an empty or untrue one, and lets a true one pass."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cutover.cli.status import Overview, ServiceLine
from tests.end_to_end.test_reference_plan import secrets_in
from tests.end_to_end.truth import Lasting, at_odds, untrue
from workflows.status import GateStatus, Status, command

RUN = "migration/ai-trader/analytics/switchover"
SERVICES = ("analytics", "ai_decision")
NOW = datetime.now(UTC)
GATE = GateStatus(name="write", question="?", opened=NOW, needs_evidence=True, required=2, evidence="k7f2")
APPROVE = command(RUN, "approve", "Approve", evidence="k7f2")


def status(**fields: Any) -> Status:
    shown: dict[str, Any] = {
        "workflow": "Switchover",
        "workflow_id": RUN,
        "migration": "ai-trader",
        "service": "analytics",
        "phase": "write gate",
        "state": "WAITING",
        "waiting_for": "2 approvals of gate 'write' with evidence k7f2, since 2026-01-05T09:00:00+00:00",
        "since": NOW,
        "commands": [APPROVE],
        "gates": [GATE],
    }
    return Status(**{**shown, **fields})


def test_a_true_line_passes() -> None:
    assert untrue(status(), SERVICES) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"waiting_for": ""}, "says nothing"),
        ({"waiting_for": "something"}, "says nothing"),
        ({"waiting_for": ", since now"}, "says nothing"),
        ({"phase": ""}, "phase is empty"),
        ({"since": NOW + timedelta(hours=1)}, "in the future"),
        ({"gates": []}, "not open"),
        ({"gates": [GATE.model_copy(update={"evidence": "m3qq"})]}, "shows evidence k7f2"),
        ({"gates": [GATE.model_copy(update={"ok": False})]}, "does not hold"),
        ({"commands": []}, "no command"),
        ({"waiting_for": "evidence of gate 'read' to hold: x, since now"}, "'read', which is not open"),
        ({"waiting_for": "2 task(s) of people, each by, since now"}, "none is open"),
        ({"state": "NEEDS_ATTENTION", "attention": ""}, "does not say what for"),
        ({"state": "NEEDS_ATTENTION", "attention": "x", "commands": []}, "no command that answers"),
        ({"state": "PAUSED", "waiting_for": "the soak, since now"}, "how to go on"),
        ({"state": "DONE", "gates": [], "waiting_for": "the soak, since now"}, "is done and waits"),
        ({"rollback_note": "Rollback possible"}, "offers a rollback"),
        ({"waiting_for": "the switch of ai_decision, since now"}, "not its own (ai_decision)"),
        ({"commands": [command("migration/other", "pause", "Hold"), APPROVE]}, "for another run"),
    ],
)
def test_an_untrue_line_is_found(fields: dict[str, Any], said: str) -> None:
    assert any(said in one for one in untrue(status(**fields), SERVICES)), untrue(status(**fields), SERVICES)


def line(**fields: Any) -> ServiceLine:
    shown: dict[str, Any] = {"stage": "switched", "writable": "service", "reads": "service", "epoch": 1}
    return ServiceLine("analytics", paused=False, differences=0, oldest_pass_seconds=1.0, **{**shown, **fields})


def seen(*lines: ServiceLine, **fields: Any) -> Overview:
    return Overview("ai-trader", runs=[status(**fields)], services=list(lines))


def test_an_overview_that_agrees_with_the_databases_passes() -> None:
    assert at_odds(seen(line(), phase="deprecation"), {"analytics": "service"}, SERVICES) == []
    back = line(writable="monolith", reads="monolith")
    assert at_odds(seen(back, phase="read gate"), {"analytics": "monolith"}, SERVICES) == []
    assert at_odds(seen(), {}, SERVICES) == []


@pytest.mark.parametrize(
    ("found", "side", "said"),
    [
        (seen(line()), "monolith", "shown writable at the service"),
        (seen(line(writable="monolith"), phase="deprecation"), "monolith", "is not switched"),
        (seen(line(), phase="read gate"), "service", "is switched"),
        (
            seen(ServiceLine("x", "", "monolith", "monolith", 0, False, None, None)),
            "monolith",
            "no service of the plan",
        ),
    ],
)
def test_an_overview_at_odds_with_the_databases_is_found(found: Overview, side: str, said: str) -> None:
    assert any(said in one for one in at_odds(found, {"analytics": side}, SERVICES))


def test_only_what_lasts_is_wrong() -> None:
    lasting = Lasting(3.0)
    assert lasting.observe(["x", "y"], 0.0) == []
    assert lasting.observe(["x"], 2.9) == []
    assert lasting.observe(["x", "y"], 3.0) == ["x"]
    assert lasting.observe([], 4.0) == []
    assert lasting.observe(["x"], 5.0) == []


def test_a_table_whose_name_begins_like_a_service_is_no_service() -> None:
    assert untrue(status(waiting_for="a pass over ai_decisions, since now"), SERVICES) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"c0.2098.1a205c7b7be-4-40",
        b"p2098.1a205c7b7be-0-3",
        b'"gen-17"',
        b"x gen-17@traders.example",
        b"postgresql://someone@host/db",
        b"the s3cret word",
    ],
)
def test_a_row_value_a_dsn_and_a_password_are_found(raw: bytes) -> None:
    assert secrets_in(b"before \n" + raw + b" after", "s3cret")


def test_names_of_tables_and_runs_are_no_secret() -> None:
    assert secrets_in(b"migration/ai-trader/analytics/switchover trades users epoch 3 k7f2", "s3cret") == []
