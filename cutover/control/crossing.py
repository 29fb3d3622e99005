"""Foreign keys of the monolith that cross services: their definitions, and which of them are taken away now."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

from cutover.control import audit, switches
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.plan.models import ForeignKeyRule
from cutover.postgres.catalog import ForeignKey
from cutover.postgres.identifiers import TableName


@dataclass(frozen=True)
class CrossingRecord:
    """A key whose table belongs to service `holder` and refers to a table of service `parent`."""

    key: ForeignKey
    rule: ForeignKeyRule
    holder: str
    parent: str
    detached: bool

    @property
    def ends(self) -> tuple[str, str]:
        """The two services."""
        return self.holder, self.parent


def _key(text: str) -> ForeignKey:
    values: dict[str, Any] = json.loads(text)
    for name in ("table", "references"):
        values[name] = TableName(**values[name])
    for name in ("columns", "referenced_columns", "set_columns"):
        values[name] = tuple(values[name])
    return ForeignKey(**values)


async def note(
    control: Control, migration: str, key: ForeignKey, rule: ForeignKeyRule, *, holder: str, parent: str
) -> None:
    """Keeps a key's definition before anything is done to it, audited; the first one noted stays."""
    async with control.transaction() as connection:
        made = await connection.fetchval(
            "INSERT INTO control.crossing_key (migration, name, table_name, rule, definition, holder, parent) "
            "VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7) ON CONFLICT DO NOTHING RETURNING 1",
            migration,
            key.name,
            str(key.table),
            rule,
            json.dumps(asdict(key)),
            holder,
            parent,
        )
        if made:
            detail = {"key": key.name, "table": str(key.table), "rule": rule, "parent": parent}
            await audit.append(connection, Entry("cutover", "foreign-key.noted", migration, holder, detail))


async def every(control: Control, migration: str) -> list[CrossingRecord]:
    """All keys noted, in a fixed order."""
    rows = await control.fetch(
        "SELECT definition::text, rule, holder, parent, detached FROM control.crossing_key "
        "WHERE migration = $1 ORDER BY table_name, name",
        migration,
    )
    return [
        CrossingRecord(
            _key(row["definition"]), cast(ForeignKeyRule, row["rule"]), row["holder"], row["parent"], row["detached"]
        )
        for row in rows
    ]


async def set_detached(
    control: Control, migration: str, key: ForeignKey, detached: bool, attempts: Iterable[switches.SwitchRow]
) -> None:
    """Notes that a key was taken away or put back, with an audit row. Raises StaleAttempt where one was overtaken."""
    action = "foreign-key.detached" if detached else "foreign-key.restored"
    async with control.acting("cutover", action, migration=migration, detail={"key": key.name}) as connection:
        for attempt in attempts:
            await switches.hold(connection, attempt)
        await connection.execute(
            "UPDATE control.crossing_key SET detached = $4, changed_at = clock_timestamp() "
            "WHERE migration = $1 AND table_name = $2 AND name = $3",
            migration,
            str(key.table),
            key.name,
            detached,
        )
