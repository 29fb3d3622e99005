"""What the outbox stream keeps in schema `cutover` of both databases.

At the source: the intents of a service (`outbox_<service>`), its versions (`version_<service>`), the keys whose changes
cannot be applied (`quarantine`), and what became of writes whose answer may be lost (`decision`, see `two_phase`). At
the sink: what has been applied (`row_version`), who may apply (`relay_lease`), and how far the first copy is
(`backfill_table`, `backfill_chunk`). A database that is source today is sink after a switch, so each gets all of them.
"""

import asyncpg

from cutover.postgres.databases import Direction
from cutover.postgres.epoch import SCHEMA
from cutover.postgres.identifiers import TableName, quote
from cutover.postgres.keys import Key
from cutover.postgres.outbox_versions import version_sequence

#: Shares of the keys, by a hash that the source computes.
SHARDS = 64
#: The notification that wakes relays for a marker; ordinary changes are polled for, for a NOTIFY serialises commits.
WAKE = "cutover_outbox"

_SHARED = """
CREATE TABLE IF NOT EXISTS cutover.quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    service text NOT NULL,
    direction text NOT NULL,
    tbl text NOT NULL,
    key text[] COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    sqlstate text NOT NULL,
    reason text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'retried', 'skipped')),
    by text,
    why text,
    decided_at timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS quarantine_held ON cutover.quarantine (service, tbl, key) WHERE state = 'held';
COMMENT ON TABLE cutover.quarantine IS 'cutover: keys whose changes the other side refuses; later ones wait behind';
CREATE TABLE IF NOT EXISTS cutover.row_version (
    service text NOT NULL,
    tbl text NOT NULL,
    key text[] COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    shard smallint NOT NULL,
    deleted boolean NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (service, tbl, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE cutover.row_version IS 'cutover: the version of each changed key as applied here; deleted = tombstone';
CREATE TABLE IF NOT EXISTS cutover.relay_lease (
    service text NOT NULL,
    direction text NOT NULL,
    shard smallint NOT NULL,
    token bigint NOT NULL DEFAULT 0,
    owner text,
    expires_at timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (service, direction, shard)
) WITH (fillfactor = 50);
COMMENT ON TABLE cutover.relay_lease IS 'cutover: which relay may apply a share of the keys';
CREATE TABLE IF NOT EXISTS cutover.relay_member (
    service text NOT NULL,
    direction text NOT NULL,
    owner text NOT NULL,
    seen_at timestamptz NOT NULL,
    problem text NOT NULL DEFAULT '',
    PRIMARY KEY (service, direction, owner)
);
CREATE TABLE IF NOT EXISTS cutover.outbox_stream (
    service text NOT NULL,
    direction text NOT NULL,
    stream text NOT NULL,
    running boolean NOT NULL,
    best_effort boolean NOT NULL DEFAULT false,
    whole boolean NOT NULL DEFAULT true,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (service, direction)
);
GRANT SELECT ON cutover.outbox_stream TO PUBLIC;
CREATE TABLE IF NOT EXISTS cutover.backfill_table (
    service text NOT NULL,
    direction text NOT NULL,
    tbl text NOT NULL,
    estimated bigint NOT NULL,
    swept boolean NOT NULL DEFAULT false,
    PRIMARY KEY (service, direction, tbl)
);
CREATE TABLE IF NOT EXISTS cutover.backfill_chunk (
    service text NOT NULL,
    direction text NOT NULL,
    tbl text NOT NULL,
    chunk int NOT NULL,
    low text[],
    high text[],
    done boolean NOT NULL DEFAULT false,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    passed_over bigint NOT NULL DEFAULT 0,
    checksum numeric,
    PRIMARY KEY (service, direction, tbl, chunk)
);
CREATE TABLE IF NOT EXISTS cutover.decision (
    gid text COLLATE "C" PRIMARY KEY,
    service text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE cutover.decision IS 'cutover: what became of writes, by the id that each of them carries';
GRANT SELECT, INSERT ON cutover.decision TO PUBLIC;
"""
#: Columns that tables made by an earlier version lack. Looked for first: adding one waits for all who use the table.
_ADDED = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'cutover.backfill_chunk'::regclass
                   AND attname = 'checksum') THEN
        ALTER TABLE cutover.backfill_chunk ADD COLUMN IF NOT EXISTS passed_over bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS checksum numeric;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'cutover.outbox_stream'::regclass
                   AND attname = 'whole') THEN
        ALTER TABLE cutover.outbox_stream ADD COLUMN IF NOT EXISTS whole boolean NOT NULL DEFAULT true;
        GRANT SELECT ON cutover.outbox_stream TO PUBLIC;
    END IF;
END $$;
"""
_SINK_TABLES = ("relay_lease", "relay_member", "outbox_stream", "backfill_table", "backfill_chunk")

#: Version rows that are deleted at a time, when a stream is taken away.
_FORGOTTEN = 50_000
#: How long the id of a write is known. Whoever asks later is told that nobody knows.
KNOWN_MINUTES = 15
#: Rows of decisions that one call prunes at most.
PRUNED = 50_000
#: For everybody, like the insert: it takes only what nobody may ask for any more. Decisions on prepared branches, whose
#: ids begin otherwise, are pruned by the janitor.
_PRUNE = f"""
CREATE OR REPLACE FUNCTION cutover.prune_decisions() RETURNS bigint LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    pruned bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('cutover.prune_decisions', 0)) THEN
        RETURN 0;
    END IF;
    DELETE FROM cutover.decision WHERE ctid = ANY (ARRAY(
        SELECT d.ctid FROM cutover.decision d WHERE starts_with(d.gid, 'write:')
        AND d.at < clock_timestamp() - interval '{KNOWN_MINUTES} minutes' LIMIT {PRUNED} FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END $$;
"""


def own_function(service: str) -> TableName:
    """The function that shows a transaction its own intents, whatever its role may read."""
    return TableName(SCHEMA, f"own_{service}")


def outbox_table(service: str) -> TableName:
    """The intents of one service; a table of its own, so that services share neither its index nor its dead rows."""
    return TableName(SCHEMA, f"outbox_{service}")


async def install(connection: asyncpg.Connection, service: str) -> None:
    """Creates the tables in one database. Run again, it changes nothing."""
    outbox, versions = outbox_table(service), version_sequence(service)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
        await connection.execute(_SHARED)
        await connection.execute(_ADDED)
        await connection.execute(_PRUNE)
        await connection.execute(
            f"""
            CREATE SEQUENCE IF NOT EXISTS {versions.sql} AS bigint MINVALUE 1 CACHE 1 NO CYCLE;
            CREATE TABLE IF NOT EXISTS {outbox.sql} (
                shard smallint NOT NULL,
                version bigint NOT NULL,
                op "char" NOT NULL,
                tbl text NOT NULL,
                key text[] COLLATE "C" NOT NULL,
                xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
                at timestamptz NOT NULL DEFAULT clock_timestamp(),
                PRIMARY KEY (shard, version)
            ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
                    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
            COMMENT ON TABLE {outbox.sql} IS 'cutover: changed keys of a service that are still to be carried over';
            -- by which a strong transaction finds its own; entries come at its end, so it costs writers little
            CREATE INDEX IF NOT EXISTS {quote(f"outbox_{service}_xid")} ON {outbox.sql} (xid);
            CREATE OR REPLACE FUNCTION {own_function(service).sql}()
                RETURNS TABLE (shard smallint, version bigint, op "char", tbl text, key text[])
                LANGUAGE plpgsql SECURITY DEFINER ROWS 1
                SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
            BEGIN
                RETURN QUERY SELECT o.shard, o.version, o.op, o.tbl, o.key FROM {outbox.sql} o
                    WHERE o.xid = pg_current_xact_id_if_assigned();
            END $$;
            """
        )


async def carry_over(connection: asyncpg.Connection) -> None:
    """Gives tables that an earlier version has made what this one needs, for work that goes on with them."""
    await connection.execute(_ADDED)


async def installed(connection: asyncpg.Connection, service: str) -> bool:
    """Whether both the service's outbox and the shared tables are there."""
    return bool(
        await connection.fetchval(
            "SELECT to_regclass($1) IS NOT NULL AND to_regclass('cutover.backfill_chunk') IS NOT NULL",
            outbox_table(service).sql,
        )
    )


async def remove_source(connection: asyncpg.Connection, service: str, direction: Direction) -> None:
    """Takes away what a direction kept at its source; shared tables go with the last service (`own_schema`).

    The versions' sequence goes with the service's epoch (`epoch.remove`): a late `forget`, or a version row of a branch
    that is still prepared, must not meet the same version of a stream that was built anew.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
        # decisions stay until they are too old to be asked for, or the schema goes
        await connection.execute(f"DROP FUNCTION IF EXISTS {own_function(service).sql}()")
        await connection.execute(f"DROP TABLE IF EXISTS {outbox_table(service).sql}")
        await _forget(connection, ("quarantine",), service, direction)


async def remove_versions(
    connection: asyncpg.Connection, service: str, after: tuple[str, Key] = ("", ())
) -> tuple[str, Key] | None:
    """Deletes a portion of what a stopped stream has applied here; after which one to go on, None once all are gone.

    All of them before `remove_sink`: a copy of the next stream would take old tombstones for its own.
    """
    if not await connection.fetchval("SELECT to_regclass('cutover.row_version') IS NOT NULL"):
        return None
    row = await connection.fetchrow(
        "WITH part AS MATERIALIZED (SELECT ctid, tbl, key FROM cutover.row_version "
        "WHERE service = $1 AND (tbl, key) > ($2, $3::text[]) ORDER BY tbl, key LIMIT $4), "
        "gone AS (DELETE FROM cutover.row_version WHERE ctid = ANY (ARRAY(SELECT ctid FROM part))) "
        "SELECT tbl, key FROM part ORDER BY tbl DESC, key DESC LIMIT 1",
        service,
        *after,
        _FORGOTTEN,
    )
    return None if row is None else (row["tbl"], tuple(row["key"]))


async def remove_sink(connection: asyncpg.Connection, service: str, direction: Direction) -> None:
    """Takes away what a direction kept at its sink, after `remove_versions`."""
    async with connection.transaction():
        await _forget(connection, _SINK_TABLES, service, direction)
        # of a branch that was prepared; a database is the sink of one direction of a service only
        if await connection.fetchval("SELECT to_regclass('cutover.row_version') IS NOT NULL"):
            await connection.execute("DELETE FROM cutover.row_version WHERE service = $1", service)


async def _forget(connection: asyncpg.Connection, tables: tuple[str, ...], service: str, direction: Direction) -> None:
    for table in tables:
        if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"cutover.{table}"):
            await connection.execute(
                f"DELETE FROM cutover.{table} WHERE service = $1 AND direction = $2", service, direction
            )
