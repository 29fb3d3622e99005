"""Loose foreign keys: what ON DELETE did inside one database, done across two, a little later.

An AFTER DELETE trigger on the parent puts the deleted key into `cutover.loose_key_queue` of the parent's database;
`process_loose_keys` then deletes the children, or sets their columns to NULL, at the database where the children
are writable. At least once, idempotent. (GitLab: "Loose foreign keys", deployed before the real key goes.)

Not covered: changes of a parent's key (ON UPDATE), and TRUNCATE of the parent. Between the delete and the processing
children refer to nothing; `orphans` counts those.
"""

import hashlib
import json
from typing import cast

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres import catalog
from cutover.postgres.catalog import ForeignKey
from cutover.postgres.databases import Database, ended_after
from cutover.postgres.identifiers import columns_sql, quote, quote_literal
from cutover.postgres.locks import with_lock_limit

CHUNK = 2000
#: No lock of the application's is waited for long, nor kept when this process stops. Nobody waits for the queue's rows.
_QUEUE_LIMITS = {"idle_in_transaction_session_timeout": "11min", "statement_timeout": "60s"}
_CHILD_LIMITS = {
    "idle_in_transaction_session_timeout": "10s",
    "statement_timeout": "10min",  # a column without an index is looked through as a whole
    "lock_timeout": "5s",
}
#: Seconds after which a chunk is broken off, where the network says nothing.
_CHUNK_SECONDS = 660.0
#: Child rows that are looked through under one snapshot.
_SHARE_ROWS = 2_000_000

# SECURITY DEFINER: the application's role deletes parents and has no right on the queue.
# The settings make the text of a key the same whoever deletes, so that the other side reads the same value.
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS cutover;
CREATE TABLE IF NOT EXISTS cutover.loose_key_queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id text NOT NULL,
    constraint_name text NOT NULL,
    parent_key jsonb NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS loose_key_queue_key_id_idx ON cutover.loose_key_queue (key_id, id);
COMMENT ON TABLE cutover.loose_key_queue IS 'cutover: deleted parents whose children in another database are to follow';
CREATE OR REPLACE FUNCTION cutover.queue_loose_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
    SET bytea_output = 'hex' SET extra_float_digits = 1 SET timezone = 'UTC' AS $$
DECLARE
    part text;
    value text;
    key jsonb := '[]';
BEGIN
    FOREACH part IN ARRAY TG_ARGV[2:] LOOP
        EXECUTE format('SELECT ($1).%I::text', part) USING OLD INTO value;
        key := key || to_jsonb(value);
    END LOOP;
    INSERT INTO cutover.loose_key_queue (key_id, constraint_name, parent_key) VALUES (TG_ARGV[0], TG_ARGV[1], key);
    RETURN NULL;
END $$;
"""


def key_id(fk: ForeignKey) -> str:
    """Eight letters that stand for the key, in trigger names and in the queue."""
    text = json.dumps([fk.table.schema, fk.table.name, fk.name])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def trigger_name(fk: ForeignKey) -> str:
    return f"{catalog.OWN_PREFIX}loose_{key_id(fk)}"


def check_can_be_loose(fk: ForeignKey) -> None:
    """Raises ConfigError for a key whose rule cannot be done later."""
    if fk.on_delete in ("cascade", "set null"):
        return
    raise ConfigError(
        f"foreign key {fk.name!r} of {fk.table} cannot be loose: ON DELETE {fk.on_delete.upper()} would have to refuse "
        "the parent's delete, which no queue can. Make it ON DELETE CASCADE or SET NULL first, or choose `drop` "
        "and let the application keep the rule"
    )


async def install_loose_key(connection: asyncpg.Connection, fk: ForeignKey) -> bool:
    """Puts queue, function and trigger on the parent's table in this database; False where they were there.

    Run it on both sides' parents and before the real key is dropped. The trigger is plainly enabled, so that
    appliers in replica mode do not queue a delete that its own side has queued already.
    Raises ConfigError for a key that cannot be loose, NotYet for a lock.
    """
    check_can_be_loose(fk)
    info = await catalog.table(connection, fk.references)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
        await connection.execute(_SCHEMA)
    present = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = $2 AND tgenabled = 'O')",
        info.oid,
        trigger_name(fk),
    )
    if present:
        return False
    arguments = ", ".join(quote_literal(a) for a in (key_id(fk), fk.name, *fk.referenced_columns))
    await with_lock_limit(
        connection,
        f"CREATE OR REPLACE TRIGGER {quote(trigger_name(fk))} AFTER DELETE ON {fk.references.sql} "
        f"FOR EACH ROW EXECUTE FUNCTION cutover.queue_loose_key({arguments})",
        (fk.references,),
        f"putting the loose key of {fk.name!r} on {fk.references}",
    )
    return True


async def remove_loose_key(connection: asyncpg.Connection, fk: ForeignKey) -> None:
    """Takes the trigger away; what is queued stays until it is processed."""
    await with_lock_limit(
        connection,
        f"DROP TRIGGER IF EXISTS {quote(trigger_name(fk))} ON {fk.references.sql}",
        (fk.references,),
        f"taking the loose key of {fk.name!r} off {fk.references}",
    )


async def _types(connection: asyncpg.Connection, fk: ForeignKey, *, of_child: bool) -> list[str]:
    info = await catalog.table(connection, fk.table if of_child else fk.references)
    types = {column.name: column.type_sql for column in info.columns}
    return [types[name] for name in (fk.columns if of_child else fk.referenced_columns)]


def _names(width: int) -> str:
    return ", ".join(f"c{n}" for n in range(width))


def _given(width: int) -> str:
    """Keys as a table `k(c0, …)`, from one parameter (text array) a column."""
    return f"unnest({', '.join(f'${n + 1}::text[]' for n in range(width))}) AS k({_names(width)})"


def _matches(types: list[str], columns: tuple[str, ...], alias: str) -> str:
    """The condition that a row's key is the one in `k`, compared in the column's own type (and so by its index)."""
    return " AND ".join(
        f"{alias}.{quote(column)} = k.c{n}::{type_sql}"
        for n, (column, type_sql) in enumerate(zip(columns, types, strict=True))
    )


async def process_loose_keys(
    queue_db: Database, child_db: Database, fk: ForeignKey, *, parent_db: Database | None = None, limit: int = CHUNK
) -> int:
    """Lets the children follow up to `limit` deleted parents; returns how many queue entries were done.

    `queue_db` is where the deletes were queued, `parent_db` where the parent's table is writable now (the same, unless
    said otherwise): after a switch a queue may still hold deletes from before it. `child_db` is the database where the
    child's table is writable now; a fence there raises CU001 and nothing is taken from the queue. A key whose parent
    exists again is passed over: its children are the new parent's.
    """
    check_can_be_loose(fk)
    async with (
        queue_db.session("cutover-loose-keys", **_QUEUE_LIMITS) as queue,
        (parent_db or queue_db).session("cutover-loose-keys", **_QUEUE_LIMITS) as living,
        child_db.session("cutover-loose-keys", **_CHILD_LIMITS) as child,
    ):
        if not await queue.fetchval("SELECT to_regclass('cutover.loose_key_queue') IS NOT NULL"):
            return 0
        with ended_after(_CHUNK_SECONDS, queue, living, child):
            async with queue.transaction():
                rows = await queue.fetch(
                    "SELECT id, parent_key::text AS key FROM cutover.loose_key_queue WHERE key_id = $1 "
                    "ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED",
                    key_id(fk),
                    limit,
                )
                if not rows:
                    return 0
                await _follow(living, child, fk, {tuple(cast(list[str], json.loads(row["key"]))) for row in rows})
                # The children's commit comes first: a crash between the two does the same keys again, to no effect.
                await queue.execute(
                    "DELETE FROM cutover.loose_key_queue WHERE id = ANY($1::bigint[])", [row["id"] for row in rows]
                )
            return len(rows)


async def _follow(
    living: asyncpg.Connection, child: asyncpg.Connection, fk: ForeignKey, keys: set[tuple[str, ...]]
) -> None:
    """Deletes the children of those keys that have no parent, or sets their columns to NULL.

    Parents are looked for before it and, uncommitted, after it: a child that is found was committed after its parent,
    so whatever came back meanwhile is seen then, and its key is left out.
    """
    width = len(fk.columns)
    parent_is = _matches(await _types(living, fk, of_child=False), fk.referenced_columns, "p")
    child_is = _matches(await _types(child, fk, of_child=True), fk.columns, "c")
    parents = f"SELECT FROM {fk.references.sql} p WHERE {parent_is}"
    alive = f"SELECT {_names(width)} FROM {_given(width)} WHERE EXISTS ({parents})"
    if fk.on_delete == "cascade":
        statement = f"DELETE FROM {fk.table.sql} c USING {_given(width)} WHERE {child_is}"
    else:
        nulls = ", ".join(f"{quote(column)} = NULL" for column in fk.set_columns)
        statement = f"UPDATE {fk.table.sql} c SET {nulls} FROM {_given(width)} WHERE {child_is}"

    async def without_living(some: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
        return some - {tuple(row) for row in await living.fetch(alive, *_arrays(sorted(some), width))}

    gone = await without_living(keys)
    while gone:
        transaction = child.transaction()
        await transaction.start()
        still = set[tuple[str, ...]]()
        try:
            await child.execute(statement, *_arrays(sorted(gone), width))
            still = await without_living(gone)
        finally:
            await (transaction.commit() if still == gone else transaction.rollback())
        if still == gone:
            return
        gone = still


def _arrays(keys: list[tuple[str, ...]], width: int) -> list[list[str]]:
    return [[key[n] for key in keys] for n in range(width)]


async def pending(connection: asyncpg.Connection, fk: ForeignKey | None = None) -> int:
    """How many deleted parents wait in this database's queue, for one key or for all."""
    if not await connection.fetchval("SELECT to_regclass('cutover.loose_key_queue') IS NOT NULL"):
        return 0
    count = await connection.fetchval(
        "SELECT count(*) FROM cutover.loose_key_queue WHERE $1::text IS NULL OR key_id = $1", key_id(fk) if fk else None
    )
    return int(count)


async def orphans(
    child_conn: asyncpg.Connection, parent_conn: asyncpg.Connection, fk: ForeignKey, *, chunk: int = CHUNK
) -> int:
    """How many child rows refer to a parent that does not exist at the other database, chunk by chunk.

    Both connections may be to one database. A large table is read in shares, so that no snapshot gets old. Rows in
    flight can be counted: look again after a marker.
    """
    width = len(fk.columns)
    parent_is = _matches(await _types(parent_conn, fk, of_child=False), fk.referenced_columns, "p")
    counted = f"unnest({', '.join(f'${n + 1}::text[]' for n in range(width))}, ${width + 1}::bigint[])"
    query = (
        f"SELECT coalesce(sum(k.n), 0)::bigint FROM {counted} AS k({_names(width)}, n) "
        f"WHERE NOT EXISTS (SELECT FROM {fk.references.sql} p WHERE {parent_is})"
    )
    rows = (await catalog.table(child_conn, fk.table)).estimated_rows
    shares = 1 << max(0, (rows // _SHARE_ROWS).bit_length())
    found = 0
    for share in range(shares):
        found += await _orphans(child_conn, parent_conn, fk, query, (share, shares), chunk)
    return found


async def _orphans(
    child_conn: asyncpg.Connection, parent_conn: asyncpg.Connection, fk: ForeignKey, query: str,
    share: tuple[int, int], chunk: int,
) -> int:  # fmt: skip
    width = len(fk.columns)
    texts = [f"{quote(column)}::text" for column in fk.columns]
    given = " AND ".join(f"{quote(column)} IS NOT NULL" for column in fk.columns)  # MATCH SIMPLE
    among = f"hashtext(concat_ws(' ', {', '.join(texts)})) & {share[1] - 1} = {share[0]}"
    found = 0
    async with child_conn.transaction(isolation="repeatable_read", readonly=True):
        await child_conn.execute("SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL extra_float_digits = 1")
        cursor = await child_conn.cursor(
            f"SELECT {', '.join(texts)}, count(*) AS n FROM {fk.table.sql} WHERE {given} AND {among} "
            f"GROUP BY {columns_sql(fk.columns)}"
        )
        while rows := await cursor.fetch(chunk):
            arrays = [[row[i] for row in rows] for i in range(width)]
            found += await parent_conn.fetchval(query, *arrays, [row["n"] for row in rows])
    return found
