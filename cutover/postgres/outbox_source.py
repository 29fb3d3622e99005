"""The outbox at its source: intents read together with the rows that they name, in one snapshot.

State transfer: an intent only names a key. The row travels as it is in the snapshot in which its intents were seen,
under the highest version among them. A key's versions rise in the order of its commits, so that image shows every
change up to its version; what comes after has an intent of its own. It may show more than its version says (intents
beyond the batch's limit), which does no harm: those come again.

Intents are deleted by their own number once their keys are applied. No "greater than the last one seen": versions are
drawn before the commit, so a smaller one may appear later.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg

from cutover.errors import Conflict
from cutover.postgres import epoch
from cutover.postgres.databases import FAILURES
from cutover.postgres.identifiers import quote_literal
from cutover.postgres.keys import Key
from cutover.postgres.outbox_schema import SHARDS, WAKE, outbox_table
from cutover.postgres.outbox_tables import Flow, require_definition
from cutover.postgres.outbox_versions import version_sequence

#: Images of a table that are read at once: first so many, for nobody knows their size, and then as many as go into the
#: batch by the mean of those before; each time at most so many times more, for the next ones may be larger.
_FIRST_SLICE, _SLICE, _GROWTH = 8, 250, 8
#: Bytes of images after which a batch is full.
BATCH_BYTES = 4 << 20
#: The `op` of a marker's intent, which names no row.
MARKER = "M"


@dataclass(frozen=True)
class Change:
    """One key's state: the image of its row (None: there is none) and the version up to which that is true."""

    flow: str
    key: Key
    shard: int
    version: int
    image: str | None
    #: The intents that are done with once this is applied.
    intents: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """Changes of one snapshot. `full`: more intents wait."""

    changes: list[Change]
    markers: list[str] = field(default_factory=list)
    #: Intents that name no row.
    other: list[tuple[int, int]] = field(default_factory=list)
    full: bool = False

    @property
    def shards(self) -> set[int]:
        return {change.shard for change in self.changes} | {shard for shard, _ in self.other}


def _held(service_parameter: str, intent: str) -> str:
    return (
        f"EXISTS (SELECT FROM cutover.quarantine q WHERE q.service = {service_parameter} AND q.tbl = {intent}.tbl "
        f"AND q.key = {intent}.key AND q.state = 'held')"
    )


async def waiting(connection: asyncpg.Connection, service: str, shards: Sequence[int]) -> bool:
    """Whether there is an intent to carry over in these shards."""
    return bool(
        await connection.fetchval(
            f"SELECT EXISTS (SELECT FROM unnest($1::int2[]) AS s(shard) JOIN {outbox_table(service).sql} i "
            f"USING (shard) WHERE NOT {_held('$2', 'i')})",
            shards,
            service,
        )
    )


async def read(
    connection: asyncpg.Connection,
    service: str,
    flows: Mapping[str, Flow],
    known: str,
    shards: Sequence[int],
    limit: int,
) -> Batch:
    """The oldest intents of each shard, at most `limit` of them, with the rows that they name.

    `known` stands for the tables' definition for which the flows were made. Raises Redefined where that has changed.
    """
    per_shard = max(limit // 4, -(-limit // max(len(shards), 1)))
    sql = (
        "SELECT o.shard, o.version, o.op, o.tbl, o.key FROM unnest($1::int2[]) AS s(shard) CROSS JOIN LATERAL ("
        f"SELECT i.* FROM {outbox_table(service).sql} i WHERE i.shard = s.shard AND NOT {_held('$2', 'i')} "
        "ORDER BY i.version LIMIT $3) AS o LIMIT $4"
    )
    return await _read(connection, flows, known, sql, [shards, service, per_shard, limit], limit)


async def read_keys(
    connection: asyncpg.Connection,
    service: str,
    flows: Mapping[str, Flow],
    known: str,
    keys: Sequence[tuple[str, Key]],
) -> Batch:
    """All intents of these keys (table's name and key), of whatever shard, with the rows that they name."""
    # keys travel one by one: an array of arrays would have to be rectangular
    sql = (
        f"SELECT i.shard, i.version, i.op, i.tbl, i.key FROM {outbox_table(service).sql} i "
        "JOIN pg_catalog.jsonb_array_elements($1::text::jsonb) AS w(k) ON i.tbl = w.k ->> 0 "
        "AND i.key = ARRAY(SELECT pg_catalog.jsonb_array_elements_text(w.k -> 1)) "
        f"WHERE i.op <> '{MARKER}' AND NOT {_held('$2', 'i')}"
    )
    return await _read(connection, flows, known, sql, [_json(keys), service], 0)


def _json(keys: Sequence[tuple[str, Key]]) -> str:
    return json.dumps([[name, list(key)] for name, key in keys], ensure_ascii=False)


async def _read(
    connection: asyncpg.Connection,
    flows: Mapping[str, Flow],
    known: str,
    sql: str,
    arguments: Sequence[object],
    limit: int,
) -> Batch:
    # The locks come before the snapshot: a table that is rewritten reads as empty in an older one (manual, 13.6).
    tables = ", ".join(flow.table.sql for flow in flows.values())
    await connection.execute(
        f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {tables} IN ACCESS SHARE MODE"
    )
    try:
        await require_definition(connection, [flow.table for flow in flows.values()], known)
        position = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        rows = await connection.fetch(sql, *arguments)
        batch = await _with_images(connection, flows, rows, full=bool(limit) and len(rows) >= limit)
    except BaseException:
        with suppress(*FAILURES):
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")
    if rows and not await connection.fetchval("SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn", position):
        # what a crash of the source could take back must not be at the other side
        await epoch.make_durable(connection)
    return batch


async def _with_images(
    connection: asyncpg.Connection, flows: Mapping[str, Flow], rows: Sequence[asyncpg.Record], *, full: bool
) -> Batch:
    wanted: dict[tuple[str, Key], list[tuple[int, int]]] = {}
    markers: list[str] = []
    other: list[tuple[int, int]] = []
    for shard, version, op, name, key in rows:
        if op == MARKER.encode():
            markers.append(key[0])
            other.append((shard, version))
            continue
        if name not in flows:
            raise Conflict(f"the outbox holds changes of table {name!r}, which the plan does not name any more")
        wanted.setdefault((name, tuple(key)), []).append((shard, version))
    by_table: dict[str, list[Key]] = {}
    for name, key in wanted:
        by_table.setdefault(name, []).append(key)
    changes: list[Change] = []
    size = 0
    for name, keys in by_table.items():
        start, slice_, before = 0, _FIRST_SLICE, size
        while start < len(keys):
            if size > BATCH_BYTES:
                full = True
                break
            part = keys[start : start + slice_]
            images = await _images(connection, flows[name], part)
            for place, key in enumerate(part):
                intents = wanted[name, key]
                shard, version = max(intents, key=_version)
                image = images.get(place)
                size += len(image) if image else 0
                changes.append(Change(name, key, shard, version, image, tuple(intents)))
            start += len(part)
            room = (BATCH_BYTES - size) * start // max(size - before, 1)
            slice_ = max(1, min(room, slice_ * _GROWTH, _SLICE))
    return Batch(changes, markers, other, full)


def _version(intent: tuple[int, int]) -> int:
    return intent[1]


async def _images(connection: asyncpg.Connection, flow: Flow, keys: Sequence[Key]) -> dict[int, str]:
    """Images by the place of their key."""
    rows = await connection.fetch(
        f"SELECT v.n::int4 - 1, {flow.image} FROM {flow.source.by_key()}{flow.spelled(flow.source)}",
        *([key[n] for key in keys] for n in range(flow.width)),
    )
    return {row[0]: row[1] for row in rows}


async def forget(connection: asyncpg.Connection, service: str, intents: Sequence[tuple[int, int]]) -> None:
    """Deletes intents whose changes are durable at the sink.

    Asynchronously: an intent that a crash brings back is carried over once more, to no effect.
    """
    if not intents:
        return
    async with connection.transaction():
        await connection.execute("SET LOCAL synchronous_commit = off")
        await connection.execute(
            f"DELETE FROM {outbox_table(service).sql} AS o USING unnest($1::int2[], $2::int8[]) AS d(shard, version) "
            "WHERE o.shard = d.shard AND o.version = d.version",
            [shard for shard, _ in intents],
            [version for _, version in intents],
        )


async def any_waits(connection: asyncpg.Connection, service: str, keys: Sequence[tuple[str, Key]]) -> bool:
    """Whether an intent of one of these keys (table's name and key) is still to be carried over."""
    return bool(
        await connection.fetchval(
            f"SELECT EXISTS (SELECT FROM {outbox_table(service).sql} i "
            "JOIN pg_catalog.jsonb_array_elements($1::text::jsonb) AS w(k) ON i.tbl = w.k ->> 0 "
            "AND i.key = ARRAY(SELECT pg_catalog.jsonb_array_elements_text(w.k -> 1)))",
            _json(keys),
        )
    )


async def put_marker(connection: asyncpg.Connection, service: str, marker: str) -> str:
    """A marker's intent, and the snapshot in which it and all that committed before are seen.

    The intent makes a relay write at the sink, which proves that one is at work and may do so.
    """
    outbox = outbox_table(service)
    name = quote_literal(marker)
    # several statements in one message are one transaction (manual, 53.2.2.1 "Multiple Statements in a Simple Query")
    await connection.execute(
        "SET LOCAL synchronous_commit = on; "
        f"INSERT INTO {outbox.sql} (shard, version, op, tbl, key) "
        f"SELECT (hashtextextended({name}, 0) & {SHARDS - 1})::int2, "
        f"nextval({quote_literal(version_sequence(service).sql)}::regclass), '{MARKER}', '', ARRAY[{name}]; "
        f"SELECT pg_notify({quote_literal(WAKE)}, {quote_literal(service)})"
    )
    return str(await connection.fetchval("SELECT pg_current_snapshot()::text"))


async def snapshot(connection: asyncpg.Connection) -> str:
    """What has been committed by now, for `undone`."""
    return str(await connection.fetchval("SELECT pg_current_snapshot()::text"))


async def undone(connection: asyncpg.Connection, service: str, snapshot: str) -> bool:
    """Whether an intent that was visible in that snapshot is still to be carried over."""
    return bool(
        await connection.fetchval(
            f"SELECT EXISTS (SELECT FROM {outbox_table(service).sql} "
            "WHERE pg_visible_in_snapshot(xid, $1::text::pg_snapshot))",
            snapshot,
        )
    )


@dataclass(frozen=True)
class Depth:
    """What is still to be carried over: intents, their bytes, seconds since the oldest was written."""

    intents: int
    bytes: int
    oldest_seconds: float


async def depth(connection: asyncpg.Connection, service: str) -> Depth:
    """Held keys' intents count in. Reads the whole outbox, which is short while the relays keep up."""
    [row] = await connection.fetch(
        "SELECT count(*) AS intents, coalesce(sum(pg_column_size(o.*)), 0)::int8 AS bytes, "
        "coalesce(extract(epoch FROM clock_timestamp() - min(o.at)), 0)::float8 AS oldest_seconds "
        f"FROM {outbox_table(service).sql} AS o"
    )
    return Depth(**row)


async def least_versions(connection: asyncpg.Connection, service: str, shards: Sequence[int]) -> dict[int, int]:
    """The least version that is still to be carried over in each shard; nothing for shards where none is."""
    rows = await connection.fetch(
        "SELECT s.shard, (SELECT i.version FROM "
        f"{outbox_table(service).sql} i WHERE i.shard = s.shard ORDER BY i.version LIMIT 1) AS version "
        "FROM unnest($1::int2[]) AS s(shard)",
        shards,
    )
    return {row["shard"]: row["version"] for row in rows if row["version"] is not None}
