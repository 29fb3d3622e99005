"""Rows at a sink give way to what native apply brings, while a stream with a gap is built anew.

What changed in the gap nobody sends. A key that was deleted in it and inserted again after it meets its own old row at
the sink, a unique value that changed hands its former holder; native apply fails on either, again and again, and with
it every marker that a comparison waits for (`insert_exists`, `update_exists`: manual, 29.7 "Conflicts"). So for that
time a trigger takes away what stands in the way: the source is the truth, and what is missing then a pass brings back.

ENABLE REPLICA: it fires for apply and for our own repairs alone. It knows unique indexes whose values it can work out
from the new row, so none on generated columns, and no exclusion constraints.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

import asyncpg

from cutover.errors import GateClosed
from cutover.postgres import catalog, uniques
from cutover.postgres.epoch import SCHEMA
from cutover.postgres.identifiers import TableName, quote
from cutover.postgres.locks import with_lock_limit
from cutover.postgres.uniques import Unique

TRIGGER = f"{catalog.OWN_PREFIX}give_way"
_INSTALLED = "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = $2)"
_ANY_INSTALLED = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger "
    "WHERE tgrelid = ANY (SELECT to_regclass(name) FROM unnest($1::text[]) AS name) AND tgname = $2)"
)


async def install(sink: asyncpg.Connection, service: str, tables: Sequence[TableName]) -> None:
    """Lets the rows of these tables give way. Raises NotYet that names who holds a table; idempotent."""
    for info in await catalog.tables(sink, tables):
        if not info.primary_key:
            raise GateClosed(f"table {info.name} has no primary key, so a stream of it cannot be built anew")
        sql = _sql(service, info.name, info.primary_key, await uniques.of_table(sink, info.name))
        await with_lock_limit(sink, sql, [info.name], f"giving way at {info.name}")


async def remove(sink: asyncpg.Connection, service: str, tables: Iterable[TableName]) -> None:
    """They stay where they are again. Locks nothing where nothing is installed."""
    for table in tables:
        if await sink.fetchval(_INSTALLED, table.sql, TRIGGER):
            drop = f"DROP TRIGGER IF EXISTS {TRIGGER} ON {table.sql}"
            await with_lock_limit(sink, drop, [table], f"giving way at {table}")
        await sink.execute(f"DROP FUNCTION IF EXISTS {_function(service, table)}()")


async def installed(sink: asyncpg.Connection, tables: Sequence[TableName]) -> bool:
    """Whether rows of any of these tables give way: then what a gap left behind has not been compared to the end."""
    names = [table.sql for table in tables]
    return bool(await sink.fetchval(_ANY_INSTALLED, names, TRIGGER))


def _function(service: str, table: TableName) -> str:
    text = json.dumps([service, table.schema, table.name])
    return f"{SCHEMA}.give_way_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _sql(service: str, table: TableName, key: Sequence[str], indexes: Sequence[Unique]) -> str:
    # an update must not take away the very row that it changes
    itself = " AND ".join(f"t.{quote(name)} = OLD.{quote(name)}" for name in key)
    deletes = []
    for unique in indexes:
        names = [f"cutover_{n}" for n in range(len(unique.expressions))]
        values = ", ".join(f"({e}) AS {name}" for e, name in zip(unique.expressions, names, strict=True))
        where = unique.predicate or "true"
        found = (
            f"DELETE FROM {table.sql} AS t USING (SELECT {values} FROM (SELECT NEW.*) AS x WHERE {where}) AS i "
            f"WHERE ({unique.same([f'i.{name}' for name in names])}) AND ({where})"
        )
        deletes.append(f"IF TG_OP = 'INSERT' THEN {found}; ELSE {found} AND NOT ({itself}); END IF;")
    function = _function(service, table)
    return f"""
        CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp SET "cutover.applier" = 'on' AS $body$
        #variable_conflict use_column
        BEGIN
            {" ".join(deletes)}
            RETURN NEW;
        END $body$;
        DROP TRIGGER IF EXISTS {TRIGGER} ON {table.sql};
        CREATE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE ON {table.sql} FOR EACH ROW EXECUTE FUNCTION {function}();
        ALTER TABLE {table.sql} ENABLE REPLICA TRIGGER {TRIGGER};
        """
