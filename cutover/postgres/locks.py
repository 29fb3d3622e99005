"""DDL on tables in use: it waits for its locks only for a moment, again and again, so that nobody queues behind it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

import asyncpg

from cutover.errors import NotYet
from cutover.postgres.identifiers import TableName

LOCK_TIMEOUT = "200ms"
ATTEMPTS = 25
#: What is asked in a statement's transaction, right before it; it refuses by raising.
Guard = Callable[[asyncpg.Connection], Awaitable[None]]
_PAUSE = 0.2  # seconds between attempts, with jitter: everybody behind us in the lock's queue gets a turn

_BLOCKERS = """
SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application, a.usename::text AS role,
       round(extract(epoch FROM clock_timestamp() - a.xact_start))::int AS seconds
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY($1::regclass[]::oid[]) AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
ORDER BY 4 DESC NULLS LAST LIMIT 5
"""


async def with_lock_limit(
    connection: asyncpg.Connection,
    statement: str,
    tables: Iterable[TableName],
    what: str,
    *,
    attempts: int = ATTEMPTS,
    guard: Guard | None = None,
) -> None:
    """Runs a DDL statement whose wait for locks is short and repeated, so that it never holds up the application.

    Raises NotYet that names who holds the tables, and what `guard` raises.
    """
    for attempt in range(attempts):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                if guard is not None:
                    await guard(connection)
                await connection.execute(statement)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if attempt + 1 < attempts:
                await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.5))
    rows = await connection.fetch(_BLOCKERS, [table.sql for table in tables])
    holders = ", ".join(
        f"{row['application']} (pid {row['pid']}, role {row['role']}, {row['seconds'] or 0} s)" for row in rows
    )
    raise NotYet(f"{what}: the lock was not obtained in {attempts} attempts; held by {holders or 'nobody any more'}")
