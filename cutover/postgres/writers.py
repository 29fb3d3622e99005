"""Who writes at a side that is shut, as far as its database can tell.

Seen are sessions that hold a lock which only a writer takes, and intents that were captured. A transaction that wrote
and ended between two looks is not seen, where nothing has captured it; what the fence refused is counted by
`epoch.refused`.
"""

from collections.abc import Sequence

import asyncpg

from cutover.postgres import outbox_schema
from cutover.postgres.fence import Holder
from cutover.postgres.identifiers import TableName
from cutover.postgres.outbox_schema import outbox_table
from cutover.postgres.outbox_source import MARKER

#: How the names of all sessions of ours begin.
OWN_NAMES = "cutover"


async def open_writers(connection: asyncpg.Connection, members: Sequence[TableName]) -> list[Holder]:
    """Sessions of clients that hold ROW EXCLUSIVE on one of these tables, oldest first, without our own.

    Ours by name and by role: one that the fence would let through (see `epoch`). Native apply is no client.
    """
    rows = await connection.fetch(
        """
        SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.usename, '') AS role,
               coalesce(a.state, '') AS state, l.relation::regclass::text AS "table", l.mode AS lock,
               coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS age_seconds
        FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.relation = ANY (SELECT to_regclass(t) FROM unnest($1::text[]) AS t) AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.mode = 'RowExclusiveLock' AND a.backend_type = 'client backend'
          AND NOT (starts_with(a.application_name, $2) AND coalesce(pg_has_role(a.usesysid,
              (SELECT proowner FROM pg_proc WHERE oid = to_regproc('cutover.refuse')), 'USAGE'), false))
        ORDER BY age_seconds DESC LIMIT 20
        """,
        [member.sql for member in members],
        OWN_NAMES,
    )
    return [Holder(**row) for row in rows]


async def captured(connection: asyncpg.Connection, service: str) -> int:
    """Intents of rows that wait in the outbox of this database; 0 where there is no outbox. Markers are none."""
    if not await outbox_schema.installed(connection, service):
        return 0
    return int(
        await connection.fetchval(f"SELECT count(*) FROM {outbox_table(service).sql} WHERE op <> '{MARKER}'::\"char\"")
    )
