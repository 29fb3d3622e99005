"""The audit log: append-only, each row's hash over the one before it, in the transaction of what it records.

hash = sha256(previous hash || canonical JSON of the row). The canonical form is the text that jsonb itself
gives back (`control.audit_body`), so a detail hashes the same when it is read as when it was written.
The chain finds a changed, removed or re-ordered row; it cannot find that a superuser has written all of it anew,
so copy the newest hash to a place of its own (`head`) where that matters.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from opentelemetry import trace

from cutover.control import documents

Connection = asyncpg.Connection | PoolConnectionProxy

GENESIS = bytes(32)


@dataclass(frozen=True)
class Entry:
    """What is recorded: who did what to which migration (and service). Never row data, never a DSN."""

    actor: str
    action: str
    migration: str
    service: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditRow:
    """A row of the log as it is shown."""

    seq: int
    at: datetime
    actor: str
    action: str
    migration: str
    service: str | None
    detail: dict[str, Any]
    trace_id: str
    hash: str


def trace_id() -> str:
    """Hex id of the OpenTelemetry trace that is current here; empty outside of one."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


async def append(connection: Connection, entry: Entry) -> int:
    """Append a row in the caller's transaction; its number.

    Holds the log's lock until that transaction ends: append last.
    """
    seq: int = await connection.fetchval(
        "SELECT control.append_audit($1, $2, $3, $4, $5::jsonb, $6)",
        entry.actor,
        entry.action,
        entry.migration,
        entry.service or "",
        documents.dumps(entry.detail),
        trace_id(),
    )
    return seq


async def head(connection: Connection) -> tuple[int, str]:
    """Number and hex hash of the newest row: what to keep elsewhere, to compare the log with later."""
    row = await connection.fetchrow("SELECT seq, hash FROM control.audit_head")
    return (row["seq"], row["hash"].hex()) if row else (0, GENESIS.hex())


async def verify(connection: Connection) -> list[str]:
    """Problems of the chain, in words; an empty list says that it is whole. Not inside a transaction."""
    problems: list[str] = []
    last_seq, last_hash = 0, GENESIS
    # One snapshot for rows and head: rows that are appended meanwhile must not look like a tampered head.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        cursor = connection.cursor(
            "SELECT seq, prev_hash, hash,"
            " control.audit_body(seq, at, actor, action, migration, service, detail, trace_id) AS body"
            " FROM control.audit ORDER BY seq",
            prefetch=1000,
        )
        async for row in cursor:
            seq = row["seq"]
            if seq != last_seq + 1:
                problems.append(f"audit rows {last_seq + 1} to {seq - 1} are missing")
            if row["prev_hash"] != last_hash:
                problems.append(f"audit row {seq} does not follow row {last_seq}: its previous hash is another one")
            if hashlib.sha256(row["prev_hash"] + row["body"].encode()).digest() != row["hash"]:
                problems.append(f"audit row {seq} was changed: its content does not give its hash")
            last_seq, last_hash = seq, row["hash"]
        newest = await connection.fetchrow("SELECT seq, hash FROM control.audit_head")
    if newest is None:
        problems.append("the head of the audit log is missing")
    elif newest["seq"] > last_seq:
        problems.append(f"audit rows {last_seq + 1} to {newest['seq']} are missing at the end")
    elif newest["seq"] != last_seq or newest["hash"] != last_hash:
        problems.append(f"the head of the audit log (row {newest['seq']}) is not its newest row ({last_seq})")
    return problems


async def entries(connection: Connection, migration: str, limit: int = 100) -> list[AuditRow]:
    """The newest rows of a migration, newest first."""
    rows = await connection.fetch(
        "SELECT seq, at, actor, action, migration, service, detail, trace_id, hash FROM control.audit"
        " WHERE migration = $1 ORDER BY seq DESC LIMIT $2",
        migration,
        limit,
    )
    return [
        AuditRow(
            seq=row["seq"],
            at=row["at"],
            actor=row["actor"],
            action=row["action"],
            migration=row["migration"],
            service=row["service"] or None,
            detail=documents.loads(row["detail"]),
            trace_id=row["trace_id"],
            hash=row["hash"].hex(),
        )
        for row in rows
    ]
