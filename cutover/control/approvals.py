"""Approvals: who let a gate open, on which plan and which evidence, and whether that still holds.

An approval counts once a person (name folded: case and blanks do not make two people), for one plan hash, until it
expires by the control database's clock, is voided, or anybody rejects the gate after it. One that is bound to
evidence holds for later evidence as well, unless that is worse (see `cutover.control.evidence`).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast

import asyncpg

from cutover.control import audit, evidence, plans
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.control.evidence import Evidence
from cutover.errors import GateClosed, Refused

Decision = Literal["approve", "reject"]


@dataclass(frozen=True)
class Approval:
    """One decision of one person, as recorded."""

    id: int
    migration: str
    service: str | None
    gate: str
    plan_hash: str
    decision: Decision
    by: str
    evidence_code: str | None
    note: str
    at: datetime
    #: By the control database's clock, at the moment it was read.
    age_seconds: float
    #: Why it no longer counts (rejected, another plan, a rollback); None while it stands.
    void_reason: str | None


def person(by: str) -> str:
    """The name by which an approver counts once. Raises Refused for an empty one."""
    folded = " ".join(by.split()).casefold()
    if not folded:
        raise Refused('an approval needs a name: {"by": "alice"}')
    return folded


async def record(
    control: Control,
    *,
    migration: str,
    service: str | None,
    gate: str,
    plan_hash: str,
    by: str,
    run_id: str,
    message_id: str,
    decision: Decision = "approve",
    evidence_code: str | None = None,
    note: str = "",
) -> Approval:
    """Record a decision; the same message of the same workflow run is recorded once, and answered the same.

    Without a code it binds itself to the gate's newest evidence, if there is any. A reject voids the gate's earlier
    approvals. Raises GateClosed for a code that stands for nothing, or for another gate or plan; PlanReplaced for an
    approval of a plan that the migration no longer goes by, which must not count if that plan comes back.
    """
    who = person(by)
    async with control.transaction() as connection:
        await _lock(connection, migration, service, gate)
        known = await connection.fetchrow(f"{_SELECT} WHERE a.run_id = $1 AND a.message_id = $2", run_id, message_id)
        if known is not None:
            return _approval(known)
        if decision == "approve":
            await plans.hold(connection, migration, plan_hash)
        seen = await _evidence(connection, migration, service, gate, plan_hash, evidence_code)
        if decision == "reject":
            await _void(connection, migration, service, gate, f"rejected by {by.strip()}")
        added = await connection.fetchval(
            "INSERT INTO control.approval"
            " (migration, service, gate, plan_hash, decision, by, person, evidence_id, note, run_id, message_id)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING id",
            migration,
            service or "",
            gate,
            plan_hash,
            decision,
            by.strip(),
            who,
            seen.id if seen else None,
            note,
            run_id,
            message_id,
        )
        row = await connection.fetchrow(f"{_SELECT} WHERE a.id = $1", added)
        assert row is not None
        detail = {"gate": gate, "plan_hash": plan_hash, "evidence": seen.code if seen else None, "note": note}
        await audit.append(connection, Entry(by.strip(), f"gate.{decision}", migration, service, detail))
    return _approval(row)


async def void(control: Control, *, migration: str, service: str | None, gate: str, reason: str, actor: str) -> int:
    """Nothing that the gate was approved with counts any more; how many approvals stood. Idempotent."""
    async with control.transaction() as connection:
        await _lock(connection, migration, service, gate)
        count = await _void(connection, migration, service, gate, reason)
        if count:
            detail = {"gate": gate, "approvals": count, "reason": reason}
            await audit.append(connection, Entry(actor, "gate.void", migration, service, detail))
    return count


async def valid(
    control: Control,
    migration: str,
    service: str | None,
    gate: str,
    plan_hash: str,
    evidence_code: str | None,
    expire: timedelta,
) -> list[Approval]:
    """Approvals of the gate that hold now, one a person (the newest), oldest first.

    With the code of the present evidence, only approvals that were bound to evidence count, and only while the
    present one is not worse. Raises GateClosed where that code stands for nothing.
    """
    async with control.connection() as connection:
        present = await _by_code(connection, migration, evidence_code) if evidence_code is not None else None
        rows = await connection.fetch(
            f"{_SELECT} WHERE a.migration = $1 AND a.service = $2 AND a.gate = $3 AND a.plan_hash = $4"
            " AND a.decision = 'approve' AND a.voided_at IS NULL AND a.at > clock_timestamp() - $5::interval"
            " ORDER BY a.id",
            migration,
            service or "",
            gate,
            plan_hash,
            expire,
        )
        standing: dict[str, Approval] = {}
        for row in rows:
            if present is None or await _holds(connection, row, present):
                standing[row["person"]] = _approval(row)
    return sorted(standing.values(), key=lambda approval: approval.id)


async def history(control: Control, migration: str, limit: int = 100) -> list[Approval]:
    """All decisions of a migration, newest first, voided ones included."""
    rows = await control.fetch(f"{_SELECT} WHERE a.migration = $1 ORDER BY a.id DESC LIMIT $2", migration, limit)
    return [_approval(row) for row in rows]


_SELECT = (
    "SELECT a.id, a.migration, a.service, a.gate, a.plan_hash, a.decision, a.by, a.person, a.evidence_id, a.note, a.at,"
    " extract(epoch FROM clock_timestamp() - a.at)::float8 AS age, a.void_reason, e.code"
    " FROM control.approval a LEFT JOIN control.evidence e ON e.id = a.evidence_id"
)


def _approval(row: asyncpg.Record) -> Approval:
    return Approval(
        id=row["id"],
        migration=row["migration"],
        service=row["service"] or None,
        gate=row["gate"],
        plan_hash=row["plan_hash"],
        decision=cast(Decision, row["decision"]),
        by=row["by"],
        evidence_code=row["code"],
        note=row["note"],
        at=row["at"],
        age_seconds=row["age"],
        void_reason=row["void_reason"],
    )


async def _lock(connection: Connection, migration: str, service: str | None, gate: str) -> None:
    """One decision of a gate after the other: a reject must see the approval that came just before it."""
    key = f"{migration}/{service or ''}/{gate}"
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7239100004))", key)


async def _void(connection: Connection, migration: str, service: str | None, gate: str, reason: str) -> int:
    count: int = await connection.fetchval(
        "WITH voided AS (UPDATE control.approval SET voided_at = clock_timestamp(), void_reason = $4"
        "  WHERE migration = $1 AND service = $2 AND gate = $3 AND decision = 'approve' AND voided_at IS NULL"
        "  RETURNING 1) SELECT count(*) FROM voided",
        migration,
        service or "",
        gate,
        reason,
    )
    return count


async def _evidence(
    connection: Connection, migration: str, service: str | None, gate: str, plan_hash: str, code: str | None
) -> Evidence | None:
    """What the decision is bound to: the evidence that was named, else the gate's newest under this plan."""
    if code is None:
        row = await connection.fetchrow(
            f"{evidence.SELECT} WHERE migration = $1 AND service = $2 AND gate = $3 AND plan_hash = $4"
            " ORDER BY id DESC LIMIT 1",
            migration,
            service or "",
            gate,
            plan_hash,
        )
        return evidence.evidence_from(row) if row else None
    seen = await _by_code(connection, migration, code)
    if (seen.service, seen.gate) != (service, gate):
        raise GateClosed(
            f"evidence {seen.code} was measured for gate {seen.gate!r} of {seen.service or migration}, not for {gate!r}"
        )
    if seen.plan_hash != plan_hash:
        raise GateClosed(
            f"evidence {seen.code} was measured under another plan: look at `cutover status` for the present code"
        )
    return seen


async def _by_code(connection: Connection, migration: str, code: str) -> Evidence:
    row = await connection.fetchrow(
        f"{evidence.SELECT} WHERE migration = $1 AND code = $2 ORDER BY id DESC LIMIT 1",
        migration,
        evidence.normal(code),
    )
    if row is None:
        raise GateClosed(f"no evidence {code[:16]!r} in {migration}: `cutover status` shows the present code")
    return evidence.evidence_from(row)


async def _holds(connection: Connection, approval: asyncpg.Record, present: Evidence) -> bool:
    """Whether an approval stands for the present evidence: bound to its code, or to one that was no better."""
    if approval["evidence_id"] is None:
        return False
    row = await connection.fetchrow(f"{evidence.SELECT} WHERE id = $1", approval["evidence_id"])
    if row is None:
        return False
    seen = evidence.evidence_from(row)
    if seen.code == present.code:
        return True
    return not (seen.ok and not present.ok) and not evidence.worse(seen.facts, present.facts)
