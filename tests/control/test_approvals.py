"""Evidence and approvals: bound to what was seen, distinct by person, expiring, voided by what is worse."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.control import approvals, audit, evidence
from cutover.control.approvals import Approval
from cutover.control.database import Control
from cutover.control.evidence import Evidence
from cutover.errors import GateClosed, Refused

M, S, GATE = "ai-trader", "trading_engine", "write"
HASH, OTHER = "a" * 64, "b" * 64
DAY = timedelta(days=1)


def facts(differences: float = 0, lag: float | None = 0.1, **more: Any) -> dict[str, Any]:
    return {"measures": {"differences": differences, "lag_seconds": lag}, **more}


async def measure(control: Control, values: dict[str, Any], *, ok: bool = True, plan_hash: str = HASH) -> str:
    return await evidence.record(control, Evidence(M, S, GATE, plan_hash, values, ok))


async def approve(control: Control, by: str, message: str, code: str | None = None, **more: Any) -> Approval:
    settings: dict[str, Any] = {"gate": GATE, "plan_hash": HASH, "run_id": "run-1", **more}
    return await approvals.record(
        control, migration=M, service=S, by=by, message_id=message, evidence_code=code, **settings
    )


async def standing(
    control: Control, code: str | None = None, expire: timedelta = DAY, plan_hash: str = HASH
) -> list[str]:
    return [one.by for one in await approvals.valid(control, M, S, GATE, plan_hash, code, expire)]


async def test_equal_facts_have_one_code_whatever_the_time(control: Control) -> None:
    code = await measure(control, facts(measured_at="2026-01-01T00:00:00Z"))
    assert await measure(control, facts(lag=0.4, measured_at="2026-01-02T00:00:00Z")) == code
    assert 4 <= len(code) <= 6
    assert set(code) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert await measure(control, facts(differences=1)) != code
    assert await measure(control, facts(), plan_hash=OTHER) != code
    assert await measure(control, facts(), ok=False) != code


async def test_a_code_is_longer_where_another_measurement_has_its_beginning(control: Control) -> None:
    one = Evidence(M, S, GATE, HASH, facts(), True)
    full = evidence.spelled(evidence.digest(one))
    await control.execute(
        "INSERT INTO control.evidence (migration, gate, plan_hash, digest, code, facts, ok)"
        " VALUES ($1, 'other', $2, 'x', $3, '{}', true)",
        M,
        HASH,
        full[:4],
    )
    assert await evidence.record(control, one) == full[:5]


async def test_evidence_is_read_back_with_its_age_by_the_servers_clock(control: Control) -> None:
    code = await measure(control, facts())
    await control.execute("UPDATE control.evidence SET at = at - interval '90 s'")
    found = await evidence.get(control, M, f" {code.upper()} ")
    assert found is not None
    assert (found.facts, found.ok, found.gate, found.service) == (facts(), True, GATE, S)
    assert 90 <= found.age_seconds < 150
    newest = await evidence.latest(control, M, S, GATE)
    assert newest is not None
    assert newest.code == code
    assert await evidence.latest(control, M, None, GATE) is None
    assert await evidence.get(control, M, "zzzz") is None


@pytest.mark.parametrize(
    ("old", "new", "is_worse"),
    [
        (facts(0), facts(0), False),
        (facts(0), facts(1), True),
        (facts(5), facts(4), False),
        (facts(lag=0.1), facts(lag=0.55), False),  # within half a second
        (facts(lag=0.1), facts(lag=0.7), True),
        (facts(lag=100), facts(lag=119), False),  # within 20 %
        (facts(lag=100), facts(lag=121), True),
        (facts(lag=0.1), facts(lag=None), True),  # a measure that cannot be read counts against
        (facts(lag=None), facts(lag=3), False),
        (facts(), {"measures": {"differences": 0}}, True),
        (facts(), {}, True),
        ({}, facts(0, 0.1), False),
        ({}, facts(1, 0.1), True),
        ({"measures": {"rate": 0.0}}, {"measures": {"rate": 1e-9}}, True),
        ({"measures": {"pause_ms": 10}}, {"measures": {"pause_ms": 55}}, False),
    ],
)
def test_worse_means_any_measure_above_its_tolerance(old: dict[str, Any], new: dict[str, Any], is_worse: bool) -> None:
    assert evidence.worse(old, new) is is_worse


@given(st.dictionaries(st.sampled_from(["n", "a_seconds", "b_ms", "c_bytes"]), st.floats(0, 1e12)))
def test_nothing_is_worse_than_itself(measures: dict[str, float]) -> None:
    assert not evidence.worse({"measures": measures}, {"measures": measures})


async def test_one_person_counts_once_however_the_name_is_written(control: Control) -> None:
    for n, name in enumerate(["alice", "Alice ", "  ALICE", "bob"]):
        await approve(control, name, str(n))
    assert await standing(control) == ["ALICE", "bob"]
    with pytest.raises(Refused, match="needs a name"):
        await approve(control, "  ", "9")


async def test_the_same_message_is_recorded_once(control: Control) -> None:
    first = await approve(control, "alice", "1")
    assert (await approve(control, "alice", "1")).id == first.id
    assert (await approve(control, "alice", "1", run_id="run-2")).id != first.id
    assert await control.fetchval("SELECT count(*) FROM control.approval") == 2


async def test_approvals_expire_by_the_servers_clock(control: Control) -> None:
    await approve(control, "alice", "1")
    await approve(control, "bob", "2")
    await control.execute("UPDATE control.approval SET at = at - interval '2 h' WHERE by = 'alice'")
    assert await standing(control, expire=timedelta(hours=1)) == ["bob"]
    assert await standing(control, expire=timedelta(hours=3)) == ["alice", "bob"]


async def test_approvals_of_another_plan_gate_or_service_do_not_count(control: Control) -> None:
    await approve(control, "alice", "1", plan_hash=OTHER)
    await approve(control, "bob", "2", gate="cleanup")
    assert await standing(control) == []
    assert await standing(control, plan_hash=OTHER) == ["alice"]
    assert await approvals.valid(control, M, "analytics", GATE, HASH, None, DAY) == []
    assert await approvals.valid(control, M, None, GATE, HASH, None, DAY) == []


async def test_a_reject_voids_what_was_approved_before_it_and_not_what_comes_after(control: Control) -> None:
    await approve(control, "alice", "1")
    await approve(control, "carol", "2", decision="reject")
    assert await standing(control) == []
    await approve(control, "alice", "3")
    await approve(control, "carol", "2", decision="reject")
    assert await standing(control) == ["alice"]
    first = (await approvals.history(control, M))[-1]
    assert (first.by, first.void_reason) == ("alice", "rejected by carol")


async def test_voided_approvals_count_no_more_and_later_ones_do(control: Control) -> None:
    await approve(control, "alice", "1")
    await approve(control, "bob", "2")
    voiding = {"migration": M, "service": S, "gate": GATE, "reason": "analytics was rolled back", "actor": "test"}
    assert await approvals.void(control, **voiding) == 2
    assert await approvals.void(control, **voiding) == 0
    assert await standing(control) == []
    assert (await approvals.history(control, M))[0].void_reason == "analytics was rolled back"
    await approve(control, "bob", "3")
    assert await standing(control) == ["bob"]


async def test_an_approval_holds_for_later_evidence_that_is_not_worse(control: Control) -> None:
    seen = await measure(control, facts(lag=0.1))
    await approve(control, "alice", "1", seen.upper())
    better = await measure(control, facts(lag=0.1, rows=12))
    worse = await measure(control, facts(differences=1))
    failed = await measure(control, facts(lag=0.1), ok=False)
    assert await standing(control, seen) == ["alice"]
    assert await standing(control, better) == ["alice"]
    assert await standing(control, worse) == []
    assert await standing(control, failed) == []


async def test_a_bare_approval_binds_itself_to_what_is_current_on_arrival(control: Control) -> None:
    unbound = await approve(control, "alice", "1")
    current = await measure(control, facts())
    bound = await approve(control, "bob", "2")
    assert (unbound.evidence_code, bound.evidence_code) == (None, current)
    assert await standing(control, current) == ["bob"]
    assert await standing(control, None) == ["alice", "bob"]


async def test_a_code_of_nothing_or_of_another_gate_or_plan_is_refused(control: Control) -> None:
    with pytest.raises(GateClosed, match="no evidence 'zzzz'"):
        await approve(control, "alice", "1", "zzzz")
    with pytest.raises(GateClosed, match="no evidence"):
        await standing(control, "zzzz")
    code = await measure(control, facts())
    with pytest.raises(GateClosed, match="measured for gate 'write'"):
        await approve(control, "alice", "2", code, gate="cleanup")
    with pytest.raises(GateClosed, match="another plan"):
        await approve(control, "alice", "3", code, plan_hash=OTHER)
    assert await control.fetchval("SELECT count(*) FROM control.approval") == 0


async def test_every_decision_and_measurement_is_audited(control: Control) -> None:
    code = await measure(control, facts())
    await approve(control, "alice", "1", code)
    async with control.connection() as connection:
        assert await audit.verify(connection) == []
        rows = await audit.entries(connection, M)
    assert [(row.actor, row.action, row.service) for row in rows] == [
        ("alice", "gate.approve", S),
        ("gate", "evidence", S),
    ]
    assert rows[0].detail["evidence"] == code
