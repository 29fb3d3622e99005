"""Whether a server's standbys have what it has: a failover must not bring back a time before the fence.

Standbys are named as they call themselves to their primary (`application_name` of pg_stat_replication).
"""

import asyncio
import time
from collections.abc import Sequence

import asyncpg

from cutover.errors import NotYet

_BEHIND = """
SELECT wanted.name FROM unnest($1::text[]) AS wanted(name)
WHERE NOT EXISTS (
    SELECT FROM pg_stat_replication r WHERE r.application_name = wanted.name AND r.flush_lsn >= $2::text::pg_lsn
) ORDER BY 1
"""
_POLL_SECONDS = 0.005


async def connected(connection: asyncpg.Connection) -> list[str]:
    """The names of what receives this server's WAL as a standby now; our own streams are left out."""
    rows = await connection.fetch(
        "SELECT DISTINCT application_name FROM pg_stat_replication r WHERE application_name <> '' AND NOT EXISTS"
        " (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical') ORDER BY 1"
    )
    return [row["application_name"] for row in rows]


async def await_flushed(connection: asyncpg.Connection, standbys: Sequence[str], timeout: float) -> None:
    """Returns once every named standby has flushed all that this server has written so far.

    Raises NotYet, with their names, for those that are behind or not connected after `timeout` seconds.
    """
    if not standbys:
        return
    position = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
    deadline = time.monotonic() + timeout
    while behind := [row["name"] for row in await connection.fetch(_BEHIND, list(standbys), position)]:
        if time.monotonic() > deadline:
            raise NotYet(
                f"standby {', '.join(behind)} has not flushed what its primary has (or is not connected): "
                "a failover now could lift the fence"
            )
        await asyncio.sleep(_POLL_SECONDS)
