"""What is left of a service's migration in one database: streams, slots, origins, triggers, rows and tables of ours."""

from collections.abc import Iterable

import asyncpg

from cutover.postgres import applier, catalog, fence
from cutover.postgres.epoch import SCHEMA, marker_table
from cutover.postgres.identifiers import TableName

_FOUND = """
SELECT 'publication ' || pubname AS what FROM pg_catalog.pg_publication
    WHERE pubname = ANY (ARRAY[$1 || '_pub', $1 || '_reverse_pub'])
UNION ALL
SELECT 'subscription ' || subname FROM pg_catalog.pg_subscription
    WHERE subname = ANY (ARRAY[$1 || '_sub', $1 || '_reverse_sub'])
      AND subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
UNION ALL
SELECT 'replication slot ' || slot_name FROM pg_catalog.pg_replication_slots
    WHERE slot_name = ANY (ARRAY[$1 || '_sub', $1 || '_reverse_sub',
                                 'cutover_' || $1 || '_changes', 'cutover_' || $1 || '_changes_rev'])
      AND database = current_database()
UNION ALL
SELECT 'replication origin ' || name FROM unnest($2::text[]) AS name
ORDER BY 1
"""
_TRIGGERS = """
SELECT t.tgname::text AS name, t.tgrelid::regclass::text AS relation FROM pg_catalog.pg_trigger t
WHERE t.tgrelid = ANY ($1::oid[]) AND NOT t.tgisinternal AND starts_with(t.tgname::text, $2) ORDER BY 2, 1
"""


async def of_service(
    connection: asyncpg.Connection, service: str, tables: Iterable[TableName], *, fences: bool
) -> list[str]:
    """In words; `fences`: the fences, and the epoch and markers that they go with, count as well."""
    rows = await connection.fetch(_FOUND, service, await applier.origins(connection, service))
    found = [row["what"] for row in rows]
    infos = await catalog.find_tables(connection, await fence.relations(connection, tables))
    for row in await connection.fetch(_TRIGGERS, [info.oid for info in infos], catalog.OWN_PREFIX):
        if fences or row["name"] not in (fence.WRITES, fence.TRUNCATE):
            found.append(f"trigger {row['name']} on {row['relation']}")
    if fences:
        marker = marker_table(service)
        if await catalog.find_tables(connection, [marker]):
            found.append(f"table {marker}")
        if await connection.fetchval("SELECT to_regclass('cutover.epoch') IS NOT NULL") and await connection.fetchval(
            "SELECT EXISTS (SELECT FROM cutover.epoch WHERE service = $1)", service
        ):
            found.append(f"its row of {SCHEMA}.epoch")
    return found
