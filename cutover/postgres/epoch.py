"""The schema `cutover` in each migrated database: epochs, fencing tokens and markers.

The epoch row says which side of a service is writable, as this database knows it. Its `token` is the
fencing token of the switch attempt that may have an effect here (M. Kleppmann, "How to do distributed
locking", 2016): every effect reads it under a row lock that it keeps until its commit.
"""

from dataclasses import dataclass

import asyncpg

from cutover.errors import Refused, StaleAttempt
from cutover.postgres.databases import Side
from cutover.postgres.identifiers import TableName, quote_literal
from cutover.postgres.outbox_versions import EPOCH_VERSIONS, raise_versions, version_sequence

SCHEMA = "cutover"
FENCED_SQLSTATE = "CU001"
#: What a statement meets whose table, or the whole schema, cleanup drops after it was asked whether it is there.
GONE = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)
#: How the ids of markers begin that a switch has put.
SWITCH_MARKER = "switch-"

#: The body of the fence's function. A refused statement is counted in a sequence, which no rollback takes back.
_REFUSE = f"""
DECLARE
    known cutover.epoch;
    counter regclass := to_regclass(format('cutover.%I', 'refused_' || TG_ARGV[0]));
BEGIN
    -- our own writer in replica mode: the setting alone is not enough, the role must own this function
    IF current_setting('cutover.applier', true) = 'on'
       AND pg_has_role(session_user, current_user, 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF counter IS NOT NULL THEN
        PERFORM nextval(counter);
    END IF;
    SELECT * INTO known FROM cutover.epoch WHERE service = TG_ARGV[0];
    RAISE EXCEPTION USING
        ERRCODE = '{FENCED_SQLSTATE}',
        MESSAGE = format('cutover: %s is writable at %s (epoch %s), not here', TG_ARGV[0],
            CASE WHEN known.primary_side IS DISTINCT FROM known.side THEN coalesce(known.primary_side, 'nowhere')
                 ELSE 'no side for a moment' END, coalesce(known.epoch, 0)),
        HINT = 'Retry through the service''s own route; during a switch both sides refuse for a moment.';
END """
_SCHEMA_SQL = f"""
CREATE SCHEMA IF NOT EXISTS cutover;
CREATE TABLE IF NOT EXISTS cutover.epoch (
    service text PRIMARY KEY,
    side text NOT NULL CHECK (side IN ('monolith', 'service')),
    primary_side text NOT NULL CHECK (primary_side IN ('monolith', 'service')),
    epoch bigint NOT NULL,
    token bigint NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cutover.epoch IS 'cutover: which side of a service is writable, as this database knows it';
CREATE TABLE IF NOT EXISTS cutover.flush (one boolean PRIMARY KEY DEFAULT true CHECK (one), at timestamptz NOT NULL);
COMMENT ON TABLE cutover.flush IS 'cutover: a synchronous commit here makes all earlier commits durable';
CREATE OR REPLACE FUNCTION cutover.refuse() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $${_REFUSE}$$;
GRANT USAGE ON SCHEMA cutover TO PUBLIC;
GRANT SELECT ON cutover.epoch TO PUBLIC;
"""


def marker_table(service: str) -> TableName:
    """The table that carries a service's markers; one a service, so that streams do not share it."""
    return TableName(SCHEMA, f"marker_{service}")


def refused_sequence(service: str) -> TableName:
    """Counts the statements that the fence of this database has refused; read as `last_value`, 0 before the first."""
    return TableName(SCHEMA, f"refused_{service}")


async def install(connection: asyncpg.Connection, service: str, side: Side) -> None:
    """Creates what a database needs for one service; its epoch row as it is before any switch. Run again, nothing."""
    async with connection.transaction():
        # two services of one migration may install into the monolith at the same moment
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
        await connection.execute(_SCHEMA_SQL)
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {marker_table(service).sql} "
            "(id text PRIMARY KEY, put_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
        await connection.execute(f"CREATE SEQUENCE IF NOT EXISTS {refused_sequence(service).sql} MINVALUE 0 START 1")
        await connection.execute(
            "INSERT INTO cutover.epoch (service, side, primary_side, epoch) VALUES ($1, $2, 'monolith', 0) "
            "ON CONFLICT (service) DO NOTHING",
            service,
            side,
        )


async def remove(connection: asyncpg.Connection, service: str) -> None:
    """Takes the service's rows, marker table and sequences away; the schema itself is `own_schema`'s."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
        if not await connection.fetchval("SELECT to_regclass('cutover.epoch') IS NOT NULL"):
            return
        await connection.execute(f"DROP TABLE IF EXISTS {marker_table(service).sql}")
        await connection.execute(f"DROP SEQUENCE IF EXISTS {refused_sequence(service).sql}")
        await connection.execute(f"DROP SEQUENCE IF EXISTS {version_sequence(service).sql}")
        await connection.execute("DELETE FROM cutover.epoch WHERE service = $1", service)


@dataclass(frozen=True)
class Epoch:
    """The epoch row of one service in one database."""

    service: str
    side: Side
    primary_side: Side
    epoch: int
    token: int


async def read(connection: asyncpg.Connection, service: str) -> Epoch | None:
    """The epoch row, or None where the service was never installed."""
    if not await connection.fetchval("SELECT to_regclass('cutover.epoch') IS NOT NULL"):
        return None
    try:
        row = await connection.fetchrow(
            "SELECT service, side, primary_side, epoch, token FROM cutover.epoch WHERE service = $1", service
        )
    except GONE:
        return None
    return Epoch(**row) if row else None


async def refused(connection: asyncpg.Connection, service: str) -> int | None:
    """How many statements the fence has refused here so far; None where nothing counts them (an older fence)."""
    sequence = refused_sequence(service).sql
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", sequence):
        return None
    counted = f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"
    try:
        return int(await connection.fetchval(counted))
    except GONE:
        return None


async def refuses(connection: asyncpg.Connection) -> bool:
    """Whether the function behind every fence is the one that this version makes."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE oid = to_regproc('cutover.refuse') "
            "AND prosrc = $1 AND prosecdef)",
            _REFUSE,
        )
    )


def set_sql(service: str, primary_side: Side, number: int) -> str:
    """A statement for a person that writes the epoch row as the route has it."""
    return (
        f"UPDATE cutover.epoch SET primary_side = {quote_literal(primary_side)}, epoch = {number} "
        f"WHERE service = {quote_literal(service)}"
    )


def row_sql(service: str, side: Side, primary_side: Side, number: int) -> str:
    """A statement for a person that makes the epoch row anew, as the route has it, where it is gone."""
    values = ", ".join(quote_literal(text) for text in (service, side, primary_side))
    return f"INSERT INTO cutover.epoch (service, side, primary_side, epoch) VALUES ({values}, {number})"


_HOLD_TOKEN = "SELECT token FROM cutover.epoch WHERE service = $1 FOR UPDATE"
_SET_EPOCH = (
    "UPDATE cutover.epoch SET primary_side = $2, epoch = $3, changed_at = clock_timestamp() WHERE service = $1 "
    "RETURNING to_regclass($4) IS NOT NULL"
)


async def hold_token(connection: asyncpg.Connection, service: str, token: int) -> None:
    """Checks the fencing token under a lock that lasts until the caller's transaction ends.

    Raises StaleAttempt when a newer attempt has raised it.
    """
    held = await connection.fetchval(_HOLD_TOKEN, service)
    if held != token:
        raise StaleAttempt(f"{service}: attempt {token} was overtaken by attempt {held}; it stops here")


async def hold_unchanged(connection: asyncpg.Connection, seen: Epoch) -> bool:
    """Whether the row is as it was seen, under a lock that lasts until the caller's transaction ends.

    Every effect of a switch takes this lock first and leaves another row, so what was decided from `seen` still holds.
    """
    row = await connection.fetchrow(
        "SELECT service, side, primary_side, epoch, token FROM cutover.epoch WHERE service = $1 FOR UPDATE",
        seen.service,
    )
    return row is not None and Epoch(**row) == seen


async def hold_not_primary(connection: asyncpg.Connection, service: str) -> None:
    """Makes sure that this database is not its service's primary, until the caller's transaction ends.

    Every effect of a switch takes a lock on the same row first. Where the service was never installed there is no
    switch either. Raises Refused.
    """
    if not await connection.fetchval("SELECT to_regclass('cutover.epoch') IS NOT NULL"):
        return
    primary = await connection.fetchval(
        "SELECT primary_side = side FROM cutover.epoch WHERE service = $1 FOR SHARE", service
    )
    if primary:
        raise Refused(
            f"{service}: this side is the primary now, a switch came in between; nothing more is written here. "
            "Compare again, and repair by what that finds"
        )


async def raise_token(connection: asyncpg.Connection, service: str, token: int) -> int:
    """Raises the token here, and returns the epoch; waits (within lock_timeout) for an older attempt's open effect.

    Raises StaleAttempt when a newer attempt has been here already.
    """
    known: int | None = await connection.fetchval(
        "UPDATE cutover.epoch SET token = $2 WHERE service = $1 AND token <= $2 RETURNING epoch", service, token
    )
    if known is None:
        raise StaleAttempt(f"{service}: attempt {token} found a newer one, or the service is not installed here")
    return known


def application_name(service: str, token: int) -> str:
    """How sessions of one attempt are told apart in pg_stat_activity (63 bytes at most)."""
    return f"cutover-switch/{service}/{token}"


async def end_older_sessions(connection: asyncpg.Connection, service: str, token: int) -> int:
    """Terminates sessions of earlier attempts of this service's switch; returns how many were told to end."""
    rows = await connection.fetch(
        "SELECT pid, split_part(application_name, '/', 3) AS token FROM pg_stat_activity "
        "WHERE datname = current_database() AND starts_with(application_name, $1) AND pid <> pg_backend_pid()",
        f"cutover-switch/{service}/",
    )
    older = [row["pid"] for row in rows if row["token"].isdigit() and int(row["token"]) < token]
    for pid in older:
        await connection.fetchval("SELECT pg_terminate_backend($1)", pid)
    return len(older)


async def set_epoch(connection: asyncpg.Connection, service: str, primary_side: Side, epoch: int) -> None:
    """Writes the new truth of this database; part of the caller's fencing or unfencing transaction.

    Where an outbox captures changes, its later versions are above those of every earlier epoch. A sequence does not
    roll back with the transaction, which does no harm: versions need not be without gaps.
    """
    if await connection.fetchval(_SET_EPOCH, service, primary_side, epoch, version_sequence(service).sql):
        await raise_versions(connection, service, epoch * EPOCH_VERSIONS)


async def rehearse(connection: asyncpg.Connection, service: str) -> None:
    """Runs what `hold_token` and `set_epoch` do without effect or lock: on this session their next use is a quick one.

    The first use of a statement costs a round trip more, to prepare it, and fills the server's caches.
    """
    sequence = version_sequence(service).sql
    nobody = ""  # no service is called so
    await connection.fetchval(_HOLD_TOKEN, nobody)
    await connection.fetchval(_SET_EPOCH, nobody, "monolith", 0, sequence)
    if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", sequence):
        await raise_versions(connection, service, 0)


async def put_marker(connection: asyncpg.Connection, service: str, marker: str) -> None:
    """Writes a marker at the source of a stream. Run again with the same id, it changes nothing."""
    table = marker_table(service).sql
    await connection.execute(f"INSERT INTO {table} (id) VALUES ($1) ON CONFLICT (id) DO NOTHING", marker)


async def prune_markers(connection: asyncpg.Connection, service: str) -> None:
    """Deletes markers older than ten minutes; called at the source only, the stream carries the deletes on.

    A switch's own marker stays for a month: whoever finishes the switch after an outage still awaits it.
    """
    table = marker_table(service).sql
    await connection.execute(
        f"DELETE FROM {table} WHERE put_at < clock_timestamp() - CASE WHEN starts_with(id, '{SWITCH_MARKER}') "
        "THEN interval '30 days' ELSE interval '10 minutes' END"
    )


async def delete_markers(connection: asyncpg.Connection, service: str, kind: str) -> None:
    """Deletes the markers whose ids begin so."""
    table = marker_table(service).sql
    await connection.execute(f"DELETE FROM {table} WHERE starts_with(id, $1)", kind)


async def marker_seen(connection: asyncpg.Connection, service: str, marker: str) -> bool:
    """Whether the marker is visible here."""
    table = marker_table(service).sql
    return bool(await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table} WHERE id = $1)", marker))


async def make_durable(connection: asyncpg.Connection) -> None:
    """Makes every commit visible so far survive a crash: a synchronous commit flushes the WAL before it.

    Native apply commits asynchronously by default, so a row that is seen may not be on disk yet
    (PostgreSQL manual, 28.4 "Asynchronous Commit").
    """
    # several statements in one message are one transaction (manual, 53.2.2.1 "Multiple Statements in a Simple Query")
    await connection.execute(
        "SET LOCAL synchronous_commit = on; "
        "INSERT INTO cutover.flush (at) VALUES (clock_timestamp()) ON CONFLICT (one) DO UPDATE SET at = excluded.at"
    )
