"""Capture: triggers that put an intent for each changed row into the outbox, in the changing transaction itself.

One generated function a table, so that nothing has to be looked up at run time. AFTER … FOR EACH ROW: the version is
drawn under the row's lock, so a key's versions rise in the order of its commits; and a partition's own writes are seen
as well, under the name of the plan's table. SECURITY DEFINER, for the application's role has no right here.

The triggers are ENABLE ALWAYS: a writer in replica mode is captured too. Our own appliers are told apart by a setting
that counts only together with the role that owns all this, as in the fence. Everybody keeps EXECUTE on the functions:
who makes a partition needs it for the triggers that come with it, and an intent that is put wrongly only has the row
that it names carried over once more.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import asyncpg

from cutover.plan.models import Truncate
from cutover.postgres import fence, outbox_schema
from cutover.postgres.epoch import SCHEMA
from cutover.postgres.identifiers import TableName, quote, quote_literal
from cutover.postgres.locks import with_lock_limit
from cutover.postgres.outbox_schema import SHARDS, outbox_table
from cutover.postgres.outbox_tables import Flow
from cutover.postgres.outbox_versions import AHEAD, EPOCH_VERSIONS, raise_versions, version_sequence

ROWS = "cutover_capture"
TRUNCATES = "cutover_capture_truncate"
TRUNCATE_SQLSTATE = "CU002"

#: Settings that a key's text depends on, by the base types (OIDs) that it does so for; a SET costs time in each call.
_SETTINGS = {
    "timezone = 'UTC'": {1184},
    "datestyle = 'ISO, MDY'": {1082, 1114, 1184},
    "intervalstyle = 'postgres'": {1186},
    "bytea_output = 'hex'": {17},
    "extra_float_digits = 3": {700, 701},
    "lc_monetary = 'C'": {790},
}
#: Base types whose text depends on no setting: bool, int8, int2, int4, text, oid, char(n), varchar, numeric, uuid.
_STABLE = frozenset({16, 20, 21, 23, 25, 26, 1042, 1043, 1700, 2950})


def function_name(service: str, table: TableName) -> str:
    text = json.dumps([service, table.schema, table.name])
    return f"capture_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _settings(flow: Flow) -> str:
    types = {k.base_oid for k in flow.source.key}
    all_of_them = not types <= _STABLE.union(*_SETTINGS.values())
    return "".join(f" SET {text}" for text, oids in _SETTINGS.items() if all_of_them or types & oids)


def _shard(parts: list[str]) -> str:
    joined = " || E'\\x1f' || ".join(f'({part}) COLLATE "C"' for part in parts)
    return f"(hashtextextended({joined}, 0) & {SHARDS - 1})::int2"


def _functions(service: str, flow: Flow, truncate: Truncate) -> str:
    old, new = flow.key_of("OLD"), flow.key_of("NEW")
    outbox = outbox_table(service).sql
    version = f"nextval({quote_literal(version_sequence(service).sql)}::regclass)"
    table = quote_literal(flow.name)
    head = (
        "RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
        f"{_settings(flow)} AS $body$"
    )
    insert = f"INSERT INTO {outbox} (shard, version, op, tbl, key)"
    moved = " OR ".join(f'({o}) COLLATE "C" <> ({n}) COLLATE "C"' for o, n in zip(old, new, strict=True))
    every = flow.key_of("t")
    name = f"{SCHEMA}.{quote(function_name(service, flow.table))}"
    rows = f"""
CREATE OR REPLACE FUNCTION {name}() {head}
BEGIN
    IF TG_OP = 'DELETE' THEN
        {insert} VALUES ({_shard(old)}, {version}, 'D', {table}, ARRAY[{", ".join(old)}]);
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF {moved} THEN
            {insert} VALUES ({_shard(old)}, {version}, 'D', {table}, ARRAY[{", ".join(old)}]);
        END IF;
    END IF;
    {insert} VALUES ({_shard(new)}, {version}, left(TG_OP, 1)::"char", {table}, ARRAY[{", ".join(new)}]);
    RETURN NULL;
END $body$;
"""
    if truncate == "refuse":
        body = f"""
    RAISE EXCEPTION USING ERRCODE = '{TRUNCATE_SQLSTATE}',
        MESSAGE = format('cutover: TRUNCATE of %s is refused while its rows are carried to another database', {table}),
        HINT = 'Use DELETE, or let the plan capture TRUNCATE as deletes.';"""
    else:
        # its own rows and those of its partitions; a partition that fires as well only repeats them
        keys = ", ".join(every)
        query = f"{insert} SELECT {_shard(every)}, {version}, 'D', {table}, ARRAY[{keys}] FROM ".replace("%", "%%")
        body = f"\n    EXECUTE format({quote_literal(query + '%s AS t')}, TG_RELID::regclass);"
        body = _unless_all_are_seen(table) + body
    return (
        rows
        + f"""
CREATE OR REPLACE FUNCTION {SCHEMA}.{quote(function_name(service, flow.table) + "_truncate")}() {head}
BEGIN{body}
    RETURN NULL;
END $body$;
"""
    )


def _unless_all_are_seen(table: str) -> str:
    """Refuses where the transaction keeps a snapshot: rows that came since would go without an intent."""
    return f"""
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = '{TRUNCATE_SQLSTATE}',
            MESSAGE = format('cutover: TRUNCATE of %s is refused in a transaction that is not READ COMMITTED: '
                'it does not see all rows, and their deletion has to be carried to another database', {table}),
            HINT = 'Truncate in a READ COMMITTED transaction, or use DELETE.';
    END IF;"""


def _unless_ours(owner: str) -> str:
    return (
        "WHEN (pg_catalog.current_setting('cutover.applier', true) IS DISTINCT FROM 'on' "
        f"OR NOT pg_catalog.pg_has_role(session_user, {quote_literal(owner)}, 'USAGE'))"
    )


async def install(
    connection: asyncpg.Connection, service: str, flows: Mapping[str, Flow], *, truncate: Truncate = "capture"
) -> None:
    """Captures every change of the tables from here on. Run again, it mends what is missing.

    When it returns, no transaction is open that wrote before its table was captured: making a trigger takes the lock
    that every writer's conflicts with. Raises NotYet that names who holds a table.
    """
    owner = str(await connection.fetchval("SELECT current_user"))
    await outbox_schema.install(connection, service)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
        for flow in flows.values():
            await connection.execute(_functions(service, flow, truncate))
    await raise_above(connection, service, 0)
    for flow in flows.values():
        members = await fence.relations(connection, [flow.table])
        missing = {name for names in (await _uncaptured(connection, members)).values() for name in names}
        await _trigger(connection, service, flow, flow.table, ROWS, owner, whole=ROWS not in missing)
        for member in members:
            await _trigger(connection, service, flow, member, TRUNCATES, owner, whole=True)


async def _trigger(
    connection: asyncpg.Connection,
    service: str,
    flow: Flow,
    member: TableName,
    trigger: str,
    owner: str,
    *,
    whole: bool,
) -> None:
    """Makes one trigger, unless it is there as it has to be and (`whole`) on every partition too."""
    function = function_name(service, flow.table) + ("" if trigger == ROWS else "_truncate")
    present = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1::text::regclass AND tgname = $2 "
        "AND tgenabled = 'A' AND tgfoid = $3::text::regproc)",
        member.sql,
        trigger,
        f"{SCHEMA}.{quote(function)}",
    )
    if present and whole:
        return
    events = "AFTER INSERT OR UPDATE OR DELETE" if trigger == ROWS else "BEFORE TRUNCATE"
    level = "ROW" if trigger == ROWS else "STATEMENT"
    only = "" if trigger == ROWS else "ONLY "
    await with_lock_limit(
        connection,
        f"CREATE OR REPLACE TRIGGER {trigger} {events} ON {member.sql} FOR EACH {level} {_unless_ours(owner)} "
        f"EXECUTE FUNCTION {SCHEMA}.{quote(function)}(); "
        f"ALTER TABLE {only}{member.sql} ENABLE ALWAYS TRIGGER {trigger}",
        [member],
        f"capture of {member}",
    )


async def _uncaptured(connection: asyncpg.Connection, members: Iterable[TableName]) -> dict[TableName, list[str]]:
    """Relations of which a trigger is missing or does not always fire, with the names of such triggers."""
    rows = await connection.fetch(
        """
        SELECT w.schema, w.name, (
            SELECT coalesce(array_agg(t.tgname::text), '{}') FROM pg_catalog.pg_trigger t
            WHERE t.tgrelid = c.oid AND t.tgenabled = 'A') AS triggers
        FROM unnest($1::text[], $2::text[]) AS w(schema, name)
        JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
        """,
        [m.schema for m in members],
        [m.name for m in members],
    )
    found = {}
    for row in rows:
        missing = [name for name in (ROWS, TRUNCATES) if name not in row["triggers"]]
        if missing:
            found[TableName(row["schema"], row["name"])] = missing
    return found


@dataclass(frozen=True)
class Uncaptured:
    """Tables and partitions of which changes pass by: of rows, or only by a TRUNCATE (a partition made since)."""

    rows: tuple[TableName, ...]
    truncates: tuple[TableName, ...]


async def uncaptured(connection: asyncpg.Connection, tables: Iterable[TableName]) -> Uncaptured:
    """What is not captured just now; what was not for a while cannot be told."""
    found = await _uncaptured(connection, await fence.relations(connection, tables))
    rows = {table for table, missing in found.items() if ROWS in missing}
    return Uncaptured(tuple(sorted(rows)), tuple(sorted(set(found) - rows)))


async def raise_above(connection: asyncpg.Connection, service: str, least: int) -> None:
    """Versions drawn from here on are above `least` and of the epoch that this database knows, or a later one."""
    async with connection.transaction():
        # under the epoch row's lock nobody else raises it
        number = await connection.fetchval("SELECT epoch FROM cutover.epoch WHERE service = $1 FOR UPDATE", service)
        await raise_versions(connection, service, max(least, (number or 0) * EPOCH_VERSIONS), ahead=AHEAD)


async def remove(connection: asyncpg.Connection, service: str, tables: Iterable[TableName]) -> None:
    """Captures no more. What the outbox holds stays until `outbox_schema.remove`."""
    for table in tables:
        members = await fence.relations(connection, [table])
        for member in members:
            drop = f"DROP TRIGGER IF EXISTS {TRUNCATES} ON {member.sql}"
            if member == table:
                drop += f"; DROP TRIGGER IF EXISTS {ROWS} ON {member.sql}"
            await with_lock_limit(connection, drop, [member], f"capture of {member}")
        name = function_name(service, table)
        await connection.execute(
            f"DROP FUNCTION IF EXISTS {SCHEMA}.{quote(name)}(); "
            f"DROP FUNCTION IF EXISTS {SCHEMA}.{quote(name + '_truncate')}()"
        )
