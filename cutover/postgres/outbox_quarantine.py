"""Keys whose changes the sink refuses by itself (a value, a constraint): held back, with all later changes behind.

Held at the source, beside the intents, so that reading the outbox passes them over and deciding on a key is one
transaction with its intents. A reason names the kind of error and the constraint, never a value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from cutover.errors import Refused
from cutover.postgres.databases import Direction
from cutover.postgres.keys import Key
from cutover.postgres.outbox_schema import outbox_table
from cutover.postgres.outbox_source import Change


@dataclass(frozen=True)
class Held:
    """A key that is held back; `waiting` are its intents that are still to be carried over."""

    id: int
    table: str
    key: Key
    sqlstate: str
    reason: str
    since: datetime
    waiting: int


async def hold(
    connection: asyncpg.Connection, service: str, direction: Direction, change: Change, sqlstate: str, reason: str
) -> None:
    """Holds the change's key from here on. Run again, it changes nothing.

    Where the intent does not wait any more nothing is held: another relay has carried it meanwhile, and nobody would
    look for the key. Until the key is held the intent cannot go.
    """
    await connection.execute(
        "INSERT INTO cutover.quarantine (service, direction, tbl, key, version, sqlstate, reason) "
        f"SELECT $1, $2, i.tbl, i.key, i.version, $7, $8 FROM {outbox_table(service).sql} i "
        "WHERE i.shard = $3 AND i.version = $4 AND i.tbl = $5 AND i.key = $6 FOR KEY SHARE "
        "ON CONFLICT (service, tbl, key) WHERE state = 'held' DO NOTHING",
        service,
        direction,
        change.shard,
        change.version,
        change.flow,
        list(change.key),
        sqlstate,
        reason,
    )


async def held(connection: asyncpg.Connection, service: str) -> list[Held]:
    """The held keys, oldest first."""
    rows = await connection.fetch(
        "SELECT q.id, q.tbl, q.key, q.sqlstate, q.reason, q.since, "
        f"(SELECT count(*) FROM {outbox_table(service).sql} i WHERE i.tbl = q.tbl AND i.key = q.key) AS waiting "
        "FROM cutover.quarantine q WHERE q.service = $1 AND q.state = 'held' ORDER BY q.id",
        service,
    )
    return [
        Held(r["id"], r["tbl"], tuple(r["key"]), r["sqlstate"], r["reason"], r["since"], r["waiting"]) for r in rows
    ]


async def count(connection: asyncpg.Connection, service: str) -> dict[str, int]:
    """How many keys of each table are held."""
    rows = await connection.fetch(
        "SELECT tbl, count(*) AS keys FROM cutover.quarantine WHERE service = $1 AND state = 'held' GROUP BY 1 "
        "ORDER BY 1",
        service,
    )
    return {row["tbl"]: row["keys"] for row in rows}


async def retry(connection: asyncpg.Connection, service: str, ids: Sequence[int], *, by: str, why: str) -> None:
    """Lets the relay try these keys again, as they are by now. Raises Refused for one that is not held."""
    async with connection.transaction():
        await _decide(connection, service, ids, "retried", by, why)


async def skip(connection: asyncpg.Connection, service: str, ids: Sequence[int], *, by: str, why: str) -> int:
    """Gives up what these keys wait for; how many intents. Later changes are carried over again.

    Until one comes the two sides differ in these keys, which reconciliation shows. Raises Refused as `retry`.
    """
    async with connection.transaction():
        decided = await _decide(connection, service, ids, "skipped", by, why)
        status = await connection.execute(
            f"DELETE FROM {outbox_table(service).sql} i USING cutover.quarantine q "
            "WHERE q.id = ANY ($1::int8[]) AND i.tbl = q.tbl AND i.key = q.key",
            decided,
        )
    return int(status.rpartition(" ")[2])


async def _decide(
    connection: asyncpg.Connection, service: str, ids: Sequence[int], state: str, by: str, why: str
) -> list[int]:
    if not by.strip() or not why.strip():
        raise Refused("say who decides on held keys, and why")
    rows = await connection.fetch(
        "UPDATE cutover.quarantine SET state = $3, by = $4, why = $5, decided_at = clock_timestamp() "
        "WHERE service = $1 AND id = ANY ($2::int8[]) AND state = 'held' RETURNING id",
        service,
        list(ids),
        state,
        by,
        why,
    )
    found = sorted(row["id"] for row in rows)
    if absent := sorted(set(ids) - set(found)):
        raise Refused(f"{service}: no held key has number {', '.join(map(str, absent))}; list them first")
    return found
