"""The automatic items of the checklist: what a check found last, in the rows that hold people's tasks too.

An item of a service is one row a service, named `<item>/<service>`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from cutover.control import audit
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.errors import Refused
from cutover.plan import checklist
from cutover.plan.checklist import Item
from cutover.plan.models import Phase, Plan

ACTOR = "cutover"
_TEXT = 2000


@dataclass(frozen=True)
class CheckRow:
    """An automatic item as it stands: open (`done_at` None) until a check holds, and again when one does not."""

    name: str
    item: str
    service: str | None
    phase: Phase
    owner: str
    duration: timedelta
    text: str
    evidence: str
    problem: str
    checked_at: datetime | None
    done_at: datetime | None


def row_name(item: Item, service: str | None) -> str:
    return f"{item.key}/{service}" if service else item.key


async def ensure(control: Control, plan: Plan) -> None:
    """A row for every automatic item, and every service where it is about services. Idempotent; states are kept."""
    rows = [
        (row_name(item, service), item.phase, item.owner, item.duration, item.text, service or "")
        for item in checklist.automatic()
        for service in (list(plan.services) if item.each_service else [None])
    ]
    names, phases, owners, durations, texts, services = (list(column) for column in zip(*rows, strict=True))
    async with control.transaction() as connection:
        await connection.execute(
            "INSERT INTO control.task AS t (migration, name, phase, owner, duration, description, service, kind)"
            " SELECT $1, *, 'automatic' FROM unnest($2::text[], $3::text[], $4::text[], $5::interval[], $6::text[],"
            "  $7::text[])"
            " ON CONFLICT (migration, name) DO UPDATE SET current = true WHERE NOT t.current",
            plan.migration, names, phases, owners, durations, texts, services,
        )  # fmt: skip
        await connection.execute(
            "UPDATE control.task SET current = false"
            " WHERE migration = $1 AND kind = 'automatic' AND current AND name <> ALL ($2::text[])",
            plan.migration, names,
        )  # fmt: skip


async def record(
    control: Control, migration: str, item: Item, service: str | None, problems: Sequence[str], evidence: str
) -> None:
    """What a check found, with an audit row where that is news. Without problems the item is done, else open.

    Raises Refused for an item that Preparation has not listed.
    """
    name, problem = row_name(item, service), "; ".join(problems)[:_TEXT]
    async with control.transaction() as connection:
        before = await connection.fetchrow(
            "SELECT done_at IS NOT NULL AS done, evidence, problem FROM control.task"
            " WHERE migration = $1 AND name = $2 AND kind = 'automatic' FOR UPDATE",
            migration, name,
        )  # fmt: skip
        if before is None:
            raise Refused(f"{migration} has no checklist item {name!r} yet: run Preparation first")
        await connection.execute(
            "UPDATE control.task SET evidence = $3, problem = $4, checked_at = clock_timestamp(),"
            " done_at = CASE WHEN $4 = '' THEN coalesce(done_at, clock_timestamp()) END,"
            " done_by = CASE WHEN $4 = '' THEN $5 END"
            " WHERE migration = $1 AND name = $2",
            migration, name, evidence[:_TEXT], problem, ACTOR,
        )  # fmt: skip
        if tuple(before.values()) != (not problem, evidence[:_TEXT], problem):
            detail = {"item": item.key, "holds": not problem, "evidence": evidence[:_TEXT], "problem": problem}
            await audit.append(connection, Entry(ACTOR, "checklist.checked", migration, service, detail))


async def every(control: Control, migration: str, phase: Phase | None = None) -> list[CheckRow]:
    """The automatic items, done or open."""
    rows = await control.fetch(
        "SELECT name, service, phase, owner, duration, description, coalesce(evidence, '') AS evidence, problem,"
        " checked_at, done_at FROM control.task"
        " WHERE migration = $1 AND kind = 'automatic' AND current AND ($2::text IS NULL OR phase = $2)"
        " ORDER BY phase, name",
        migration, phase,
    )  # fmt: skip
    return [
        CheckRow(
            row["name"], row["name"].partition("/")[0], row["service"] or None, cast(Phase, row["phase"]),
            row["owner"], row["duration"], row["description"], row["evidence"], row["problem"], row["checked_at"],
            row["done_at"],
        )
        for row in rows
    ]  # fmt: skip
