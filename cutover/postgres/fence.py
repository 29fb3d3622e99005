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
from cutover.postgres.locks import with_lock_limit

WRITES = "cutover_fence"
TRUNCATE = "cutover_fence_truncate"

#: `broken`: its two triggers do not agree. `altered`: one of them is not the trigger that was made.
FenceState = Literal["open", "fenced", "fenced-always", "missing", "broken", "altered"]
#: The fences that refuse; by every other one a table takes writes.
SHUT = ("fenced", "fenced-always")
#: What has to be made anew rather than switched on or off.
_UNWHOLE = ("missing", "broken", "altered")


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


def lock_within_sql(members: Sequence[TableName], milliseconds: int) -> str:
    """The same with a limit of that wait, in one message; what comes after it in the transaction has none."""
    return f"SET LOCAL statement_timeout = {milliseconds}; {lock_sql(members)}; SET LOCAL statement_timeout = 0"


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


async def install(connection: asyncpg.Connection, service: str, tables: Iterable[TableName], *, closed: bool) -> int:
    """Gives every table that lacks one its fence, in the state asked for; returns how many were new.

    Created and disabled in one transaction, a table at a time, so that no writer of the primary ever meets it or
    queues behind it. Tables that have both triggers already keep their state: only a switch changes it.
    Raises NotYet that names who holds a table.
    """
    members = await relations(connection, tables)
    states = await states_of(connection, members)
    missing = [m for m in members if states[m] in _UNWHOLE]
    for member in missing:
        made = create_sql(service, member, closed=closed, always=False)
        await with_lock_limit(connection, made, [member], f"fence of {member}")
    return len(missing)


def create_sql(service: str, member: TableName, *, closed: bool, always: bool) -> str:
    """Statements that make both triggers of a table, whole again where they were not, in the state asked for."""
    argument = quote_literal(service)
    return (
        f"DROP TRIGGER IF EXISTS {WRITES} ON {member.sql};"
        f"DROP TRIGGER IF EXISTS {TRUNCATE} ON {member.sql};"
        f"CREATE TRIGGER {WRITES} BEFORE INSERT OR UPDATE OR DELETE ON {member.sql} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION cutover.refuse({argument});"
        f"CREATE TRIGGER {TRUNCATE} BEFORE TRUNCATE ON {member.sql} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION cutover.refuse({argument});"
        + (close_sql([member], always=always) if closed else open_sql([member]))
    )


async def make_always(connection: asyncpg.Connection, tables: Iterable[TableName]) -> None:
    """Turns closed fences into ENABLE ALWAYS, once the first copy is done. Open fences stay open."""
    members = await relations(connection, tables)
    states = await states_of(connection, members)
    for member in members:
        if states[member] == "fenced":
            await with_lock_limit(connection, close_sql([member], always=True), [member], f"fence of {member}")


async def ensure(
    connection: asyncpg.Connection, service: str, members: Sequence[TableName], *, closed: bool, always: bool = True
) -> list[TableName]:
    """Inside the caller's transaction: every fence as it has to be; the tables that were not so.

    `always` False while the first copy has to pass a closed one.

    A fence that somebody dropped, or that a new partition never had, is made: neither a switch nor its undoing may
    fail for it. Tables that are so already are not locked.
    """
    states = await states_of(connection, members)
    shut = ("fenced-always",) if always else ("fenced", "fenced-always")
    different = [member for member in members if states[member] not in (shut if closed else ("open",))]
    unwhole = [member for member in different if states[member] in _UNWHOLE]
    if unwhole:
        await connection.execute(lock_sql(unwhole))
        await connection.execute(";".join(create_sql(service, m, closed=closed, always=always) for m in unwhole))
    if whole := [member for member in different if member not in unwhole]:
        await connection.execute(close_sql(whole, always=always) if closed else open_sql(whole))
    return different


async def remove(connection: asyncpg.Connection, tables: Iterable[TableName]) -> None:
    """Takes the fences away for good (cleanup), a table at a time."""
    for member in await relations(connection, tables):
        drop = f"DROP TRIGGER IF EXISTS {WRITES} ON {member.sql}; DROP TRIGGER IF EXISTS {TRUNCATE} ON {member.sql}"
        await with_lock_limit(connection, drop, [member], f"fence of {member}")


async def states_of(connection: asyncpg.Connection, members: Sequence[TableName]) -> dict[TableName, FenceState]:
    """What pg_trigger says of each table. tgtype: before each statement, 30 of its rows, 34 of a truncate."""
    rows = await connection.fetch(
        """
        SELECT n.nspname AS schema, c.relname AS name, t.tgname,
               CASE WHEN t.tgfoid = to_regproc('cutover.refuse') AND t.tgqual IS NULL AND t.tgattr = ''
                         AND t.tgtype = CASE t.tgname WHEN $2 THEN 30 ELSE 34 END
                    THEN t.tgenabled::text ELSE 'altered' END AS enabled
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE t.tgname = ANY ($1::text[])
        """,
        [WRITES, TRUNCATE],
        WRITES,
    )
    found: dict[TableName, dict[str, str]] = {}
    for row in rows:
        found.setdefault(TableName(row["schema"], row["name"]), {})[row["tgname"]] = row["enabled"]
    return {member: _state(found.get(member, {})) for member in members}


def _state(triggers: dict[str, str]) -> FenceState:
    if not triggers:
        return "missing"
    if "altered" in triggers.values():
        return "altered"
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
    #: An autovacuum worker that the server cancels once somebody has waited for `deadlock_timeout`.
    yields: bool = False

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
               coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS age_seconds,
               a.backend_type = 'autovacuum worker' AND a.query NOT LIKE '%to prevent wraparound%' AS yields
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
