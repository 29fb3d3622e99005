"""How far a migration and each of its services are: what a phase leaves as evidence for its successors.

The row holds the present stage; the audit log holds the history.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast, get_args

from cutover.control import audit, documents, plans, switches
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.errors import Refused

MigrationStage = Literal["registered", "prepared", "cleaned"]
ServiceStage = Literal["replicating", "ready", "switched", "deprecated", "rolled-back", "released", "archived"]
Stage = MigrationStage | ServiceStage


@dataclass(frozen=True)
class StageRow:
    """The present stage of a migration (service None) or of one service."""

    migration: str
    service: str | None
    stage: Stage
    detail: dict[str, Any] = field(default_factory=dict)
    changed_at: datetime | None = None


async def set_stage(
    control: Control,
    migration: str,
    service: str | None,
    stage: Stage,
    detail: Mapping[str, Any] | None = None,
    *,
    actor: str = "workflow",
    by_plan: str = "",
) -> None:
    """Set the stage, with an audit row. Idempotent. Raises Refused for a stage of the other level.

    `released` leaves no way back: raises GateClosed unless the writes have moved and no switch is under way.
    `by_plan`: only while the migration goes by the plan of that hash; raises PlanReplaced otherwise.
    """
    known = get_args(MigrationStage) if service is None else get_args(ServiceStage)
    if stage not in known:
        level = "the migration" if service is None else f"service {service}"
        raise Refused(f"{migration}: {stage!r} is no stage of {level}; one of {', '.join(known)}")
    async with control.transaction() as connection:
        await plans.hold(connection, migration, by_plan)
        before = await connection.fetchval(
            "SELECT stage FROM control.stage WHERE migration = $1 AND service = $2 FOR UPDATE", migration, service or ""
        )
        if service is not None and stage == "released":
            await switches.require_moved(connection, migration, service)
        changed = await connection.fetchval(
            "INSERT INTO control.stage AS s (migration, service, stage, detail) VALUES ($1, $2, $3, $4::text::jsonb)"
            " ON CONFLICT (migration, service) DO UPDATE"
            " SET stage = excluded.stage, detail = excluded.detail, changed_at = clock_timestamp()"
            " WHERE (s.stage, s.detail) IS DISTINCT FROM (excluded.stage, excluded.detail) RETURNING 1",
            migration,
            service or "",
            stage,
            documents.dumps(detail or {}),
        )
        if changed:
            recorded = {"from": before, "to": stage, "detail": detail or {}}
            await audit.append(connection, Entry(actor, "stage", migration, service, recorded))


async def get_stages(control: Control, migration: str) -> dict[str | None, StageRow]:
    """The present stages by service; the key None is the migration itself."""
    rows = await control.fetch(
        "SELECT service, stage, detail::text AS detail, changed_at FROM control.stage WHERE migration = $1", migration
    )
    return {
        row["service"] or None: StageRow(
            migration,
            row["service"] or None,
            cast(Stage, row["stage"]),
            documents.loads(row["detail"]),
            row["changed_at"],
        )
        for row in rows
    }
