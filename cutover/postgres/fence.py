"""The fence: a database's own refusal of application writes to a side that is not the primary.

Every migrated table, its partitions and children included, carries two statement-level triggers.
`ALTER TABLE … ENABLE TRIGGER` takes SHARE ROW EXCLUSIVE, which conflicts with every open writer: when
the transaction that enables them commits, no transaction that wrote before it is still open. So the
commit of the fence *is* the end of the drain (PostgreSQL manual, 13.3.1 "Table-Level Locks").

Native apply fires no statement triggers, so the write fence can be ENABLE ALWAYS, which stops sessions
in replica mode too; the truncate fence stays plain ENABLE, because replicated TRUNCATE does fire it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg

from cutover.postgres.identifiers import TableName, quote_literal

WRITES = "cutover_fence"
TRUNCATE = "cutover_fence_truncate"

FenceState = Literal["open", "fenced", "fenced-always", "missing", "broken"]


async def relations(connection: asyncpg.Connection, tables: Iterable[TableName]) -> tuple[TableName, ...]:
    """The tables with all their partitions and children, in the one fixed order in which they are locked."""
    rows = await connection.fetch(
        """
        WITH RECURSIVE tree(oid) AS (
            SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN unnest($1::text[], $2::text[]) AS wanted(schema, name) ON n.nspname = schema AND c.relname = name
            UNION
            SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
        )
        SELECT n.nspname AS schema, c.relname AS name FROM tree JOIN pg_class c USING (oid)
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')
        """,
        [t.schema for t in tables],
        [t.name for t in tables],
    )
    return tuple(sorted(TableName(row["schema"], row["name"]) for row in rows))


def lock_sql(members: Sequence[TableName]) -> str:
    """One LOCK for all tables, so that one statement_timeout limits the wait for all of them together."""
    return f"LOCK TABLE {', '.join('ONLY ' + m.sql for m in members)} IN SHARE ROW EXCLUSIVE MODE"


def close_sql(members: Sequence[TableName], *, always: bool) -> str:
    """Statements that fence the tables; `always` once the first copy is done."""
    how = "ENABLE ALWAYS" if always else "ENABLE"
    return ";".join(
        f"ALTER TABLE ONLY {m.sql} {how} TRIGGER {WRITES}; ALTER TABLE ONLY {m.sql} ENABLE TRIGGER {TRUNCATE}"
        for m in members
    )


def open_sql(members: Sequence[TableName]) -> str:
    """Statements that lift the fence."""
    return ";".join(
        f"ALTER TABLE ONLY {m.sql} DISABLE TRIGGER {WRITES}; ALTER TABLE ONLY {m.sql} DISABLE TRIGGER {TRUNCATE}"
        for m in members
    )


async def install(
    connection: asyncpg.Connection, service: str, tables: Iterable[TableName], *, closed: bool, lock_wait: str = "2s"
) -> int:
    """Gives every table that lacks one its fence, in the state asked for; returns how many were new.

    Created and disabled in one transaction, so that no writer of the primary ever meets it. Tables that
    have both triggers already keep their state: only a switch changes it.
    """
    async with connection.transaction():
        await connection.execute("SELECT set_config('lock_timeout', $1, true)", lock_wait)
        members = await relations(connection, tables)
        states = await states_of(connection, members)
        missing = [m for m in members if states[m] in ("missing", "broken")]
        for member in missing:
            if states[member] == "broken":
                await connection.execute(
                    f"DROP TRIGGER IF EXISTS {WRITES} ON {member.sql};DROP TRIGGER IF EXISTS {TRUNCATE} ON {member.sql}"
                )
        await create(connection, service, missing, closed=closed, always=False)
    return len(missing)


async def create(
    connection: asyncpg.Connection, service: str, members: Sequence[TableName], *, closed: bool, always: bool
) -> None:
    """Makes both triggers of tables that have none, in the state asked for; part of the caller's transaction."""
    argument = quote_literal(service)
    for member in members:
        await connection.execute(
            f"CREATE TRIGGER {WRITES} BEFORE INSERT OR UPDATE OR DELETE ON {member.sql} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION cutover.refuse({argument});"
            f"CREATE TRIGGER {TRUNCATE} BEFORE TRUNCATE ON {member.sql} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION cutover.refuse({argument})"
        )
    if members:
        await connection.execute(close_sql(members, always=always) if closed else open_sql(members))


async def make_always(connection: asyncpg.Connection, tables: Iterable[TableName], *, lock_wait: str = "2s") -> None:
    """Turns closed fences into ENABLE ALWAYS, once the first copy is done. Open fences stay open."""
    async with connection.transaction():
        await connection.execute("SELECT set_config('lock_timeout', $1, true)", lock_wait)
        members = await relations(connection, tables)
        states = await states_of(connection, members)
        closed = [m for m in members if states[m] == "fenced"]
        if closed:
            await connection.execute(close_sql(closed, always=True))


async def remove(connection: asyncpg.Connection, tables: Iterable[TableName], *, lock_wait: str = "2s") -> None:
    """Takes the fences away for good (cleanup)."""
    async with connection.transaction():
        await connection.execute("SELECT set_config('lock_timeout', $1, true)", lock_wait)
        for member in await relations(connection, tables):
            await connection.execute(
                f"DROP TRIGGER IF EXISTS {WRITES} ON {member.sql}; DROP TRIGGER IF EXISTS {TRUNCATE} ON {member.sql}"
            )


async def states_of(connection: asyncpg.Connection, members: Sequence[TableName]) -> dict[TableName, FenceState]:
    """What pg_trigger says of each table; `broken` when its two triggers do not agree."""
    rows = await connection.fetch(
        """
        SELECT n.nspname AS schema, c.relname AS name, t.tgname, t.tgenabled::text AS enabled
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE t.tgname = ANY ($1::text[])
        """,
        [WRITES, TRUNCATE],
    )
    found: dict[TableName, dict[str, str]] = {}
    for row in rows:
        found.setdefault(TableName(row["schema"], row["name"]), {})[row["tgname"]] = row["enabled"]
    return {member: _state(found.get(member, {})) for member in members}


def _state(triggers: dict[str, str]) -> FenceState:
    if not triggers:
        return "missing"
    match triggers.get(WRITES), triggers.get(TRUNCATE):
        case "D", "D":
            return "open"
        case "O", "O":
            return "fenced"
        case "A", "O":
            return "fenced-always"
        case _:
            return "broken"


@dataclass(frozen=True)
class Holder:
    """A session that stands in the fence's way. No query text: it may hold values of rows."""

    pid: int
    application: str
    role: str
    state: str
    table: str
    lock: str
    age_seconds: float

    def __str__(self) -> str:
        return (
            f"pid {self.pid} ({self.application or 'no name'}, role {self.role or 'server'}, {self.state}) holds "
            f"{self.lock} on {self.table} since {self.age_seconds:.1f} s"
        )


async def holders(
    connection: asyncpg.Connection, members: Sequence[TableName], *, older_than: float = 0.0
) -> list[Holder]:
    """Sessions whose locks conflict with the fence's and whose transaction is older than that many seconds."""
    rows = await connection.fetch(
        """
        SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.usename, '') AS role,
               coalesce(CASE WHEN a.backend_type = 'autovacuum worker' THEN a.backend_type ELSE a.state END, '')
                   AS state,
               l.relation::regclass::text AS "table", l.mode AS lock,
               coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS age_seconds
        FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE l.relation = ANY (SELECT to_regclass(t) FROM unnest($1::text[]) AS t) AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                         'ExclusiveLock', 'AccessExclusiveLock')
          AND a.pid <> pg_backend_pid()
          AND coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0) >= $2
        ORDER BY age_seconds DESC LIMIT 20
        """,
        [m.sql for m in members],
        older_than,
    )
    return [Holder(**row) for row in rows]
