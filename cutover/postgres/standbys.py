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
