"""Two-phase commit between the two databases of a service, with the primary as the last agent (design 5.3).

The application's transaction writes at the primary and so holds its rows' locks. Its changes are prepared at the other
side (a *branch*). Then the primary commits them together with a row of `cutover.decision`, and the branch is committed.
The row is written beforehand, as it is in force with the commit and not before.

**Absence is decided, never observed.** A branch without a decision may belong to a process that is about to commit it.
Whoever wants to know inserts ABORT under the same id first. That insert waits for a decision in flight, and makes a
later one fail; what stands afterwards is the outcome for good. The same row tells what became of any write whose answer
was lost, and it holds after a crash or a failover of the server too: it is part of the transaction that it speaks of.
(`pg_xact_status` is not: a promoted standby gives transaction ids of lost commits to other transactions.)
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import asyncpg

from cutover.errors import Conflict
from cutover.postgres.compare import TEXT_SETTINGS
from cutover.postgres.identifiers import TableName, quote_literal
from cutover.postgres.keys import Key
from cutover.postgres.outbox_schema import PRUNED, outbox_table, own_function
from cutover.postgres.outbox_source import Change
from cutover.postgres.outbox_tables import Flow, Redefined

Decision = Literal["commit", "abort"]

BRANCH = "cutover"
WRITE = "write"
#: What a server takes for the name of a prepared transaction (manual, PREPARE TRANSACTION: less than 200 bytes).
MOST_BYTES = 199


def branch_id(service: str, epoch: int) -> str:
    """A new id for a branch. Services have names of at most 40 plain characters, so it fits."""
    return f"{BRANCH}:{service}:{epoch}:{uuid.uuid4()}"


def write_id(service: str) -> str:
    """A new id for a write that has no branch."""
    return f"{WRITE}:{service}:{uuid.uuid4()}"


async def installed(connection: asyncpg.Connection, service: str) -> bool:
    """Whether the intents of this service are captured into this database, and decisions can be kept in it."""
    return bool(
        await connection.fetchval(
            "SELECT to_regclass('cutover.decision') IS NOT NULL AND to_regclass($1) IS NOT NULL "
            "AND to_regproc($2) IS NOT NULL",
            outbox_table(service).sql,
            own_function(service).sql,
        )
    )


async def most_prepared(connection: asyncpg.Connection) -> int:
    """Transactions that the server lets be prepared at once; 0 where it has the feature switched off."""
    return int(await connection.fetchval("SELECT current_setting('max_prepared_transactions')::int"))


# ------------------------------------------------------------------ at the primary, in the application's transaction

#: Under which rows read as in every stream; the names in the statement are qualified, so that no search path matters.
_SETTINGS = {name: value for name, value in TEXT_SETTINGS.items() if name not in ("search_path", "row_security")}
#: For tables with deferred triggers or checks, which must not change anything behind the reading, or with row policies,
#: which must not hide a row from it.
_CAREFULLY = "SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL row_security = off"
_CARE = """
SELECT coalesce(bool_or(c.relrowsecurity OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid
    AND t.tgdeferrable)), false) FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1::text[]::regclass[]::oid[])
"""


@dataclass(frozen=True)
class OwnChanges:
    """How a transaction reads its own changes; `shape` stands for what its tables were when that was prepared."""

    sql: str
    shape: int
    carefully: bool


async def own_changes(connection: asyncpg.Connection, service: str, flows: Mapping[str, Flow]) -> OwnChanges:
    """Prepares the reading. `connection` is one to the primary."""
    tables = ", ".join(f"{quote_literal(flow.table.sql)}::regclass" for flow in flows.values())
    shape = (
        "(SELECT sum(c.relnatts + 10000 * c.relrowsecurity::int) FROM pg_catalog.pg_class c "
        f"WHERE c.oid IN ({tables}))::int8"
    )
    parts = []
    for flow in flows.values():
        key = ", ".join(f"o.key[{n + 1}] AS k{n}" for n in range(flow.width))
        parts.append(
            "SELECT v.shard, v.version, v.tbl, v.key, m.image FROM "
            f"(SELECT o.*, {key} FROM own o WHERE o.tbl = {quote_literal(flow.name)} OFFSET 0) AS v "
            f"LEFT JOIN LATERAL (SELECT {flow.image} AS image FROM {flow.source.relation} AS t "
            f"WHERE {flow.source.same_key()}{flow.spelled(flow.source)}) AS m ON true"
        )
    names = ", ".join(quote_literal(name) for name in flows)
    parts.append(f"SELECT o.shard, o.version, NULL, o.key, NULL FROM own o WHERE o.tbl NOT IN ({names})")
    settings = ", ".join(
        f"pg_catalog.set_config({quote_literal(name)}, {quote_literal(value)}, true)"
        for name, value in _SETTINGS.items()
    )
    # The settings are there before the first row is: each row of `own` needs one of `alike`, and each image one of
    # `own`. The commit must be on disk before the other side goes by it, whatever the role or database has.
    sql = (
        f"WITH alike AS MATERIALIZED (SELECT {settings}, CASE WHEN pg_catalog.current_setting('synchronous_commit') "
        "IN ('off', 'local') THEN pg_catalog.set_config('synchronous_commit', 'on', true) END), "
        f"own AS MATERIALIZED (SELECT o.* FROM alike CROSS JOIN {own_function(service).sql}() AS o), "
        "decided AS (INSERT INTO cutover.decision (gid, service, outcome) "
        f"SELECT $1::text, {quote_literal(service)}, 'commit' WHERE EXISTS (SELECT FROM own) "
        "OR pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL) "  # of tables that are not captured
        f"SELECT x.*, {shape} AS shape FROM ({' UNION ALL '.join(parts)}) AS x"
    )
    carefully = await connection.fetchval(_CARE, [flow.table.sql for flow in flows.values()])
    return OwnChanges(sql, int(await connection.fetchval(f"SELECT {shape}")), bool(carefully))


async def decide_own(connection: asyncpg.Connection, own: OwnChanges, gid: str) -> list[Change]:
    """This transaction's changes, each key once; and the row that decides on them, in force when it commits.

    To be the transaction's last statement: the settings under which rows travel are its settings from here on.
    Raises Redefined where a table has got columns since the reading was prepared (other changes of columns are errors
    of the statement), Conflict for changes of a table that the plan does not name any more.
    """
    if own.carefully:
        await connection.execute(_CAREFULLY)
    intents: dict[tuple[str, Key], list[tuple[int, int]]] = {}
    images: dict[tuple[str, Key], str | None] = {}
    for shard, version, name, key, image, shape in await connection.fetch(own.sql, gid):
        if name is None:
            raise Conflict("a table was written whose changes are captured, but which the plan does not name any more")
        if shape != own.shape:
            raise Redefined("a table has got other columns; they are read anew")
        place = (name, tuple(key))
        intents.setdefault(place, []).append((shard, version))
        images[place] = image
    changes = []
    for place, mine in intents.items():
        shard, version = max(mine, key=lambda intent: intent[1])
        changes.append(Change(place[0], place[1], shard, version, images[place], tuple(mine)))
    return changes


def note_sql(gid: str, service: str) -> str:
    """Notes a transaction without a branch, for the simple protocol: COMMIT follows it in the same message.

    One that has written nothing is not noted.
    """
    return (
        "INSERT INTO cutover.decision (gid, service, outcome) "
        f"SELECT {quote_literal(gid)}, {quote_literal(service)}, 'commit' "
        "WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
    )


def noted_sql(service: str, parameter: int) -> str:
    """A part of a WITH clause that notes the id in that parameter, in the statement that it stands in."""
    return (
        "cutover_noted AS (INSERT INTO cutover.decision (gid, service, outcome) "
        f"VALUES (${parameter}::text, {quote_literal(service)}, 'commit'))"
    )


# ------------------------------------------------------------------ at the other side


def begin_sql(service: str, tables: Sequence[TableName]) -> str:
    """Begins a branch: with the lock that copies wait for, and those that a fence or an unfence conflicts with.

    A switch that opens this side waits for the branch, or has been here before: then the epoch row says so.
    """
    return (
        "BEGIN ISOLATION LEVEL READ COMMITTED; "
        f"SELECT pg_advisory_xact_lock_shared(hashtextextended({quote_literal('cutover.outbox/' + service)}, 0)); "
        f"LOCK TABLE {', '.join('ONLY ' + table.sql for table in tables)} IN ROW EXCLUSIVE MODE"
    )


async def prepare(connection: asyncpg.Connection, gid: str) -> None:
    """Makes the open branch survive everything but the decision."""
    await connection.execute(f"PREPARE TRANSACTION {quote_literal(gid)}")


async def end(connection: asyncpg.Connection, gid: str, decision: Decision) -> bool:
    """Carries the decision out; False where the branch is not there, so that somebody else has done so."""
    verb = "COMMIT" if decision == "commit" else "ROLLBACK"
    try:
        await connection.execute(f"{verb} PREPARED {quote_literal(gid)}")
    except asyncpg.UndefinedObjectError:
        return False
    return True


@dataclass(frozen=True)
class Branch:
    """A prepared transaction of ours in this database; `age` in seconds by its clock."""

    gid: str
    age: float


async def branches(connection: asyncpg.Connection, service: str) -> list[Branch]:
    """The service's branches in this database, oldest first."""
    rows = await connection.fetch(
        "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age FROM pg_catalog.pg_prepared_xacts "
        "WHERE database = current_database() AND starts_with(gid, $1) ORDER BY prepared",
        f"{BRANCH}:{service}:",
    )
    return [Branch(row["gid"], row["age"]) for row in rows]


@dataclass(frozen=True)
class InDoubt:
    """A prepared transaction that stands; `ours`: a branch of the service, which a janitor may end."""

    gid: str
    owner: str
    age: float
    ours: bool


async def in_doubt(
    connection: asyncpg.Connection, service: str, members: Sequence[TableName], older_than: float
) -> list[InDoubt]:
    """Branches of the service, and prepared transactions of others that hold a lock on one of these tables.

    Oldest first, those that are at least `older_than` seconds old by this database's clock.
    """
    rows = await connection.fetch(
        """
        SELECT p.gid, p.owner::text AS owner, extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS age,
               starts_with(p.gid, $1) AS ours
        FROM pg_catalog.pg_prepared_xacts p
        WHERE p.database = current_database() AND p.prepared <= clock_timestamp() - make_interval(secs => $2)
          AND (starts_with(p.gid, $1) OR EXISTS (
              SELECT FROM pg_catalog.pg_locks x JOIN pg_catalog.pg_locks l USING (virtualtransaction)
              WHERE x.transactionid = p.transaction AND x.pid IS NULL AND l.pid IS NULL
                AND l.relation = ANY (SELECT to_regclass(t) FROM unnest($3::text[]) AS t)))
        ORDER BY p.prepared LIMIT 20
        """,
        f"{BRANCH}:{service}:",
        older_than,
        [member.sql for member in members],
    )
    return [InDoubt(**row) for row in rows]


# ------------------------------------------------------------------ whoever wants to know


async def decide(connection: asyncpg.Connection, gid: str, service: str, lock_timeout: float) -> Decision:
    """What became of it, at the primary where it would have been committed: an abort, unless it was.

    Waits for a decision in flight, `lock_timeout` seconds at most; then asyncpg.LockNotAvailableError. Both answers
    are on disk when they are given.
    """
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(f"SET LOCAL lock_timeout = {max(int(lock_timeout * 1000), 1)}")
        await connection.execute("SET LOCAL synchronous_commit = on")
        await connection.execute(
            "INSERT INTO cutover.decision (gid, service, outcome) VALUES ($1, $2, 'abort') ON CONFLICT DO NOTHING",
            gid,
            service,
        )
    # a statement of its own: its snapshot shows what the insert waited for
    outcome: Decision = await connection.fetchval("SELECT outcome FROM cutover.decision WHERE gid = $1", gid)
    return outcome


async def prune(connection: asyncpg.Connection, service: str, standing: Sequence[str], keep_seconds: float) -> int:
    """Deletes decisions on branches that are older than that and not among those that stand; how many."""
    status = await connection.execute(
        "DELETE FROM cutover.decision WHERE service = $1 AND starts_with(gid, $2) AND NOT gid = ANY ($3::text[]) "
        "AND at < clock_timestamp() - make_interval(secs => $4)",
        service,
        f"{BRANCH}:{service}:",
        list(standing),
        keep_seconds,
    )
    return int(status.rpartition(" ")[2])


async def prune_writes(connection: asyncpg.Connection) -> int:
    """Deletes ids of writes that nobody may ask for any more, all there are; how many. For every role."""
    pruned = 0
    while True:
        some = int(await connection.fetchval("SELECT cutover.prune_decisions()"))
        pruned += some
        if some < PRUNED:
            return pruned
