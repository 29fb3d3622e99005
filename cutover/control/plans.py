"""Plans as registered, the one a running migration is bound to, and the tables that it has claimed.

A changed plan never applies silently: while a migration is bound to a plan, another one is registered as
pending only, and a running migration goes by it from the moment a person adopts it (`cutover.control.adoption`).
"""

from dataclasses import dataclass
from datetime import datetime

from cutover.control import audit
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.errors import Conflict, PlanReplaced, Refused
from cutover.plan.models import Plan
from cutover.postgres.identifiers import TableName


@dataclass(frozen=True)
class PlanRecord:
    """A registered plan. `active`: the migration goes by this one; `message` says what to do where it does not."""

    migration: str
    hash: str
    registered_at: datetime
    active: bool
    message: str = ""


async def register(control: Control, plan: Plan, by: str) -> PlanRecord:
    """Store the plan. Idempotent. While another plan is bound it is stored as pending: active False."""
    migration, plan_hash = plan.migration, plan.hash
    async with control.transaction() as connection:
        await connection.execute(
            "INSERT INTO control.plan (migration, hash, body, registered_by) VALUES ($1, $2, $3::text::json, $4)"
            " ON CONFLICT DO NOTHING",
            migration,
            plan_hash,
            plan.model_dump_json(),
            by,
        )
        before = await lock(connection, migration)
        await connection.execute(
            "INSERT INTO control.migration (migration, latest_hash) VALUES ($1, $2)"
            " ON CONFLICT (migration) DO UPDATE SET latest_hash = excluded.latest_hash",
            migration,
            plan_hash,
        )
        bound, latest = before
        pending = bound is not None and bound != plan_hash
        if latest != plan_hash:
            action = "plan.pending" if pending else "plan.registered"
            await audit.append(connection, Entry(by, action, migration, None, {"hash": plan_hash, "bound": bound}))
        registered_at = await connection.fetchval(
            "SELECT registered_at FROM control.plan WHERE migration = $1 AND hash = $2", migration, plan_hash
        )
    return PlanRecord(migration, plan_hash, registered_at, not pending, _remedy(migration, bound) if pending else "")


async def record(control: Control, migration: str) -> PlanRecord:
    """The plan that the migration goes by: the bound one, else the latest. Raises Refused before `register`.

    Where a newer plan is pending, `message` says so.
    """
    row = await control.fetchrow(
        "SELECT p.hash, p.registered_at, m.latest_hash <> p.hash AS newer FROM control.migration m"
        " JOIN control.plan p ON p.migration = m.migration AND p.hash = coalesce(m.bound_hash, m.latest_hash)"
        " WHERE m.migration = $1",
        migration,
    )
    if row is None:
        raise _unregistered(migration)
    message = _remedy(migration, row["hash"]) if row["newer"] else ""
    return PlanRecord(migration, row["hash"], row["registered_at"], True, message)


async def first_registered(control: Control, migration: str) -> str:
    """When the migration's first plan was registered, to the microsecond: what tells it from a rehearsal of the same
    plan with a control database of its own. "" where none was."""
    first: str = await control.fetchval(
        "SELECT coalesce(to_char(min(registered_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '')"
        " FROM control.plan WHERE migration = $1",
        migration,
    )
    return first


async def load(control: Control, migration: str, plan_hash: str | None = None) -> Plan:
    """The plan of that hash; without one the bound plan, else the latest. Raises Refused where there is none."""
    if plan_hash is None:
        plan_hash = (await record(control, migration)).hash
    body = await control.fetchval(
        "SELECT body::text FROM control.plan WHERE migration = $1 AND hash = $2", migration, plan_hash
    )
    if body is None:
        raise _unregistered(migration, plan_hash)
    return Plan.model_validate_json(body)


async def bind(control: Control, migration: str, plan_hash: str, by: str) -> str:
    """The migration goes by this plan from now on; the hash of the plan in force. Idempotent.

    That is another hash where a person has adopted another plan in place of this one: a run that was started under the
    former takes it over. Raises Refused where the migration runs by a plan that nobody adopted in place of this one.
    """
    async with control.transaction() as connection:
        registered = await connection.fetchval(
            "SELECT 1 FROM control.plan WHERE migration = $1 AND hash = $2", migration, plan_hash
        )
        bound, latest = await lock(connection, migration)
        if not registered or latest is None:
            raise _unregistered(migration, plan_hash)
        if bound == plan_hash:
            return plan_hash
        if bound is not None:
            if await connection.fetchval(
                "SELECT 1 FROM control.adoption WHERE migration = $1 AND from_hash = $2 LIMIT 1", migration, plan_hash
            ):
                return bound
            where = await running(connection, migration)
            if where:
                raise Refused(
                    f"{migration} runs by plan {short(bound)} ({where}); plan {short(plan_hash)} does not apply to it "
                    f"until a person adopts it (`cutover plan register FILE --adopt`), which voids the approvals given "
                    f"so far"
                )
        await set_bound(connection, migration, plan_hash, by)
        detail = {"hash": plan_hash, "from": bound, "approvals_voided": await void_approvals(connection, migration, by)}
        await audit.append(connection, Entry(by, "plan.bound", migration, None, detail))
    return plan_hash


async def require(control: Control, migration: str, plan_hash: str) -> None:
    """Raises PlanReplaced where the migration goes by another plan than this one."""
    async with control.transaction() as connection:
        await hold(connection, migration, plan_hash)


async def hold(connection: Connection, migration: str, plan_hash: str) -> None:
    """Until this transaction ends no other plan can be adopted. Raises PlanReplaced where one was already."""
    bound = await connection.fetchval(
        "SELECT bound_hash FROM control.migration WHERE migration = $1 FOR SHARE", migration
    )
    if bound is not None and plan_hash and bound != plan_hash:
        raise PlanReplaced(f"{migration} goes by plan {short(bound)} now, no longer by plan {short(plan_hash)}")


async def lock(connection: Connection, migration: str) -> tuple[str | None, str | None]:
    """(bound hash, latest hash) of the migration, its row locked; (None, None) before the first plan."""
    row = await connection.fetchrow(
        "SELECT bound_hash, latest_hash FROM control.migration WHERE migration = $1 FOR UPDATE", migration
    )
    return (row["bound_hash"], row["latest_hash"]) if row else (None, None)


async def running(connection: Connection, migration: str) -> str:
    """How far the migration is, in words; "" while nothing was done by its plan."""
    stage: str | None = await connection.fetchval(
        "SELECT coalesce(nullif(service, '') || ': ', '') || stage FROM control.stage"
        " WHERE migration = $1 AND stage <> 'registered' ORDER BY service LIMIT 1",
        migration,
    )
    if stage is not None:
        return stage
    claimed = await connection.fetchval("SELECT 1 FROM control.claim WHERE migration = $1 LIMIT 1", migration)
    return "in preparation" if claimed else ""


async def set_bound(connection: Connection, migration: str, plan_hash: str, by: str) -> None:
    """Write which plan the migration goes by; its row is locked by the caller."""
    await connection.execute(
        "UPDATE control.migration SET bound_hash = $2, bound_at = clock_timestamp(), bound_by = $3"
        " WHERE migration = $1",
        migration,
        plan_hash,
        by,
    )


async def void_approvals(connection: Connection, migration: str, by: str) -> int:
    """Every approval given so far was given to another plan; how many stood."""
    count: int = await connection.fetchval(
        "WITH voided AS (UPDATE control.approval SET voided_at = clock_timestamp(), void_reason = $2"
        "  WHERE migration = $1 AND voided_at IS NULL RETURNING 1) SELECT count(*) FROM voided",
        migration,
        f"another plan was put in force by {by}",
    )
    return count


async def taken(control: Control, plan: Plan, monolith: str) -> str:
    """In words, which of the plan's tables of that monolith another migration has taken; empty: none. Reads only."""
    async with control.connection() as connection:
        return await _taken(connection, plan, monolith)


async def claim_tables(control: Control, plan: Plan, monolith: str, *, by: str = "preparation") -> None:
    """Take the plan's tables of that monolith (system identifier and database, as one text). Idempotent.

    Raises Conflict, which names the other migration, where one of them is taken; nothing is claimed then.
    """
    async with control.transaction() as connection:
        await claim(connection, plan, monolith, by)


async def claim(connection: Connection, plan: Plan, monolith: str, by: str) -> None:
    """`claim_tables` inside the caller's transaction."""
    wanted = {str(TableName.parse(table)): name for name, service in plan.services.items() for table in service.tables}
    tables = sorted(wanted)
    # In one order for everybody, so that two migrations that claim at once cannot deadlock.
    made = await connection.fetch(
        "INSERT INTO control.claim (monolith, table_name, migration, service)"
        " SELECT $1, t, $3, s FROM unnest($2::text[], $4::text[]) AS wanted (t, s) ORDER BY t"
        " ON CONFLICT DO NOTHING RETURNING table_name",
        monolith,
        tables,
        plan.migration,
        [wanted[table] for table in tables],
    )
    if refusal := await _taken(connection, plan, monolith):
        raise Conflict(refusal)
    if made:
        detail = {"tables": sorted(row["table_name"] for row in made)}
        await audit.append(connection, Entry(by, "tables.claimed", plan.migration, None, detail))


async def begin_service(control: Control, migration: str, plan_hash: str, service: str) -> None:
    """From now on databases, tables and stream of the service are fixed: they are being built by. Idempotent.

    Raises PlanReplaced where another plan was adopted.
    """
    async with control.transaction() as connection:
        await hold(connection, migration, plan_hash)
        await connection.execute(
            "UPDATE control.claim SET begun_at = clock_timestamp()"
            " WHERE migration = $1 AND service = $2 AND begun_at IS NULL",
            migration,
            service,
        )


async def _taken(connection: Connection, plan: Plan, monolith: str) -> str:
    rows = await connection.fetch(
        "SELECT table_name, migration FROM control.claim"
        " WHERE monolith = $1 AND table_name = ANY ($2::text[]) AND migration <> $3 ORDER BY table_name",
        monolith,
        [str(TableName.parse(table)) for service in plan.services.values() for table in service.tables],
        plan.migration,
    )
    if not rows:
        return ""
    names = ", ".join(row["table_name"] for row in rows)
    others = ", ".join(sorted({row["migration"] for row in rows}))
    return (
        f"{plan.migration}: table(s) {names} of this monolith belong to migration {others}: wait for its cleanup, "
        f"which gives them back, or take the tables out of one of the two plans and register that one again "
        f"(`cutover plan register FILE --adopt`)"
    )


async def release_tables(control: Control, migration: str, *, by: str) -> int:
    """Give the migration's tables back, when it is cleaned up; how many. Idempotent."""
    async with control.transaction() as connection:
        rows = await connection.fetch("DELETE FROM control.claim WHERE migration = $1 RETURNING table_name", migration)
        if rows:
            detail = {"tables": sorted(row["table_name"] for row in rows)}
            await audit.append(connection, Entry(by, "tables.released", migration, None, detail))
    return len(rows)


def short(plan_hash: str | None) -> str:
    """A hash as people are shown it."""
    return (plan_hash or "none")[:12]


def _remedy(migration: str, bound: str | None) -> str:
    return (
        f"{migration} goes by plan {short(bound)}; a changed plan is registered and pending, and applies to nothing "
        f"until a person adopts it: `cutover plan register FILE --adopt`"
    )


def _unregistered(migration: str, plan_hash: str | None = None) -> Refused:
    which = f"plan {short(plan_hash)} of {migration}" if plan_hash else f"migration {migration}"
    return Refused(f"{which} is not registered: `cutover plan register FILE` first")
