"""Native logical replication: publications, slots and subscriptions, each call idempotent.

Slots are made apart from the subscription: CREATE SUBSCRIPTION makes its slot at the publisher before it
commits here, so a kill in between would leave a slot that the next try stumbles over. The names of slots belong to the
whole server, ours to one database: another migration's service may have the same, so every look asks for the database.
`origin = none` on both directions needs both servers at 16 or newer (manual, CREATE SUBSCRIPTION): an older subscriber
refuses it, an older publisher drops it silently.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from cutover.errors import Conflict, NotYet, Unreachable
from cutover.postgres.databases import CONNECTION_ERRORS, Database
from cutover.postgres.identifiers import TableName, quote, quote_literal
from cutover.postgres.quiet import silence_log

#: How long the making of a slot waits for transactions that are open already.
SLOT_SECONDS = 30.0
#: With what a server says that it cannot make a subscription just now.
_PASSING = (*CONNECTION_ERRORS, asyncpg.InsufficientResourcesError, asyncpg.OperatorInterventionError)
_SLOTS = "(SELECT * FROM pg_replication_slots WHERE database = current_database())"
_ELSEWHERE = "SELECT database IS DISTINCT FROM current_database() FROM pg_replication_slots WHERE slot_name = $1"
_OLD_WRITERS = """
SELECT pid, coalesce(application_name, '') AS application, coalesce(usename, '') AS role, coalesce(state, '') AS state,
       round(extract(epoch FROM clock_timestamp() - xact_start))::int AS seconds
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 5
"""


def tells_origins_apart(connection: asyncpg.Connection) -> bool:
    """Whether this server knows `origin = none`: it then sends on only what was written here."""
    return connection.get_server_version().major >= 16


async def ensure_publication(connection: asyncpg.Connection, name: str, tables: Sequence[TableName]) -> None:
    """A publication of exactly these tables; a changed list is set again."""
    listed = ", ".join(t.sql for t in tables)
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", name):
        # a second attempt of the same activity may be a moment earlier; its list is checked below
        with suppress(asyncpg.DuplicateObjectError):
            await connection.execute(
                f"CREATE PUBLICATION {quote(name)} FOR TABLE {listed} WITH (publish_via_partition_root = true)"
            )
    rows = await connection.fetch(
        "SELECT schemaname AS schema, tablename AS name FROM pg_publication_tables WHERE pubname = $1", name
    )
    if {TableName(r["schema"], r["name"]) for r in rows} != set(tables):
        await connection.execute(f"ALTER PUBLICATION {quote(name)} SET TABLE {listed}")


async def publication_oid(connection: asyncpg.Connection, name: str) -> int | None:
    """Another one where a publication of that name was dropped and made anew; None where there is none."""
    oid: int | None = await connection.fetchval("SELECT oid::bigint FROM pg_publication WHERE pubname = $1", name)
    return oid


async def drop_publication(connection: asyncpg.Connection, name: str) -> None:
    await connection.execute(f"DROP PUBLICATION IF EXISTS {quote(name)}")


async def has_slot(connection: asyncpg.Connection, name: str) -> bool:
    return bool(await connection.fetchval(f"SELECT EXISTS (SELECT FROM {_SLOTS} s WHERE slot_name = $1)", name))


async def create_slot(connection: asyncpg.Connection, name: str) -> None:
    """A pgoutput slot. Waits for every writing transaction that is open in the cluster; none of ours may be.

    Raises NotYet that names the oldest of them after `SLOT_SECONDS`; a slot that was not finished does not stay.
    Conflict where another database of the server has a slot of that name.
    """
    try:
        async with asyncio.timeout(SLOT_SECONDS):
            await connection.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name)
    except TimeoutError:
        rows = await connection.fetch(_OLD_WRITERS)
        named = "; ".join(
            f"pid {r['pid']} ({r['application'] or 'no name'}, role {r['role']}, {r['state']}) since {r['seconds']} s"
            for r in rows
        )
        raise NotYet(
            f"replication slot {name!r} waits for transactions that were open before it: {named or 'gone by now'}"
        ) from None
    except asyncpg.DuplicateObjectError:
        if not await connection.fetchval(_ELSEWHERE, name):
            raise  # made, and maybe dropped again, by another attempt
        raise Conflict(
            f"replication slot {name!r} belongs to another database of this server; another migration may have a "
            "service of the same name: rename the service in the plan, or drop that slot if nobody needs it"
        ) from None


async def drop_slot(connection: asyncpg.Connection, name: str) -> None:
    """Drops a slot that nobody reads, at once, whatever becomes of the caller's transaction.

    Raises NotYet while a walsender still holds it.
    """
    try:
        async with connection.transaction():
            await connection.execute(
                f"SELECT pg_drop_replication_slot(slot_name) FROM {_SLOTS} s WHERE slot_name = $1", name
            )
    except asyncpg.ObjectInUseError:
        await connection.execute(
            f"SELECT pg_terminate_backend(active_pid) FROM {_SLOTS} s WHERE slot_name = $1 AND active_pid IS NOT NULL",
            name,
        )
        raise NotYet(f"replication slot {name!r} is still in use; its reader was told to end") from None


async def move_slot_to_now(connection: asyncpg.Connection, name: str) -> None:
    """Moves a slot that nobody reads past all that is flushed; what was before is not sent. Raises NotYet."""
    try:
        await connection.execute(
            f"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM {_SLOTS} s "
            "WHERE slot_name = $1 AND confirmed_flush_lsn < pg_current_wal_flush_lsn()",
            name,
        )
    except asyncpg.ObjectInUseError:
        raise NotYet(f"replication slot {name!r} is still being read") from None


async def create_subscription(
    connection: asyncpg.Connection,
    name: str,
    publisher: Database,
    publication: str,
    *,
    copy: bool,
    enabled: bool = True,
    origins: bool = True,
) -> None:
    """A subscription on a slot of the same name that exists already; `origins`: send on only what was written there.

    Raises Unreachable where a server cannot just now, Conflict where a person has to change something.
    """
    try:
        async with connection.transaction():
            await silence_log(connection)  # of the publisher's password
            await connection.execute(
                f"CREATE SUBSCRIPTION {quote(name)} CONNECTION {quote_literal(publisher.conninfo)} "
                f"PUBLICATION {quote(publication)} WITH (create_slot = false, slot_name = {quote_literal(name)}, "
                f"copy_data = {'true' if copy else 'false'}, enabled = {'true' if enabled else 'false'}, streaming = on"
                + (", origin = none)" if origins else ")")
            )
    except asyncpg.DuplicateObjectError:
        return
    except asyncpg.PostgresError as error:
        # the server's text may hold the connection string
        what = f"subscription {name!r} cannot be created ({error.sqlstate}, {type(error).__name__})"
        if isinstance(error, _PASSING) and not isinstance(error, asyncpg.ConfigurationLimitExceededError):
            why = f"a disk may be full, a server be restarting, or {publisher.name!r} not let the other one in"
            raise Unreachable(f"{what}: {why}; it is tried again") from None
        why = f"does the other server reach {publisher.name!r}, and may this role create subscriptions?"
        raise Conflict(f"{what}: {why}") from None


async def disable(connection: asyncpg.Connection, name: str) -> None:
    """Stops the subscription where there is one."""
    if await has_subscription(connection, name):
        await set_enabled(connection, name, False)


async def leave_slot(connection: asyncpg.Connection, name: str) -> None:
    """Parts a disabled subscription, where there is one, from its slot: to drop it takes no publisher then."""
    if await has_subscription(connection, name):
        await connection.execute(f"ALTER SUBSCRIPTION {quote(name)} SET (slot_name = NONE)")


async def drop_subscription(connection: asyncpg.Connection, name: str) -> None:
    """Drops a subscription that has left its slot; `drop_slot` takes that away at the publisher."""
    await connection.execute(f"DROP SUBSCRIPTION IF EXISTS {quote(name)}")


async def has_subscription(connection: asyncpg.Connection, name: str) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_subscription WHERE subname = $1 AND subdbid = "
            "(SELECT oid FROM pg_database WHERE datname = current_database()))",
            name,
        )
    )


async def is_enabled(connection: asyncpg.Connection, name: str) -> bool | None:
    """Whether the subscription is enabled; None where it is not there."""
    enabled: bool | None = await connection.fetchval(
        "SELECT subenabled FROM pg_subscription WHERE subname = $1 AND subdbid = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())",
        name,
    )
    return enabled


async def end_worker(connection: asyncpg.Connection, name: str) -> bool:
    """Tells the workers of a disabled subscription to end; whether there were any still.

    An idle one would not notice before the next second (14, 15).
    """
    rows = await connection.fetch(
        "SELECT pg_terminate_backend(st.pid) FROM pg_stat_subscription st JOIN pg_subscription s ON s.oid = st.subid "
        "WHERE s.subname = $1 AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND NOT s.subenabled AND st.pid IS NOT NULL",
        name,
    )
    return bool(rows)


async def set_enabled(connection: asyncpg.Connection, name: str, enabled: bool) -> None:
    await connection.execute(f"ALTER SUBSCRIPTION {quote(name)} {'ENABLE' if enabled else 'DISABLE'}")


@dataclass(frozen=True)
class TableState:
    """How far a table's first copy is: `i`nit, `d`ata copy, `f`inished copy, `s`ynchronised, `r`eady."""

    table: TableName
    state: str
    rows_copied: int
    bytes_copied: int


async def table_states(connection: asyncpg.Connection, subscription: str) -> list[TableState]:
    """One row per subscribed table, with the rows and bytes of a copy that is under way."""
    rows = await connection.fetch(
        """
        SELECT n.nspname AS schema, c.relname AS name, r.srsubstate::text AS state,
               coalesce(p.tuples_processed, 0) AS rows_copied, coalesce(p.bytes_processed, 0) AS bytes_copied
        FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
        JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_stat_progress_copy p ON p.relid = c.oid
        WHERE s.subname = $1 AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY 1, 2
        """,
        subscription,
    )
    return [
        TableState(TableName(r["schema"], r["name"]), r["state"], r["rows_copied"], r["bytes_copied"]) for r in rows
    ]


@dataclass(frozen=True)
class SubscriptionHealth:
    exists: bool
    enabled: bool
    worker_running: bool
    apply_errors: int
    sync_errors: int


_ERROR_COUNTS = "pg_stat_subscription_stats"
#: 14 counts no errors. A worker does not survive one, so it has had none for as long as it lives: `since` is its birth.
_NO_ERROR_COUNTS = """(
    SELECT st.subid, 0::bigint AS apply_error_count, 0::bigint AS sync_error_count, a.backend_start AS stats_reset
    FROM pg_stat_subscription st JOIN pg_stat_activity a ON a.pid = st.pid WHERE st.relid IS NULL)"""


def counts_errors(connection: asyncpg.Connection) -> bool:
    """Whether this server counts the errors of its subscriptions."""
    return connection.get_server_version().major >= 15


async def subscription_health(connection: asyncpg.Connection, name: str) -> SubscriptionHealth:
    """The subscription as its own server sees it. Where errors are not counted there seem to be none."""
    counts = _ERROR_COUNTS if counts_errors(connection) else _NO_ERROR_COUNTS
    row = await connection.fetchrow(
        f"""
        SELECT s.subenabled, st.pid IS NOT NULL AS running,
               coalesce(e.apply_error_count, 0) AS apply_errors, coalesce(e.sync_error_count, 0) AS sync_errors
        FROM pg_subscription s
        LEFT JOIN pg_stat_subscription st ON st.subid = s.oid AND st.relid IS NULL AND st.pid IS NOT NULL
        LEFT JOIN {counts} e ON e.subid = s.oid
        WHERE s.subname = $1 AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
        name,
    )
    if row is None:
        return SubscriptionHealth(False, False, False, 0, 0)
    return SubscriptionHealth(True, row["subenabled"], row["running"], row["apply_errors"], row["sync_errors"])


@dataclass(frozen=True)
class SubscriptionCounts:
    """What the server has counted of a subscription's work. All of it only rises, until something resets it.

    `subscription` is its oid: another one is another stream. `since` changes with each reset that the server notes.
    """

    subscription: int
    since: str
    read_at: datetime
    failures: int
    rows: int


async def subscription_counts(
    connection: asyncpg.Connection, name: str, members: Sequence[TableName]
) -> SubscriptionCounts | None:
    """Failed attempts of apply and first copy, and rows written to the members; None without the subscription.

    Read one after the other, so that a later `read_at` never goes with lower counts. Sources: the views
    pg_stat_subscription_stats and pg_stat_all_tables (manual, 27.2 "The Cumulative Statistics System"). Where errors
    are not counted (14), counting begins anew with every worker that starts.
    """
    counts = _ERROR_COUNTS if counts_errors(connection) else _NO_ERROR_COUNTS
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7239100007))", name)
        row = await connection.fetchrow(
            f"""
            SELECT s.oid::bigint AS subscription,
                   concat_ws(' ', e.stats_reset, (SELECT stats_reset FROM pg_stat_database
                                                  WHERE datname = current_database())) AS since,
                   clock_timestamp() AS read_at, (e.apply_error_count + e.sync_error_count)::bigint AS failures,
                   (SELECT coalesce(sum(t.n_tup_ins + t.n_tup_upd + t.n_tup_del), 0)::bigint
                    FROM unnest($2::text[], $3::text[]) AS wanted(schema, name)
                    JOIN pg_stat_all_tables t ON t.schemaname = wanted.schema AND t.relname = wanted.name) AS rows
            FROM pg_subscription s JOIN {counts} e ON e.subid = s.oid
            WHERE s.subname = $1 AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            """,
            name,
            [m.schema for m in members],
            [m.name for m in members],
        )
    return SubscriptionCounts(**row) if row and row["failures"] is not None else None


@dataclass(frozen=True)
class SlotHealth:
    exists: bool
    active: bool
    wal_status: str
    behind_bytes: int


async def slot_health(connection: asyncpg.Connection, name: str) -> SlotHealth:
    """The slot as its publisher sees it; `behind_bytes` from the insert position, not the flushed one."""
    row = await connection.fetchrow(
        "SELECT active, coalesce(wal_status, 'lost') AS wal_status, "
        "coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), confirmed_flush_lsn), 0)::bigint AS behind "
        f"FROM {_SLOTS} s WHERE slot_name = $1",
        name,
    )
    if row is None:
        return SlotHealth(False, False, "missing", 0)
    return SlotHealth(True, row["active"], row["wal_status"], row["behind"])


@dataclass(frozen=True)
class SlotFacts:
    """A slot with what tells it from one that was made anew under its name.

    `decoded`: transactions that it has given out, which begins at 0 for a new slot; `since` changes where the server
    began all of its counters anew (a crash, a reset). Source: pg_stat_replication_slots (manual, 27.2.5).
    """

    wal_status: str
    invalidated: str
    decoded: int
    since: str


async def slot_facts(connection: asyncpg.Connection, name: str) -> SlotFacts | None:
    """None where there is no such slot. Later versions say why a slot was invalidated; all say that it was."""
    row = await connection.fetchrow(
        f"""
        SELECT coalesce(s.wal_status, 'lost') AS wal_status, coalesce(t.total_txns, 0)::bigint AS decoded,
               coalesce(to_jsonb(s) ->> 'invalidation_reason', '') AS invalidated,
               concat_ws(' ', pg_postmaster_start_time(), t.stats_reset, (SELECT stats_reset FROM pg_stat_wal)) AS since
        FROM {_SLOTS} s LEFT JOIN pg_stat_replication_slots t USING (slot_name) WHERE s.slot_name = $1
        """,
        name,
    )
    return SlotFacts(**row) if row else None


def enable_sql(subscription: str) -> str:
    """A statement for a person that lets a disabled subscription go on."""
    return f"ALTER SUBSCRIPTION {quote(subscription)} ENABLE"


async def estimated_rows(connection: asyncpg.Connection, tables: Sequence[TableName]) -> dict[TableName, int]:
    """The planner's row counts; a partitioned table counts its partitions. -1 (never analysed) reads as 0."""
    rows = await connection.fetch(
        """
        SELECT t.schema, t.name, (
            SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_partition_tree(to_regclass(t.sql)) p
            JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf) AS partitioned,
            (SELECT greatest(c.reltuples, 0)::bigint FROM pg_class c WHERE c.oid = to_regclass(t.sql)) AS plain
        FROM unnest($1::text[], $2::text[], $3::text[]) AS t(schema, name, sql)
        """,
        [t.schema for t in tables],
        [t.name for t in tables],
        [t.sql for t in tables],
    )
    return {TableName(r["schema"], r["name"]): max(r["partitioned"] or 0, r["plain"] or 0) for r in rows}
