"""The plan's task list: what people do, who owns it, and when it was confirmed. Automatic items: `checks`."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import asyncpg

from cutover.control import audit
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.errors import Refused
from cutover.plan.models import Phase, Plan


@dataclass(frozen=True)
class TaskRow:
    """One task as it stands. `done_at` None: still to do."""

    migration: str
    name: str
    phase: Phase
    owner: str
    duration: timedelta
    description: str
    service: str | None
    done_at: datetime | None
    done_by: str | None
    evidence: str | None


async def ensure(control: Control, plan: Plan, *, by: str = "preparation") -> None:
    """Every task of the plan is there, as the plan has it; what is done stays done.

    A task that left the plan is no longer waited for, and keeps its row. Idempotent.
    """
    async with control.transaction() as connection:
        await ensure_on(connection, plan, by)


async def ensure_on(connection: Connection, plan: Plan, by: str) -> None:
    """`ensure` inside the caller's transaction."""
    names = list(plan.tasks)
    tasks = [plan.tasks[name] for name in names]
    added = await connection.fetch(
        "INSERT INTO control.task AS t (migration, name, phase, owner, duration, description, service)"
        " SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::interval[], $6::text[], $7::text[])"
        " ON CONFLICT (migration, name) DO UPDATE SET phase = excluded.phase, owner = excluded.owner,"
        "  duration = excluded.duration, description = excluded.description, service = excluded.service,"
        "  current = true"
        " WHERE (t.phase, t.owner, t.duration, t.description, t.service, t.current) IS DISTINCT FROM"
        "  (excluded.phase, excluded.owner, excluded.duration, excluded.description, excluded.service, true)"
        " RETURNING name",
        plan.migration,
        names,
        [task.phase for task in tasks],
        [task.owner for task in tasks],
        [task.duration for task in tasks],
        [task.description for task in tasks],
        [task.service or "" for task in tasks],
    )
    dropped = await connection.fetch(
        "UPDATE control.task SET current = false WHERE migration = $1 AND kind = 'human' AND current"
        " AND name <> ALL ($2::text[]) RETURNING name",
        plan.migration,
        names,
    )
    if added or dropped:
        detail = {"set": sorted(row["name"] for row in added), "dropped": sorted(row["name"] for row in dropped)}
        await audit.append(connection, Entry(by, "tasks.ensured", plan.migration, None, detail))


async def complete(control: Control, migration: str, task: str, by: str, evidence: str = "") -> TaskRow:
    """A person confirms a task. Idempotent: the first confirmation stays.

    Raises Refused for a task that the migration does not have, and for an item that only a check answers.
    """
    if not by.strip():
        raise Refused(f"task {task!r} is confirmed by somebody: give a name")
    async with control.transaction() as connection:
        row = await connection.fetchrow(
            "UPDATE control.task SET done_at = clock_timestamp(), done_by = $3, evidence = $4"  # noqa: S608
            f" WHERE migration = $1 AND name = $2 AND kind = 'human' AND done_at IS NULL RETURNING {_COLUMNS}",
            migration,
            task,
            by.strip(),
            evidence,
        )
        if row is None:
            row = await connection.fetchrow(
                f"{_SELECT} WHERE migration = $1 AND name = $2 AND kind = 'human'", migration, task
            )
            if row is None:
                known = await connection.fetch(
                    "SELECT name FROM control.task WHERE migration = $1 AND kind = 'human' AND current ORDER BY name",
                    migration,
                )
                names = ", ".join(record["name"] for record in known) or "none yet (Preparation has not begun)"
                raise Refused(f"{migration} has no task {task!r}; its tasks: {names}")
            return _task(row)
        detail = {"task": task, "evidence": evidence}
        await audit.append(connection, Entry(by.strip(), "task.completed", migration, row["service"] or None, detail))
    return _task(row)


async def pending(control: Control, migration: str, phase: Phase | None = None) -> list[TaskRow]:
    """Tasks still to do in the phase (or in all phases)."""
    return [task for task in await every(control, migration, phase) if task.done_at is None]


async def every(control: Control, migration: str, phase: Phase | None = None) -> list[TaskRow]:
    """The tasks of the plan of now, done or not."""
    rows = await control.fetch(
        f"{_SELECT} WHERE migration = $1 AND ($2::text IS NULL OR phase = $2) AND kind = 'human' AND current"
        " ORDER BY phase, name",
        migration,
        phase,
    )
    return [_task(row) for row in rows]


_COLUMNS = "migration, name, phase, owner, duration, description, service, done_at, done_by, evidence"
_SELECT = f"SELECT {_COLUMNS} FROM control.task"  # noqa: S608 (constant text)


def _task(row: asyncpg.Record) -> TaskRow:
    values = dict(row)
    values["phase"] = cast(Phase, values["phase"])
    values["service"] = values["service"] or None
    return TaskRow(**values)
