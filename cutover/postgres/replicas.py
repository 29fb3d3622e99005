"""Whether a replica shows what its primary had at a moment, so that a comparison misses nothing that was there."""

import asyncio
import time

import asyncpg

from cutover.errors import ConfigError, NotYet

_POLL_SECONDS = 0.02


async def await_replayed(connection: asyncpg.Connection, position: str, timeout: float) -> None:
    """Returns once the replica has replayed its primary's write-ahead log up to `position`.

    Raises NotYet after `timeout` seconds, ConfigError where the server is not in recovery (any more).
    """
    deadline = time.monotonic() + timeout
    while not (replayed := await connection.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position)):
        if replayed is None or not await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise ConfigError("the server to read from is no replica: it is not in recovery (promoted, say)")
        if time.monotonic() > deadline:
            raise NotYet(f"the replica has not replayed its primary's log up to {position} in {timeout:.0f} s")
        await asyncio.sleep(_POLL_SECONDS)


async def require_replica(primary: asyncpg.Connection, replica: asyncpg.Connection, name: str) -> None:
    """Raises ConfigError where `name` is not a physical replica of this primary, and of this database of it."""
    sql = "SELECT (SELECT system_identifier FROM pg_control_system()), current_database()::text, pg_is_in_recovery()"
    here, there = tuple(await primary.fetchrow(sql) or ()), tuple(await replica.fetchrow(sql) or ())
    if here[:2] != there[:2]:
        raise ConfigError(f"database {name!r} is no replica of its primary: it belongs to another server or database")
    if not there[2]:
        raise ConfigError(f"database {name!r} is no replica: it is not in recovery (promoted, or its DSN is wrong)")
