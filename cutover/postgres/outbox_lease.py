"""Who may apply: leases of shards, with fencing tokens, in the sink itself; and the stream's own row there.

A lease is taken when nobody's runs any more, and its token rises with that. An apply locks the leases that it rests
on (KEY SHARE) until its commit, and taking one over wants a lock that conflicts: so the old holder's apply has ended,
or will be refused. A lease that ran out is never renewed, only taken anew: a token that holds has held all the time.
All times are the sink's clock. Where that was set back, what it said before lies in the future, perhaps for hours, and
its relay may be gone: a lease that ends later than any relay asks for has run out, and a sign of life of then is none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from cutover.errors import NotYet, StaleAttempt
from cutover.postgres.databases import Direction
from cutover.postgres.epoch import GONE
from cutover.postgres.outbox_schema import SHARDS

LEASE_SECONDS = 5.0
#: No relay asks for more.
_LONGEST = "interval '60 seconds'"
_RUNS = f"expires_at > clock_timestamp() AND expires_at <= clock_timestamp() + {_LONGEST}"


async def start(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    stream: str,
    *,
    best_effort: bool = False,
    gap: bool = False,
) -> str:
    """Notes the stream as running and makes the leases that relays will take; the stream's name.

    `best_effort`: a change that the sink refuses is given up. `gap`: the sink lacks rows until `close_gap`. A stream
    that was started before keeps what it has.
    """
    async with connection.transaction():
        name: str = await connection.fetchval(
            "INSERT INTO cutover.outbox_stream AS s (service, direction, stream, running, best_effort, whole) "
            "VALUES ($1, $2, $3, true, $4, $5) ON CONFLICT (service, direction) "
            "DO UPDATE SET running = true, whole = s.whole AND excluded.whole RETURNING stream",
            service,
            direction,
            stream,
            best_effort,
            not gap,
        )
        await connection.execute(
            # tokens go on rising where the stream was dropped and is made anew
            "INSERT INTO cutover.relay_lease (service, direction, shard, token) "
            "SELECT $1, $2, n, (extract(epoch FROM clock_timestamp()) * 1e6)::int8 "
            "FROM generate_series(0, $3 - 1) AS n ON CONFLICT DO NOTHING",
            service,
            direction,
            SHARDS,
        )
    return name


async def give_up_nothing(connection: asyncpg.Connection, service: str, direction: Direction) -> None:
    """Relays hear of it with their next sign of life."""
    await connection.execute(
        "UPDATE cutover.outbox_stream SET best_effort = false WHERE service = $1 AND direction = $2 AND best_effort",
        service,
        direction,
    )


async def close_gap(connection: asyncpg.Connection, service: str, direction: Direction, stream: str) -> None:
    """The sink has all rows that this very stream had not brought. Raises StaleAttempt where there is another one."""
    if not await connection.fetchval(
        "UPDATE cutover.outbox_stream SET whole = true WHERE service = $1 AND direction = $2 AND stream = $3 "
        "RETURNING true",
        service,
        direction,
        stream,
    ):
        raise StaleAttempt(f"{service}: somebody else has made the {direction} stream anew meanwhile, and mends it")


async def stands(connection: asyncpg.Connection, service: str, direction: Direction, stream: str) -> bool:
    """Whether that very stream runs still, and the sink lacks no row that it has not brought.

    Asked at the sink, by any role. One that was taken away never comes back: the next has another name.
    """
    try:
        found = await connection.fetchval(
            "SELECT running AND whole AND NOT best_effort FROM cutover.outbox_stream "
            "WHERE service = $1 AND direction = $2 AND stream = $3",
            service,
            direction,
            stream,
        )
    except (*GONE, asyncpg.UndefinedColumnError, asyncpg.InsufficientPrivilegeError):
        return False
    return bool(found)


async def count(connection: asyncpg.Connection, service: str, direction: Direction, applied: int) -> None:
    """Adds what somebody else than a relay has carried over to the stream's counter."""
    await connection.execute(
        "UPDATE cutover.outbox_stream SET applied = applied + $3 WHERE service = $1 AND direction = $2",
        service,
        direction,
        applied,
    )


async def stop(connection: asyncpg.Connection, service: str, direction: Direction) -> None:
    """Takes every lease away: when this returns no apply is open, and none can follow until the next `start`."""
    async with connection.transaction():
        await connection.execute(
            "UPDATE cutover.outbox_stream SET running = false WHERE service = $1 AND direction = $2",
            service,
            direction,
        )
        await connection.execute(
            "SELECT 1 FROM cutover.relay_lease WHERE service = $1 AND direction = $2 ORDER BY shard FOR UPDATE",
            service,
            direction,
        )
        await connection.execute(
            "UPDATE cutover.relay_lease SET token = token + 1, owner = NULL, expires_at = '-infinity' "
            "WHERE service = $1 AND direction = $2",
            service,
            direction,
        )


@dataclass(frozen=True)
class StreamRow:
    stream: str
    running: bool
    best_effort: bool
    #: Whether the sink lacks no row that the stream has not brought.
    whole: bool
    since: datetime
    read_at: datetime
    applied: int
    failures: int


async def stream_row(connection: asyncpg.Connection, service: str, direction: Direction) -> StreamRow | None:
    """The stream's own row at its sink; None where it has not been started."""
    if not await connection.fetchval("SELECT to_regclass('cutover.outbox_stream') IS NOT NULL"):
        return None
    try:
        row = await connection.fetchrow(
            # of a table that an earlier version has made nobody knows it
            "SELECT stream, running, best_effort, coalesce((to_jsonb(s) ->> 'whole')::boolean, false) AS whole, since, "
            "clock_timestamp() AS read_at, applied, failures FROM cutover.outbox_stream s "
            "WHERE service = $1 AND direction = $2",
            service,
            direction,
        )
    except GONE:
        return None
    return StreamRow(**row) if row else None


async def beat(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    owner: str,
    held: Mapping[int, int],
    *,
    applied: int,
    failures: int,
    problem: str,
    seconds: float = LEASE_SECONDS,
) -> dict[int, int]:
    """A sign of life: renews what is held, takes what is free, gives up what is more than a fair share.

    Returns shards with their tokens. `applied` and `failures` are added to the stream's counters. Raises NotYet while
    the stream is stopped.
    """
    async with connection.transaction():
        running = await connection.fetchval(
            "UPDATE cutover.outbox_stream SET applied = applied + $3, failures = failures + $4 "
            "WHERE service = $1 AND direction = $2 RETURNING running",
            service,
            direction,
            applied,
            failures,
        )
        if not running:
            raise NotYet(f"{service}: the {direction} stream is stopped")
        await connection.execute(
            "INSERT INTO cutover.relay_member (service, direction, owner, seen_at, problem) "
            "VALUES ($1, $2, $3, clock_timestamp(), $4) ON CONFLICT (service, direction, owner) "
            "DO UPDATE SET seen_at = excluded.seen_at, problem = excluded.problem",
            service,
            direction,
            owner,
            problem,
        )
        members = await connection.fetchval(
            "WITH gone AS (DELETE FROM cutover.relay_member WHERE service = $1 AND direction = $2 "
            "AND seen_at < clock_timestamp() - make_interval(secs => 100 * $3)) "
            "SELECT count(*) FROM cutover.relay_member WHERE service = $1 AND direction = $2 "
            "AND seen_at BETWEEN clock_timestamp() - make_interval(secs => $3) AND clock_timestamp()",
            service,
            direction,
            seconds,
        )
        fair = math.ceil(SHARDS / max(members, 1))
        keep = dict(sorted(held.items())[:fair])
        renewed = await _renew(connection, service, direction, owner, keep, seconds)
        await release(connection, service, direction, owner, [s for s in held if s not in keep])
        rows = await connection.fetch(
            # materialized: joined as it stands, the limit could count anew for each row
            "WITH free AS MATERIALIZED (SELECT shard FROM cutover.relay_lease WHERE service = $1 AND direction = $2 "
            f"AND NOT ({_RUNS}) ORDER BY shard LIMIT $5 FOR UPDATE SKIP LOCKED) "
            "UPDATE cutover.relay_lease l SET token = token + 1, owner = $3, "
            "expires_at = clock_timestamp() + make_interval(secs => $4) FROM free "
            "WHERE l.service = $1 AND l.direction = $2 AND l.shard = free.shard RETURNING l.shard, l.token",
            service,
            direction,
            owner,
            seconds,
            max(0, fair - len(renewed)),
        )
    return {**renewed, **{row["shard"]: row["token"] for row in rows}}


async def _renew(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    owner: str,
    held: Mapping[int, int],
    seconds: float,
) -> dict[int, int]:
    rows = await connection.fetch(
        "UPDATE cutover.relay_lease l SET expires_at = clock_timestamp() + make_interval(secs => $4) "
        "FROM unnest($5::int2[], $6::int8[]) AS h(shard, token) WHERE l.service = $1 AND l.direction = $2 "
        "AND l.owner = $3 AND l.shard = h.shard AND l.token = h.token AND l.expires_at > clock_timestamp() "
        "RETURNING l.shard, l.token",
        service,
        direction,
        owner,
        seconds,
        list(held),
        list(held.values()),
    )
    return {row["shard"]: row["token"] for row in rows}


async def release(
    connection: asyncpg.Connection, service: str, direction: Direction, owner: str, shards: Sequence[int]
) -> None:
    """Gives leases up, so that another relay need not wait for their end."""
    await connection.execute(
        "UPDATE cutover.relay_lease SET owner = NULL, expires_at = '-infinity' "
        "WHERE service = $1 AND direction = $2 AND owner = $3 AND shard = ANY ($4::int2[])",
        service,
        direction,
        owner,
        list(shards),
    )


async def leave(connection: asyncpg.Connection, service: str, direction: Direction, owner: str) -> None:
    """A relay's clean end: its leases are free at once."""
    await release(connection, service, direction, owner, range(SHARDS))
    await connection.execute(
        "DELETE FROM cutover.relay_member WHERE service = $1 AND direction = $2 AND owner = $3",
        service,
        direction,
        owner,
    )


@dataclass(frozen=True)
class Relays:
    """How many shards are looked after just now, and what the relays complain of."""

    shards: int
    problems: tuple[str, ...]


async def relays(connection: asyncpg.Connection, service: str, direction: Direction) -> Relays:
    [row] = await connection.fetch(
        "SELECT (SELECT count(*) FROM cutover.relay_lease WHERE service = $1 AND direction = $2 "
        f"AND {_RUNS}) AS shards, "
        "ARRAY(SELECT DISTINCT problem FROM cutover.relay_member WHERE service = $1 AND direction = $2 "
        "AND problem <> '' AND seen_at BETWEEN clock_timestamp() - make_interval(secs => $3) AND clock_timestamp() "
        "ORDER BY 1) AS problems",
        service,
        direction,
        LEASE_SECONDS,
    )
    return Relays(row["shards"], tuple(row["problems"]))
