"""Cases: differences that no rule may repair by itself, until a person has said what holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from cutover.control import audit, documents
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.control.reports import DifferenceKind
from cutover.errors import Refused


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
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None


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
) -> int:
    """Open a case, or count once more the one that is open for this key; its id."""
    async with control.transaction() as connection:
        row = await connection.fetchrow(
            "INSERT INTO control.conflict AS c (migration, service, table_name, key_json, kind, rule, detail)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb)"
            " ON CONFLICT (migration, service, table_name, key_json) WHERE resolved_at IS NULL DO UPDATE"
            " SET kind = excluded.kind, rule = excluded.rule, detail = excluded.detail, seen = c.seen + 1,"
            " last_at = clock_timestamp() RETURNING id, seen",
            migration,
            service,
            table,
            key_json,
            kind,
            rule,
            documents.dumps(detail or {}),
        )
        assert row is not None
        if row["seen"] == 1:
            # The key itself stays out of the log: it is the user's data.
            recorded = {"case": row["id"], "table": table, "kind": kind, "rule": rule}
            await audit.append(connection, Entry(actor, "conflict.opened", migration, service, recorded))
    case_id: int = row["id"]
    return case_id


async def resolve(control: Control, case_id: int, by: str, resolution: str) -> Case:
    """Close a case. Idempotent: the first resolution stays. Raises Refused where there is no such case."""
    if not by.strip():
        raise Refused("a case is resolved by a person: give a name")
    async with control.transaction() as connection:
        row = await connection.fetchrow(
            "UPDATE control.conflict SET resolved_at = clock_timestamp(), resolved_by = $2, resolution = $3"  # noqa: S608
            f" WHERE id = $1 AND resolved_at IS NULL RETURNING {_COLUMNS}",
            case_id,
            by.strip(),
            resolution,
        )
        if row is None:
            known = await connection.fetchrow(f"{_SELECT} WHERE id = $1", case_id)
            if known is None:
                raise Refused(f"there is no case {case_id}: `cutover status` lists the open ones")
            return _case(known)
        recorded = {"case": case_id, "table": row["table_name"], "resolution": resolution}
        await audit.append(
            connection, Entry(by.strip(), "conflict.resolved", row["migration"], row["service"], recorded)
        )
    return _case(row)


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


_COLUMNS = (
    "id, migration, service, table_name, key_json, kind, rule, detail::text AS detail, seen, opened_at, last_at,"
    " resolved_at, resolved_by, resolution"
)
_SELECT = f"SELECT {_COLUMNS} FROM control.conflict"  # noqa: S608 (constant text)


def _case(row: asyncpg.Record) -> Case:
    values = dict(row)
    values["table"] = values.pop("table_name")
    values["detail"] = documents.loads(values["detail"])
    return Case(**values)
