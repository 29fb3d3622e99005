"""Cases: differences that no rule may repair by itself, until a person has said what holds.

A case is open until both sides agree. A decision is kept in it and takes effect with the next pass over its table:
`primary` lets the repair write the primary's row over the other side, if neither row has changed since; `mended` says
that a person has made the sides alike, which the pass then sees. A decision that does not fit what the next pass finds
is cleared, and the case waits for a person again. One that nobody has decided by its deadline is overdue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import asyncpg

from cutover.control import audit, documents
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.control.reports import Difference, DifferenceKind, TableReport
from cutover.errors import Refused
from cutover.postgres.databases import Direction

Decision = Literal["primary", "mended"]

#: Where the plan says nothing: until then a person should have decided.
DECIDE_WITHIN = timedelta(hours=24)


@dataclass(frozen=True)
class Case:
    """One key for a person to decide. `detail` holds hashes, times and counts, never row values."""

    id: int
    migration: str
    service: str
    table: str
    key_json: str
    kind: DifferenceKind
    #: The rule that did not suffice (`manual`, or one that would have changed the primary).
    rule: str
    detail: dict[str, Any]
    #: How often it was found again while open.
    seen: int
    opened_at: datetime
    last_at: datetime
    #: By when it should have been decided.
    due_at: datetime
    #: Past its deadline and not decided, by the control database's clock at the moment it was read.
    overdue: bool
    decision: Decision | None
    decided_by: str | None
    decided_at: datetime | None
    reason: str
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None

    def lets_primary_win(self, difference: Difference, direction: Direction) -> bool:
        """Whether the decision says so of exactly these two rows, seen from the primary of now."""
        seen = (self.detail.get("source_hash"), self.detail.get("target_hash"), self.detail.get("direction"))
        now = (difference.source_hash, difference.target_hash, direction)
        return self.decision == "primary" and seen == now


@dataclass(frozen=True)
class Waiting:
    """Open cases without a decision: how many, and the id of the newest."""

    count: int
    newest: int


@dataclass(frozen=True)
class Overdue:
    """Open cases of one table that nobody has decided by their deadline; the oldest first due, the newest last."""

    service: str
    table: str
    count: int
    oldest: int
    newest: int
    since: datetime


async def open_case(
    control: Control,
    *,
    migration: str,
    service: str,
    table: str,
    key_json: str,
    kind: DifferenceKind,
    rule: str,
    detail: Mapping[str, Any] | None = None,
    actor: str = "reconciliation",
    decide_within: timedelta = DECIDE_WITHIN,
) -> int:
    """Open a case, or count once more the one that is open for this key; its id. A decision that was not applied is
    cleared: the rows are not the ones that it was about, or they could not be written. The deadline counts from the
    opening, and follows a changed plan."""
    async with control.transaction() as connection:
        before = await connection.fetchrow(
            "SELECT decision, decided_by FROM control.conflict WHERE migration = $1 AND service = $2"
            " AND table_name = $3 AND key_json = $4 AND resolved_at IS NULL FOR UPDATE",
            migration,
            service,
            table,
            key_json,
        )
        row = await connection.fetchrow(
            "INSERT INTO control.conflict AS c (migration, service, table_name, key_json, kind, rule, detail, due_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, clock_timestamp() + $8::interval)"
            " ON CONFLICT (migration, service, table_name, key_json) WHERE resolved_at IS NULL DO UPDATE"
            " SET kind = excluded.kind, rule = excluded.rule, detail = excluded.detail, seen = c.seen + 1,"
            " decision = NULL, decided_by = NULL, decided_at = NULL, last_at = clock_timestamp(),"
            " due_at = c.opened_at + $8::interval RETURNING id, seen",
            migration,
            service,
            table,
            key_json,
            kind,
            rule,
            documents.dumps(detail or {}),
            decide_within,
        )
        assert row is not None
        # The key itself stays out of the log: it is the user's data.
        recorded = {"case": row["id"], "table": table, "kind": kind, "rule": rule}
        if row["seen"] == 1:
            await audit.append(connection, Entry(actor, "conflict.opened", migration, service, recorded))
        elif before is not None and before["decision"] is not None:
            recorded |= {"decision": before["decision"], "by": before["decided_by"]}
            await audit.append(connection, Entry(actor, "conflict.decision_cleared", migration, service, recorded))
    case_id: int = row["id"]
    return case_id


async def decide(control: Control, migration: str, case_id: int, by: str, decision: Decision, reason: str = "") -> Case:
    """Keep what a person decided; until it is applied it may be changed. Idempotent.

    Raises Refused where there is no such open case.
    """
    if not by.strip():
        raise Refused("a case is decided by a person: give a name")
    async with control.transaction() as connection:
        row = await connection.fetchrow(f"{_SELECT} WHERE migration = $1 AND id = $2 FOR UPDATE", migration, case_id)
        if row is None:
            raise _unknown(migration, case_id)
        if row["resolved_at"] is not None:
            raise Refused(f"case {case_id} is closed already: {row['resolution']} ({row['resolved_by']})")
        if (row["decision"], row["decided_by"]) == (decision, by.strip()):
            return _case(row)
        row = await connection.fetchrow(
            "UPDATE control.conflict SET decision = $2, decided_by = $3, decided_at = clock_timestamp(),"  # noqa: S608
            f" reason = $4 WHERE id = $1 RETURNING {_COLUMNS}",
            case_id,
            decision,
            by.strip(),
            documents.scrub(reason),
        )
        assert row is not None
        recorded = {"case": case_id, "table": row["table_name"], "decision": decision, "reason": reason}
        await audit.append(connection, Entry(by.strip(), "conflict.decided", migration, row["service"], recorded))
    return _case(row)


async def resolve(control: Control, case_id: int, by: str, resolution: str) -> Case:
    """Close a case. Idempotent: the first resolution stays. Raises Refused where there is no such case."""
    if not by.strip():
        raise Refused("a case is resolved by a person: give a name")
    async with control.transaction() as connection:
        closed = await _close(connection, "id = $3", by.strip(), resolution, case_id)
        if closed:
            return closed[0]
        known = await connection.fetchrow(f"{_SELECT} WHERE id = $1", case_id)
    if known is None:
        raise Refused(f"there is no case {case_id}: `cutover status` lists the open ones")
    return _case(known)


async def close_repaired(
    control: Control, migration: str, service: str, table: str, keys: Sequence[str], *, actor: str
) -> None:
    """The open cases of keys whose rows a repair has just made alike."""
    async with control.transaction() as connection:
        await _close(
            connection,
            "migration = $3 AND service = $4 AND table_name = $5 AND key_json = ANY ($6::text[])",
            actor,
            "the primary's row was written over the other side",
            migration,
            service,
            table,
            list(keys),
        )


async def close_settled(control: Control, report: TableReport, *, actor: str = "reconciliation") -> None:
    """The open cases of keys that a whole pass, begun after they were last seen, did not find different any more."""
    if not report.complete:
        return
    async with control.transaction() as connection:
        await _close(
            connection,
            "migration = $3 AND service = $4 AND table_name = $5 AND last_at < $6 AND NOT EXISTS (SELECT FROM"
            " control.difference d WHERE d.report_id = $7 AND d.table_name = $5 AND d.key_json = c.key_json)",
            actor,
            "both sides agree",
            report.migration,
            report.service,
            report.table,
            report.started_at,
            report.id,
        )


async def list_open(control: Control, migration: str, service: str | None = None, *, limit: int = 1000) -> list[Case]:
    """Open cases, oldest first."""
    rows = await control.fetch(
        f"{_SELECT} WHERE migration = $1 AND ($2::text IS NULL OR service = $2) AND resolved_at IS NULL"
        " ORDER BY id LIMIT $3",
        migration,
        service,
        limit,
    )
    return [_case(row) for row in rows]


async def get(control: Control, migration: str, case_id: int) -> Case:
    """One case, open or closed. Raises Refused where there is none."""
    row = await control.fetchrow(f"{_SELECT} WHERE migration = $1 AND id = $2", migration, case_id)
    if row is None:
        raise _unknown(migration, case_id)
    return _case(row)


async def decided(control: Control, migration: str, service: str, table: str) -> dict[str, Case]:
    """The open cases of a table that have a decision, by key."""
    rows = await control.fetch(
        f"{_SELECT} WHERE migration = $1 AND service = $2 AND table_name = $3 AND resolved_at IS NULL"
        " AND decision IS NOT NULL",
        migration,
        service,
        table,
    )
    return {row["key_json"]: _case(row) for row in rows}


async def count_open(control: Control, migration: str) -> dict[str, int]:
    """How many cases each service has open, decided ones included; services without one are left out."""
    rows = await control.fetch(
        "SELECT service, count(*) AS n FROM control.conflict WHERE migration = $1 AND resolved_at IS NULL"
        " GROUP BY service",
        migration,
    )
    return {row["service"]: row["n"] for row in rows}


async def waiting(control: Control, migration: str, service: str, table: str) -> Waiting | None:
    """The table's open cases that nobody has decided yet."""
    row = await control.fetchrow(
        "SELECT count(*) AS n, max(id) AS newest FROM control.conflict WHERE migration = $1 AND service = $2"
        " AND table_name = $3 AND resolved_at IS NULL AND decision IS NULL",
        migration,
        service,
        table,
    )
    return Waiting(row["n"], row["newest"]) if row and row["n"] else None


async def overdue(control: Control, migration: str, service: str | None = None) -> list[Overdue]:
    """What nobody has decided in time, table by table."""
    rows = await control.fetch(
        "SELECT service, table_name, count(*) AS n, min(id) AS oldest, max(id) AS newest, min(due_at) AS since"  # noqa: S608 (constant text)
        " FROM control.conflict WHERE migration = $1 AND ($2::text IS NULL OR service = $2)"
        f" AND {_OVERDUE} GROUP BY service, table_name ORDER BY service, table_name",
        migration,
        service,
    )
    return [
        Overdue(row["service"], row["table_name"], row["n"], row["oldest"], row["newest"], row["since"]) for row in rows
    ]


async def _close(connection: Connection, which: str, by: str, resolution: str, *args: object) -> list[Case]:
    """Close the open cases that a (constant) condition picks, with an audit row each; one who decided is named."""
    rows = await connection.fetch(
        "UPDATE control.conflict c SET resolved_at = clock_timestamp(), resolved_by = coalesce(decided_by, $1),"  # noqa: S608
        f" resolution = $2 WHERE resolved_at IS NULL AND {which} RETURNING {_COLUMNS}",
        by,
        resolution,
        *args,
    )
    for row in rows:
        recorded = {"case": row["id"], "table": row["table_name"], "resolution": resolution, "by": row["resolved_by"]}
        await audit.append(connection, Entry(by, "conflict.resolved", row["migration"], row["service"], recorded))
    return [_case(row) for row in rows]


def _unknown(migration: str, case_id: int) -> Refused:
    return Refused(f"{migration} has no case {case_id}; list the open ones with: cutover conflicts list {migration}")


_OVERDUE = "resolved_at IS NULL AND decision IS NULL AND due_at < clock_timestamp()"
_COLUMNS = (
    "id, migration, service, table_name, key_json, kind, rule, detail::text AS detail, seen, opened_at, last_at,"
    f" due_at, {_OVERDUE} AS overdue, decision, decided_by, decided_at, reason, resolved_at, resolved_by, resolution"
)
_SELECT = f"SELECT {_COLUMNS} FROM control.conflict"  # noqa: S608 (constant text)


def _case(row: asyncpg.Record) -> Case:
    values = dict(row)
    values["table"] = values.pop("table_name")
    values["detail"] = documents.loads(values["detail"])
    return Case(**values)
