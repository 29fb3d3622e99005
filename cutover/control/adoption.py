"""Adoption: a person puts another plan in the place of the one that a running migration goes by.

It is one transaction: the binding, the approvals that no longer count, claims and tasks by the new plan, an audit row.
What runs takes the new plan over at its next safe point (`plans.bind` tells it). Nothing that has been built by the
former plan may differ, for nobody would build it again: such an adoption is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from cutover.control import audit, plans, tasks
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.control.switches import SETTLED
from cutover.errors import Refused
from cutover.plan.explain import Change, changes
from cutover.plan.models import Plan, Service
from cutover.postgres.identifiers import TableName

CHANGES_AUDITED = 200


@dataclass(frozen=True)
class Progress:
    """How far a migration is, as far as it limits what another plan may change."""

    #: In words; "" while nothing was done by its plan.
    where: str = ""
    prepared: bool = False
    cleaned: bool = False
    #: Services whose schemas, fences or streams are being built, or are there.
    begun: frozenset[str] = frozenset()
    archived: frozenset[str] = frozenset()
    #: Services whose fenced section runs at this moment.
    switching: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Adoption:
    """What an adoption did, or would do: `obstacles` says why it is refused, if it is."""

    migration: str
    #: The plan in force until then; None before the first one.
    former: str | None
    hash: str
    changes: list[Change] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    approvals_voided: int = 0


async def preview(control: Control, plan: Plan) -> Adoption:
    """What `adopt` would do now; changes nothing."""
    async with control.transaction() as connection:
        bound, _ = await plans.lock(connection, plan.migration)
        found, _ = await _judged(connection, plan, bound)
        standing: int = await connection.fetchval(
            "SELECT count(*) FROM control.approval WHERE migration = $1 AND voided_at IS NULL", plan.migration
        )
    return Adoption(plan.migration, bound, plan.hash, *found, approvals_voided=0 if bound == plan.hash else standing)


async def adopt(control: Control, plan: Plan, by: str) -> Adoption:
    """The migration goes by this registered plan from now on. Idempotent.

    Raises Refused where the plan was not registered, or changes what cannot be changed under way, and Conflict where
    another migration has one of its tables; nothing is changed then.
    """
    migration = plan.migration
    async with control.transaction() as connection:
        bound, _ = await plans.lock(connection, migration)
        if bound == plan.hash:
            return Adoption(migration, bound, plan.hash)
        known = await connection.fetchval(
            "SELECT 1 FROM control.plan WHERE migration = $1 AND hash = $2", migration, plan.hash
        )
        if not known:
            raise Refused(f"plan {plans.short(plan.hash)} of {migration} is not registered")
        (changed, obstacles), progress = await _judged(connection, plan, bound)
        if obstacles:
            raise Refused(f"{migration}: this plan cannot be adopted: " + "; ".join(obstacles))
        running = bound is not None and bool(progress.where)
        # before the audit log's lock, which a decision takes last
        voided = await plans.void_approvals(connection, migration, by)
        if running:
            await connection.execute(
                "INSERT INTO control.adoption (migration, from_hash, to_hash, by) VALUES ($1, $2, $3, $4)",
                migration,
                bound,
                plan.hash,
                by,
            )
            await _claim_anew(connection, plan, by)
        await plans.set_bound(connection, migration, plan.hash, by)
        detail = {
            "hash": plan.hash,
            "from": bound,
            "approvals_voided": voided,
            "changes": [str(one) for one in changed[:CHANGES_AUDITED]],
        }
        await audit.append(connection, Entry(by, "plan.adopted" if running else "plan.bound", migration, None, detail))
    return Adoption(migration, bound, plan.hash, changed, approvals_voided=voided)


async def adopter(control: Control, migration: str, plan_hash: str) -> str:
    """Who adopted that plan last; "" where nobody did."""
    return (
        await control.fetchval(
            "SELECT by FROM control.adoption WHERE migration = $1 AND to_hash = $2 ORDER BY id DESC LIMIT 1",
            migration,
            plan_hash,
        )
        or ""
    )


def obstacles(former: Plan, plan: Plan, progress: Progress) -> list[str]:
    """Why a migration that has come so far cannot go by `plan` instead of `former`; empty where it can."""
    return list(_obstacles(former, plan, progress))


def _obstacles(former: Plan, plan: Plan, progress: Progress) -> Iterator[str]:
    if not progress.where:
        return
    if progress.cleaned:
        yield "the migration is complete; what is left to move is a migration of another name"
        return
    if progress.switching:
        yield f"{', '.join(sorted(progress.switching))} is being switched at this moment; adopt when that has ended"
    if former.monolith.database != plan.monolith.database:
        yield f"monolith.database: its tables were claimed in {former.monolith.database}"
    if former.compress != plan.compress:
        yield f"compress: the calendar of what runs is counted by {former.compress:g}"
    if progress.archived and former.cleanup.archive_dir != plan.cleanup.archive_dir:
        yield f"cleanup.archive_dir: tables of {', '.join(sorted(progress.archived))} were archived already"
    for name in sorted(progress.begun):
        if name not in plan.services:
            yield f"services.{name}: it has begun, so it cannot be left out"
        elif name in former.services:
            yield from _of_service(name, former.services[name], plan.services[name])
    added = sorted(plan.services.keys() - former.services.keys())
    if progress.prepared and added:
        yield f"services.{', '.join(added)}: the preparation is over; move it by a migration of another name"


def _of_service(name: str, former: Service, service: Service) -> Iterator[str]:
    """What was built when the service began."""
    for key in ("database", "stream", "consistency", "truncate", "foreign_keys", "app_roles"):
        before, after = getattr(former, key), getattr(service, key)
        if before != after:
            yield f"services.{name}.{key}: it has begun with {_words(before)}, it cannot become {_words(after)}"
    before, after = ({str(TableName.parse(table)) for table in one.tables} for one in (former, service))
    if before != after:
        parts = [f"without {table}" for table in sorted(before - after)] + [
            f"with {one}" for one in sorted(after - before)
        ]
        yield f"services.{name}.tables: it has begun, it cannot go on {', '.join(parts)}"


def _words(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{key}: {one}" for key, one in value.items()]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


async def _judged(
    connection: Connection, plan: Plan, bound: str | None
) -> tuple[tuple[list[Change], list[str]], Progress]:
    """What differs from the plan in force, and what of it stands in the way."""
    if bound is None:
        return ([], []), Progress()
    body = await connection.fetchval(
        "SELECT body::text FROM control.plan WHERE migration = $1 AND hash = $2", plan.migration, bound
    )
    former = Plan.model_validate_json(body)
    progress = await _progress(connection, plan.migration)
    in_the_way = obstacles(former, plan, progress) if former.hash != plan.hash else []
    return (changes(former, plan), in_the_way), progress


async def _progress(connection: Connection, migration: str) -> Progress:
    stages = {
        row["service"]: row["stage"]
        for row in await connection.fetch("SELECT service, stage FROM control.stage WHERE migration = $1", migration)
    }
    claims = await connection.fetch(
        "SELECT DISTINCT service FROM control.claim WHERE migration = $1 AND begun_at IS NOT NULL", migration
    )
    switching = await connection.fetch(
        "SELECT service FROM control.switch WHERE migration = $1 AND state <> ALL ($2::text[])",
        migration,
        sorted(SETTLED),
    )
    own = stages.pop("", "registered")
    return Progress(
        where=await plans.running(connection, migration),
        prepared=own != "registered" or bool(stages),
        cleaned=own == "cleaned",
        begun=frozenset(stages) | {row["service"] for row in claims},
        archived=frozenset(name for name, stage in stages.items() if stage == "archived"),
        switching=frozenset(row["service"] for row in switching),
    )


async def _claim_anew(connection: Connection, plan: Plan, by: str) -> None:
    """Claims and tasks of a migration whose preparation has begun, by its new plan."""
    monolith = await connection.fetchval(
        "SELECT monolith FROM control.claim WHERE migration = $1 LIMIT 1", plan.migration
    )
    if monolith is None:
        return
    pairs = [(str(TableName.parse(table)), name) for name, one in plan.services.items() for table in one.tables]
    given_back = await connection.fetch(
        "DELETE FROM control.claim c WHERE migration = $1 AND begun_at IS NULL AND NOT EXISTS"
        " (SELECT FROM unnest($2::text[], $3::text[]) AS wanted (t, s) WHERE t = c.table_name AND s = c.service)"
        " RETURNING table_name",
        plan.migration,
        [table for table, _ in pairs],
        [name for _, name in pairs],
    )
    await plans.claim(connection, plan, monolith, by)
    if given_back:
        detail = {"tables": sorted(row["table_name"] for row in given_back)}
        await audit.append(connection, Entry(by, "tables.released", plan.migration, None, detail))
    await tasks.ensure_on(connection, plan, by)
