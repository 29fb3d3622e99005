"""The outbox at its sink: changes applied under the guard of their versions.

One READ COMMITTED transaction, two steps, under locks that keep the tables' columns as they are. First the version
rows, in the order of their keys: each is locked, and raised if the change is newer. Then, in statements of their own
and so with a fresh snapshot, the rows of the changes that were: a single statement could not see what it waited for.
A delete leaves its version row behind as a tombstone.

**When a version row may go** (`prune`). It guards against images that are older than what was applied. A relay holds
images only between the reading of a batch and its apply; it does that for one shard at a time, under a lease whose
token the apply checks. So between two batches of a shard's holder nothing older is in flight, and whatever is read
later shows at least the state of now. A version row goes when (a) the holder of its shard prunes, under its token,
between its batches, (b) no intent of the shard at the source has that version or a lower one, (c) it is older than
`KEEP_SECONDS` by the sink's clock, more than any statement of another writer under the guard may take, and (d) no
first copy is under way, whose rows have no version of their own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg

from cutover.errors import Conflict, Refused, StaleAttempt
from cutover.postgres import epoch, outbox_tables
from cutover.postgres.databases import FAILURES, Direction
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key
from cutover.postgres.outbox_source import Change
from cutover.postgres.outbox_tables import Flow

KEEP_SECONDS = 600.0
#: What an apply meets where another row holds a unique value.
IN_THE_WAY = (asyncpg.UniqueViolationError, asyncpg.ExclusionViolationError)
#: Version rows that one call prunes, and tombstones that one sweep looks at.
PRUNED = 20_000
_SWEPT = 2_000

_MAY_APPLY = f"""
SELECT pg_advisory_xact_lock_shared(hashtextextended('cutover.outbox/' || $1, 0)) IS NOT NULL AS entered,
       (SELECT count(*) FROM (
            SELECT 1 FROM cutover.relay_lease l JOIN unnest($3::int2[], $4::int8[]) AS h(shard, token)
            ON l.shard = h.shard AND l.token = h.token
            WHERE l.service = $1 AND l.direction = $2 AND l.expires_at > clock_timestamp()
            ORDER BY l.shard FOR KEY SHARE OF l) AS held) AS held,
       (SELECT e.primary_side <> e.side FROM cutover.epoch e WHERE e.service = $1) AS is_sink,
       ({outbox_tables.definition_sql(5)}) AS definition
"""


async def apply(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    flows: Mapping[str, Flow],
    known: str,
    changes: Sequence[Change],
    markers: Sequence[str],
    tokens: Mapping[int, int],
    *,
    replace: bool = False,
) -> int:
    """Applies what is newer than what is there, durably; how many keys that were.

    `known` stands for the sink's columns for which the images were made. `tokens`: of the leases that this rests on, by
    shard; they are held to the commit, so that a lease is not taken over in the middle. `replace` deletes all rows
    before it inserts, so that unique values may change places.
    Raises StaleAttempt where a lease is not ours any more or this side has become the primary, Redefined.
    """
    ordered = sorted(changes, key=lambda change: (change.flow, change.key))
    async with _writing(connection, {flows[change.flow].table for change in changes}):
        allowed = await _hold(connection, service, direction, tokens, [flow.table for flow in flows.values()])
        # the way back is proved by its marker before the switch, when its sink is still the primary
        if changes and not allowed["is_sink"]:
            raise _is_primary(service, direction)
        if changes:
            outbox_tables.require_same(allowed["definition"], known)
        newer = await _raise_versions(connection, service, ordered)
        for name, flow in flows.items():
            mine = [change for change in newer if change.flow == name]
            if mine:
                await _write(connection, flow, mine, replace=replace)
        if markers:
            await connection.execute(
                f"INSERT INTO {epoch.marker_table(service).sql} (id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING",
                list(markers),
            )
    return len(newer)


@asynccontextmanager
async def _writing(connection: asyncpg.Connection, tables: Iterable[TableName]) -> AsyncIterator[None]:
    """A transaction until whose end the tables keep their columns, and this side its part.

    An image is read as the row type of now, so a column that went and came again would get another one's values.
    """
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    if names := ", ".join(f"ONLY {table.sql}" for table in sorted(tables)):
        # in the fence's order
        begin += f"; LOCK TABLE {names} IN ROW EXCLUSIVE MODE"
    try:
        await connection.execute(begin)
        yield
    except BaseException:
        with suppress(*FAILURES):
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


async def _hold(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    tokens: Mapping[int, int],
    tables: Iterable[TableName] = (),
) -> asyncpg.Record:
    """Holds the leases until the transaction ends; what this side is, and the definition of the tables.

    Raises StaleAttempt where one of them is not ours any more.
    """
    allowed = await _may_apply(connection, service, direction, tokens, tables)
    if allowed["held"] != len(tokens):
        raise StaleAttempt(f"{service}: another relay has taken over some of the {direction} stream's shards")
    return allowed


async def _may_apply(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    tokens: Mapping[int, int],
    tables: Iterable[TableName] = (),
) -> asyncpg.Record:
    names = [table.sql for table in tables]
    [row] = await connection.fetch(_MAY_APPLY, service, direction, list(tokens), list(tokens.values()), names)
    return row


def _is_primary(service: str, direction: Direction) -> StaleAttempt:
    return StaleAttempt(f"{service}: the sink of the {direction} stream is the primary by now")


async def hold(connection: asyncpg.Connection, service: str, direction: Direction, tokens: Mapping[int, int]) -> None:
    """Makes sure, until the transaction ends, that the leases are ours and that this side follows: for `sweep`.

    Raises StaleAttempt.
    """
    await _hold(connection, service, direction, tokens)
    try:
        await epoch.hold_not_primary(connection, service)
    except Refused:
        raise _is_primary(service, direction) from None


def _raise_sql(changes: Sequence[Change], first: int = 1) -> str:
    """SQL that raises the version rows of changes; its parameters, from `first` on, are `_raise_values`."""
    width = max(len(change.key) for change in changes)
    names = ", ".join(f"k{n}" for n in range(width))
    arrays = ", ".join(f"${first + 5 + n}::text[]" for n in range(width))
    return (
        "INSERT INTO cutover.row_version AS r (service, tbl, key, version, shard, deleted) "
        f"SELECT ${first}::text, v.tbl, array_remove(ARRAY[{names}], NULL), v.version, v.shard, v.deleted "
        f"FROM unnest(${first + 1}::text[], ${first + 2}::int8[], ${first + 3}::int2[], ${first + 4}::bool[], {arrays})"
        f" AS v(tbl, version, shard, deleted, {names}) "
        "ON CONFLICT (service, tbl, key) DO UPDATE SET version = excluded.version, shard = excluded.shard, "
        "deleted = excluded.deleted, applied_at = excluded.applied_at WHERE r.version < excluded.version "
        "RETURNING r.tbl, r.key"
    )


def _raise_values(service: str, changes: Sequence[Change]) -> list[object]:
    width = max(len(change.key) for change in changes)
    return [
        service,
        [c.flow for c in changes],
        [c.version for c in changes],
        [c.shard for c in changes],
        [c.image is None for c in changes],
        *([c.key[n] if n < len(c.key) else None for c in changes] for n in range(width)),
    ]


async def _raise_versions(connection: asyncpg.Connection, service: str, changes: Sequence[Change]) -> list[Change]:
    """Those of the changes (in order of their keys) that are newer than what was applied; their rows are locked."""
    if not changes:
        return []
    rows = await connection.fetch(_raise_sql(changes), *_raise_values(service, changes))
    if len(rows) == len(changes):
        return list(changes)
    newer = {(row[0], tuple(row[1])) for row in rows}
    return [change for change in changes if (change.flow, change.key) in newer]


_IS_SINK = "SELECT e.primary_side <> e.side FROM cutover.epoch e WHERE e.service = {}"


async def apply_open(
    connection: asyncpg.Connection,
    service: str,
    flows: Mapping[str, Flow],
    changes: Sequence[Change],
    *,
    replace: bool = False,
) -> None:
    """Applies changes whose keys the caller has locked at the source, in its own open READ COMMITTED transaction.

    The caller holds the tables' locks already, so that what the epoch row says now holds until its transaction ends.
    Raises StaleAttempt where this side has become the primary, Conflict where a key is newer here than at its source.
    """
    ordered = sorted(changes, key=lambda change: (change.flow, change.key))
    flow = flows[ordered[0].flow]
    upsert = None if replace else flow.upsert_sql
    if upsert is not None and all(c.flow == flow.name and c.image is not None for c in ordered):
        # One statement will do where nothing is deleted: ON CONFLICT meets rows that its snapshot cannot see.
        [row] = await connection.fetch(
            f"WITH raised AS ({_raise_sql(ordered, 2)}), written AS ({upsert} RETURNING 1) "
            "SELECT (SELECT count(*) FROM raised) AS raised, (SELECT count(*) FROM written) AS written, "
            f"({_IS_SINK.format('$2')}) AS is_sink",
            [c.image for c in ordered],
            *_raise_values(service, ordered),
        )
        raised, is_sink = row["raised"], row["is_sink"]
    else:
        is_sink = await connection.fetchval(_IS_SINK.format("$1"), service)
        newer = await _raise_versions(connection, service, ordered)
        raised = len(newer)
        for name, mine in flows.items():
            if part := [change for change in newer if change.flow == name]:
                await _write(connection, mine, part, replace=replace)
    if not is_sink:
        raise StaleAttempt(f"{service}: the other side is not the following one any more")
    if raised != len(ordered):
        raise Conflict(
            f"{service}: the other side holds newer versions of {len(ordered) - raised} of these keys than the "
            "primary has: the stream has to be rebuilt (cutover doctor)"
        )


async def _write(connection: asyncpg.Connection, flow: Flow, changes: Sequence[Change], *, replace: bool) -> None:
    upsert = None if replace else flow.upsert_sql
    gone = [c.key for c in changes if c.image is None or upsert is None]
    if gone:
        await connection.execute(flow.delete_sql, *key_columns(flow, gone))
    images = [c.image for c in changes if c.image is not None]
    if images:
        await connection.execute(upsert or flow.insert_sql, images)


def key_columns(flow: Flow, keys: Sequence[Key]) -> list[list[str]]:
    """Keys as one array per column."""
    return [[key[n] for key in keys] for n in range(flow.width)]


async def in_the_way(connection: asyncpg.Connection, flow: Flow, images: Sequence[str]) -> set[Key]:
    """Keys of the sink's rows that hold a unique value which one of the images has."""
    if not images:
        return set()
    return {tuple(row[0]) for row in await connection.fetch(flow.in_the_way_sql, list(images))}


async def await_applies(connection: asyncpg.Connection, service: str) -> None:
    """Waits until every apply that is open now has ended; later ones see all that is committed by now."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('cutover.outbox/' || $1, 0))", service)


async def sweep(
    connection: asyncpg.Connection,
    service: str,
    flow: Flow,
    may: Callable[[], Awaitable[None]],
    keys: Sequence[Key] | None = None,
) -> int:
    """Deletes rows that a first copy brought although their deletion had been applied; how many.

    Of the whole table, or of these keys. Each tombstone is locked and looked at again first: its key may be inserted
    anew meanwhile. No version guards a row of this side's own, so `may` comes first in each transaction: it makes sure
    until its end that this side is not the primary, and raises otherwise (`hold`, `epoch.hold_not_primary`).
    """
    risen = sorted(keys) if keys is not None else await _risen(connection, service, flow)
    swept = 0
    for start in range(0, len(risen), _SWEPT):
        part = risen[start : start + _SWEPT]
        names = ", ".join(f"k{n}" for n in range(flow.width))
        arrays = ", ".join(f"${n + 3}::text[]" for n in range(flow.width))
        async with connection.transaction():
            await may()
            rows = await connection.fetch(
                f"SELECT r.key FROM cutover.row_version r JOIN unnest({arrays}) AS v({names}) "
                f"ON r.key = ARRAY[{names}] WHERE r.service = $1 AND r.tbl = $2 AND r.deleted ORDER BY r.key "
                "FOR UPDATE OF r",
                service,
                flow.name,
                *key_columns(flow, part),
            )
            status = await connection.execute(flow.delete_sql, *key_columns(flow, [tuple(row[0]) for row in rows]))
        swept += int(status.rpartition(" ")[2])
    return swept


async def _risen(connection: asyncpg.Connection, service: str, flow: Flow) -> list[Key]:
    """Keys that have both a tombstone and a row."""
    parts = ", ".join(f"r.key[{n + 1}] AS k{n}" for n in range(flow.width))
    found = await connection.fetch(
        f"SELECT v.key FROM (SELECT r.key, {parts} FROM cutover.row_version r WHERE r.service = $1 AND r.tbl = $2 "
        f"AND r.deleted OFFSET 0) AS v JOIN {flow.table.sql} AS t ON {flow.sink.same_key()}{flow.spelled(flow.sink)}",
        service,
        flow.name,
    )
    return sorted(tuple(row[0]) for row in found)


async def prune(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    tokens: Mapping[int, int],
    least: Mapping[int, int],
    *,
    keep_seconds: float = KEEP_SECONDS,
) -> int:
    """Deletes version rows of these shards that guard against nothing any more; how many. See the module's rule.

    For the holder of the shards' leases, between two batches; `least` holds the least version that waits at the
    source, for shards where one does, read after the last batch was forgotten there. At most `PRUNED` of them: where it
    is as many, there may be more.
    """
    async with connection.transaction():
        allowed = await _may_apply(connection, service, direction, tokens)
        if allowed["held"] != len(tokens) or await copying(connection, service, direction):
            return 0
        status = await connection.execute(
            "DELETE FROM cutover.row_version WHERE ctid = ANY (ARRAY(SELECT r.ctid FROM cutover.row_version r "
            "JOIN unnest($2::int2[], $3::int8[]) AS s(shard, least) USING (shard) "
            "WHERE r.service = $1 AND (s.least IS NULL OR r.version < s.least) "
            "AND r.applied_at < clock_timestamp() - make_interval(secs => $4) LIMIT $5 FOR UPDATE OF r SKIP LOCKED))",
            service,
            list(tokens),
            [least.get(shard) for shard in tokens],
            keep_seconds,
            PRUNED,
        )
    return int(status.rpartition(" ")[2])


async def copying(connection: asyncpg.Connection, service: str, direction: Direction) -> bool:
    """Whether a first copy has begun and not ended."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM cutover.backfill_table WHERE service = $1 AND direction = $2 AND NOT swept)",
            service,
            direction,
        )
    )


async def highest_version(connection: asyncpg.Connection, service: str) -> int:
    """The highest version that was ever applied here and is still known; 0 for none."""
    return int(
        await connection.fetchval(
            "SELECT coalesce(max(version), 0) FROM cutover.row_version WHERE service = $1", service
        )
    )
