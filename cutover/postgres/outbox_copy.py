"""The first copy of the outbox stream: ranges of a table, each read in one snapshot and written where nothing is yet.

It is safe because capture is on before the first range is read, so every row that changes after its range's snapshot
has an intent, and what intents bring wins:

* A row that is there already stays: an apply brought it, or an earlier attempt of the same range.
* A copied row that a change had made old is written over when the change's intent is applied.
* A row whose unique value another one holds is passed over: as a snapshot has each value once, one of the two has
  changed since, and an intent brings the truth.
* A row that was deleted after the snapshot, and whose delete was applied before the copy: the copy brings it back. Its
  tombstone says so. Once a table's ranges are in, open applies are waited for (one of them may have deleted without
  seeing the copied row) and every row that has a tombstone is deleted. Until then tombstones are not pruned.

A range is locked in `backfill_chunk` while it is copied and noted as done in the transaction that brings its rows: a
killed copy leaves it as it was, and no late one can follow. That transaction first compares the checksum of what it has
written with that of what was read (`outbox_checksum`); rows that it passed over are left out of both.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg

from cutover.errors import Conflict
from cutover.postgres import catalog, epoch, outbox_checksum, outbox_sink, uniques
from cutover.postgres.compare import Hashed
from cutover.postgres.databases import Direction
from cutover.postgres.identifiers import columns_sql, quote
from cutover.postgres.keys import Key
from cutover.postgres.outbox_tables import Flow
from cutover.postgres.sampling import Bounds, highest, parts

#: Bytes of a range, about: it is held in memory once.
CHUNK_BYTES = 16 << 20
_MOST_CHUNKS = 10_000
#: Types up to this OID are the server's own: their binary form is the same everywhere.
_BUILT_IN = 10_000
_THIS = "service = $1 AND direction = $2 AND tbl = $3 AND chunk = $4"
_STAGED = "pg_temp.cutover_copy"


async def plan(
    source: asyncpg.Connection, sink: asyncpg.Connection, service: str, direction: Direction, flows: Sequence[Flow]
) -> None:
    """Cuts the tables into ranges, unless that was done before.

    Raises Conflict where a table of the sink holds rows already: nobody can say whose they are.
    """
    if await sink.fetchval(
        "SELECT EXISTS (SELECT FROM cutover.backfill_table WHERE service = $1 AND direction = $2)", service, direction
    ):
        return
    occupied = await catalog.with_rows(sink, [flow.table for flow in flows])
    if occupied:
        raise Conflict(
            f"{service}: the target of the {direction} stream holds rows in {', '.join(map(str, occupied))}; "
            "empty these tables before the first copy"
        )
    cut = []
    for flow in flows:
        info = await catalog.table(source, flow.table)
        count = min(_MOST_CHUNKS, max(1, info.bytes // CHUNK_BYTES))
        cut.append((flow, info.estimated_rows, await _ranges(source, flow, count)))
    async with sink.transaction():
        for flow, rows, ranges in cut:
            await sink.execute(
                "INSERT INTO cutover.backfill_table (service, direction, tbl, estimated) VALUES ($1, $2, $3, $4)",
                service,
                direction,
                flow.name,
                rows,
            )
            await sink.executemany(
                "INSERT INTO cutover.backfill_chunk (service, direction, tbl, chunk, low, high) "
                "VALUES ($1, $2, $3, $4, $5, $6)",
                [(service, direction, flow.name, number, low, high) for number, (low, high) in enumerate(ranges)],
            )


async def _ranges(source: asyncpg.Connection, flow: Flow, count: int) -> list[Bounds]:
    """About `count` ranges that hold every key there is; none for an empty table.

    Not every key there can be: whoever wrote before capture was on has ended, so a key that comes now has an intent.
    The last range would hold all that came until it is read.
    """
    last = await highest(source, flow.source)
    if last is None:
        return []
    ranges = await parts(source, flow.source, count)
    return [*ranges[:-1], (ranges[-1][0], last)]


@dataclass(frozen=True)
class Copied:
    """One range that was copied."""

    table: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Job:
    """The first copy of a direction, for one pair of sessions."""

    service: str
    direction: Direction
    flows: Mapping[str, Flow]
    #: See `outbox_checksum.row_hashes`.
    row_hashes: Mapping[str, str]
    #: Whose turn it is to write a table, of the sessions of one process. Rows of one range after the other reach the
    #: end of the key's index, rows of two at once split its pages in the middle; the others read and compare meanwhile.
    turns: Mapping[str, asyncio.Lock]


async def copy_next(source: asyncpg.Connection, sink: asyncpg.Connection, job: Job) -> Copied | None:
    """Copies one range that nobody else works on; None where none is left to begin.

    `sink` is a session that may write behind the fence. Raises GateClosed where the target does not hold what was read.
    """
    async with sink.transaction():
        chunk = await sink.fetchrow(
            "SELECT tbl, chunk, low, high FROM cutover.backfill_chunk WHERE service = $1 AND direction = $2 "
            "AND NOT done ORDER BY tbl, chunk LIMIT 1 FOR UPDATE SKIP LOCKED",
            job.service,
            job.direction,
        )
        if chunk is None:
            return None
        low, high = (tuple(bound) if bound else None for bound in (chunk["low"], chunk["high"]))
        part = Range(job, job.flows[chunk["tbl"]], chunk["chunk"], low, high)
        data, read = await _read(source, part)
        written = await _write(sink, part, data, read)
        size = sum(map(len, data))
        await sink.execute(
            "UPDATE cutover.backfill_chunk SET rows = $5, bytes = $6, passed_over = $7, checksum = $8::text::numeric "
            f"WHERE {_THIS}",
            *part.names,
            written.rows,
            size,
            read.rows - written.rows,
            str(written.total),
        )
    return Copied(part.flow.name, written.rows, size)


@dataclass(frozen=True)
class Range:
    """Rows of a table with `low < key <= high`."""

    job: Job
    flow: Flow
    number: int
    low: Key | None
    high: Key | None

    @property
    def names(self) -> tuple[str, Direction, str, int]:
        return self.job.service, self.job.direction, self.flow.name, self.number

    @property
    def row_hash(self) -> str:
        return self.job.row_hashes[self.flow.name]

    @property
    def binary(self) -> bool:
        types = {c.name: c.column.type_oid for c in self.flow.source.columns}
        return all(types[name] < _BUILT_IN for name in self.flow.source.stored)


async def _read(source: asyncpg.Connection, part: Range) -> tuple[list[bytes], Hashed]:
    """A range's rows in COPY format and their checksum, of one snapshot that a crash of the source cannot take back."""
    data: list[bytes] = []

    async def take(piece: bytes) -> None:
        data.append(piece)

    flow = part.flow
    condition, values = flow.source.within(part.low, part.high)
    async with source.transaction(isolation="repeatable_read", readonly=True):
        # before the snapshot: a table that is rewritten reads as empty in an older one (manual, 13.6)
        await source.execute(f"LOCK TABLE {flow.table.sql} IN ACCESS SHARE MODE")
        await source.copy_from_query(
            f"SELECT {columns_sql(flow.source.stored)} FROM {flow.source.relation} AS t WHERE {condition}",
            *values,
            output=take,
            format="binary" if part.binary else "text",
        )
        read = await outbox_checksum.as_read(source, flow, part.row_hash, part.low, part.high)
    await epoch.make_durable(source)
    return data, read


async def _write(sink: asyncpg.Connection, part: Range, data: list[bytes], read: Hashed) -> Hashed:
    """All rows of the range, or, where some rows are there already, those that are missing. Returns what it wrote."""
    try:
        async with sink.transaction():
            xid = await _note_done(sink, part)
            # where the key sorts differently here, no range of it says which rows are ours
            written = await (_write_straight if part.flow.sink.ordered else _write_staged)(sink, part, data, xid)
            outbox_checksum.require_same(part.flow, part.number, read, written)
            return written
    except (asyncpg.UniqueViolationError, asyncpg.ExclusionViolationError):
        return await _write_missing(sink, part, data, read)


async def _write_straight(sink: asyncpg.Connection, part: Range, data: list[bytes], xid: str) -> Hashed:
    async with part.job.turns[part.flow.name]:
        await _copy(sink, part.flow.table.schema, part.flow.table.name, part, data)
    return await outbox_checksum.as_written(sink, part.flow, part.row_hash, part.low, part.high, xid)


async def _write_staged(sink: asyncpg.Connection, part: Range, data: list[bytes], xid: str) -> Hashed:
    await _stage(sink, part, data)
    await sink.execute(_insert_sql(part.flow))
    written = await outbox_checksum.as_written_of(sink, _STAGED, part.flow, part.row_hash, xid)
    await sink.execute(f"DROP TABLE {_STAGED}")
    return written


async def _write_missing(sink: asyncpg.Connection, part: Range, data: list[bytes], read: Hashed) -> Hashed:
    flow = part.flow
    xid = await _note_done(sink, part)
    await _stage(sink, part, data)
    status = await sink.execute(_insert_sql(flow, missing=True, named=await uniques.checked_late(sink, flow.table)))
    arrived, wanted = await outbox_checksum.of_staged(sink, _STAGED, flow, part.row_hash, xid)
    if flow.sink.ordered:
        written = await outbox_checksum.as_written(sink, flow, part.row_hash, part.low, part.high, xid)
    else:
        written = await outbox_checksum.as_written_of(sink, _STAGED, flow, part.row_hash, xid)
    await sink.execute(f"DROP TABLE {_STAGED}")
    outbox_checksum.require_same(flow, part.number, read, arrived)
    # a row that was written under another key than it was sent with is among neither
    outbox_checksum.require_same(flow, part.number, replace(wanted, rows=int(status.rpartition(" ")[2])), written)
    return written


async def _stage(sink: asyncpg.Connection, part: Range, data: list[bytes]) -> None:
    """Brings the range into a temporary table."""
    schema, name = _STAGED.split(".")
    await sink.execute(
        f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS "
        f"SELECT {columns_sql(part.flow.source.stored)} FROM {part.flow.table.sql} WITH NO DATA"
    )
    await _copy(sink, schema, name, part, data)


def _insert_sql(flow: Flow, *, missing: bool = False, named: bool = False) -> str:
    """Inserts what is staged; `missing`: rows that none is in the way of, `named`: where that has to be looked for."""
    columns = columns_sql(flow.source.stored)
    where = unless = ""
    if missing and named:
        row = {c.name: f"t.{quote(c.name)}" for c in flow.sink.columns if c.name in flow.source.stored}
        absent = {c.name: f"CAST(NULL AS {c.type_sql})" for c in flow.sink.columns if c.name not in row}
        where = f"WHERE {uniques.free(flow.table, flow.uniques, row | absent)} "
        unless = f" ON CONFLICT ({columns_sql([k.name for k in flow.sink.key])}) DO NOTHING"
    elif missing:
        unless = " ON CONFLICT DO NOTHING"
    return (
        f"INSERT INTO {flow.table.sql} ({columns}) OVERRIDING SYSTEM VALUE "
        f"SELECT {columns} FROM {_STAGED} AS t {where}ORDER BY {flow.sink.order}{unless}"
    )


async def _note_done(sink: asyncpg.Connection, part: Range) -> str:
    """Notes the range as done; the id of the transaction (or subtransaction) that does it, and writes its rows."""
    return str(
        await sink.fetchval(
            f"UPDATE cutover.backfill_chunk SET done = true WHERE {_THIS} RETURNING xmin::text", *part.names
        )
    )


async def _copy(sink: asyncpg.Connection, schema: str, table: str, part: Range, data: list[bytes]) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for piece in data:
            yield piece

    await sink.copy_to_table(
        table,
        schema_name=schema,
        source=parts(),
        columns=list(part.flow.source.stored),
        format="binary" if part.binary else "text",
    )


async def sweep_next(
    sink: asyncpg.Connection, service: str, direction: Direction, flows: dict[str, Flow]
) -> str | None:
    """Ends the copy of one table whose ranges are all in: deletes what had been deleted. Its name; None for none.

    `sink` is a session that may write behind the fence. Raises Refused where this side has become the primary.
    """
    name: str | None = await sink.fetchval(
        "SELECT t.tbl FROM cutover.backfill_table t WHERE t.service = $1 AND t.direction = $2 AND NOT t.swept "
        "AND NOT EXISTS (SELECT FROM cutover.backfill_chunk c WHERE c.service = $1 AND c.direction = $2 "
        "AND c.tbl = t.tbl AND NOT c.done) ORDER BY 1 LIMIT 1",
        service,
        direction,
    )
    if name is None:
        return None
    await outbox_sink.await_applies(sink, service)
    await outbox_sink.sweep(sink, service, flows[name], lambda: epoch.hold_not_primary(sink, service))
    await sink.execute(
        "UPDATE cutover.backfill_table SET swept = true WHERE service = $1 AND direction = $2 AND tbl = $3",
        service,
        direction,
        name,
    )
    return name


@dataclass(frozen=True)
class TableCopy:
    """How far a table's first copy is."""

    table: str
    estimated: int
    rows: int
    bytes: int
    chunks: int
    done: int
    swept: bool


async def progress(sink: asyncpg.Connection, service: str, direction: Direction) -> list[TableCopy]:
    """Table by table, in the order of their names; nothing where no copy was planned."""
    rows = await sink.fetch(
        "SELECT t.tbl AS table, t.estimated, coalesce(sum(c.rows), 0)::int8 AS rows, "
        "coalesce(sum(c.bytes), 0)::int8 AS bytes, count(c.chunk) AS chunks, count(*) FILTER (WHERE c.done) AS done, "
        "t.swept FROM cutover.backfill_table t LEFT JOIN cutover.backfill_chunk c USING (service, direction, tbl) "
        "WHERE t.service = $1 AND t.direction = $2 GROUP BY t.tbl, t.estimated, t.swept ORDER BY 1",
        service,
        direction,
    )
    return [TableCopy(**row) for row in rows]
