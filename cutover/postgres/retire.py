"""The monolith's tables after the migration: renamed first, dropped by a separate decision, watched in between.

Nothing is renamed or dropped that is not fenced, published or subscribed to: the fence is the proof that the
service's side is the writable one. (GitLab truncates decomposed tables only where the write lock is present.)
"""

import asyncio
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from cutover.errors import NotYet, Refused
from cutover.postgres import catalog
from cutover.postgres.identifiers import MAX_BYTES, TableName, quote

FENCE = "cutover_fence"
LOCK_TIMEOUT = "200ms"
ATTEMPTS = 25
_MARK = "_retired_"

_UNFENCED = """
SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY($1::oid[]) AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = $2 AND t.tgenabled IN ('O', 'A'))
"""

_STREAMS = """
SELECT 'publication ' || p.pubname AS name FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = ANY($1::oid[])
UNION SELECT 'subscription ' || s.subname FROM pg_catalog.pg_subscription_rel r
JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid WHERE r.srrelid = ANY($1::oid[])
"""

_RETIRED = """
SELECT c.relname::text AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND starts_with(c.relname::text, $2)
  AND EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = $3)
"""

_USAGE = """
SELECT coalesce(sum(coalesce(seq_scan, 0) + coalesce(idx_scan, 0)), 0)::bigint AS reads,
       coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint AS writes
FROM pg_catalog.pg_stat_all_tables WHERE relid = ANY($1::oid[])
"""


@dataclass(frozen=True)
class Usage:
    """Counters since the server's statistics were last reset: scans, and rows written."""

    reads: int
    writes: int


def _stem(table: TableName) -> str:
    """The table's name, cut (between characters) so that the mark and a number still fit into 63 bytes."""
    room = MAX_BYTES - len(_MARK) - 4
    return table.name.encode()[:room].decode(errors="ignore") + _MARK


async def retired_name(connection: asyncpg.Connection, table: TableName) -> TableName | None:
    """What the table was renamed to, or None; the latest where there are several."""
    stem = _stem(table)
    rows = await connection.fetch(_RETIRED, table.schema, stem, FENCE)
    numbers = [int(rest) for row in rows if (rest := row["name"][len(stem) :]).isdigit()]
    return TableName(table.schema, f"{stem}{max(numbers)}") if numbers else None


async def retire(connection: asyncpg.Connection, table: TableName) -> TableName:
    """Renames the table to `<table>_retired_<n>` and returns that name; run again, it only returns it.

    Raises Refused where it is not fenced or still streamed, NotYet for a lock, ConfigError where it is unknown.
    """
    for attempt in range(ATTEMPTS):
        if not await catalog.find_tables(connection, [table]):
            if former := await retired_name(connection, table):
                return former
            await catalog.table(connection, table)  # raises, with a hint
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                await connection.execute(f"LOCK TABLE {table.sql} IN ACCESS EXCLUSIVE MODE")
                await _check(connection, table)
                last = await retired_name(connection, table)
                number = int(last.name[len(_stem(table)) :]) + 1 if last else 1
                new = TableName(table.schema, f"{_stem(table)}{number}")
                await connection.execute(f"ALTER TABLE {table.sql} RENAME TO {quote(new.name)}")
            return new
        except asyncpg.LockNotAvailableError:
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(0.2 * random.uniform(0.5, 1.5))
        except asyncpg.UndefinedTableError:
            continue  # another run has just renamed it
    raise NotYet(f"retiring {table}: its lock was not obtained in {ATTEMPTS} attempts; somebody still uses it")


async def _check(connection: asyncpg.Connection, table: TableName) -> None:
    info = await catalog.table(connection, table)
    oids = [i.oid for i in await catalog.find_tables(connection, info.everywhere)]
    bare = await connection.fetch(_UNFENCED, oids, FENCE)
    if bare:
        names = ", ".join(f"{row['schema']}.{row['name']}" for row in bare)
        raise Refused(
            f"table {table} is not retired: the fence is not up on {names}, so its writers may still be at work. "
            "Finish the switch (and the cleanup's approval) first"
        )
    streams = await connection.fetch(_STREAMS, oids)
    if streams:
        names = ", ".join(sorted(row["name"] for row in streams))
        raise Refused(f"table {table} is still part of {names}: stop and drop that stream first")


async def drop_retired(connection: asyncpg.Connection, table: TableName) -> bool:
    """Drops a retired table (by its retired name); False where it is gone already.

    Raises Refused for any other name, without a fence, while something depends on it, NotYet for a lock.
    """
    if not re.search(rf"{_MARK}\d+$", table.name):
        raise Refused(f"table {table} was not retired by cutover: only <table>{_MARK}<n> is dropped")
    if not await catalog.find_tables(connection, [table]):
        return False
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '5s'")
            await connection.execute(f"LOCK TABLE {table.sql} IN ACCESS EXCLUSIVE MODE")
            await _check(connection, table)
            await connection.execute(f"DROP TABLE {table.sql}")
    except asyncpg.UndefinedTableError:
        return False
    except asyncpg.LockNotAvailableError:
        raise NotYet(f"dropping {table}: somebody holds a lock on it") from None
    except asyncpg.DependentObjectsStillExistError as e:
        raise Refused(
            f"table {table} is not dropped, something depends on it: {e.detail}. Drop or change that first"
        ) from None
    return True


async def usage(connection: asyncpg.Connection, tables: Iterable[TableName]) -> dict[TableName, Usage]:
    """How often the (existing) tables and their descendants were scanned, and how many rows were written.

    Two readings some days apart are the evidence that nobody uses them; our own passes count as well.
    """
    found = {}
    for info in await catalog.find_tables(connection, tables):
        oids = [i.oid for i in await catalog.find_tables(connection, info.everywhere)]
        [row] = await connection.fetch(_USAGE, oids)
        found[info.name] = Usage(row["reads"], row["writes"])
    return found
