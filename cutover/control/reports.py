"""Reports of reconciliation: one row a pass and table, and every key that differed."""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from cutover.control.audit import Connection
from cutover.control.database import Control
from cutover.postgres.databases import Direction

DifferenceKind = Literal["missing", "extra", "mismatched"]

_BATCH = 5000


class TableReport(BaseModel):
    """One pass over one table. Row counts are rows; rates are shares 0..1 of the source's rows."""

    model_config = ConfigDict(frozen=True)

    migration: str
    service: str
    table: str
    direction: Direction
    started_at: datetime
    finished_at: datetime
    rows_source: int
    rows_target: int
    #: Confirmed differences, by kind.
    missing: int = 0
    extra: int = 0
    mismatched: int = 0
    #: Keys that would not hold still long enough to be judged.
    unsettled: int = 0
    #: Rows whose foreign key points at nothing on the target.
    orphans: int = 0
    #: (mismatched + missing + extra) / max(rows of the source, 1): the rate that gates.
    rate: float
    #: The migration strategy's own ratio: mismatched / max(rows compared, 1).
    seed_rate: float
    duration_ms: float
    #: How far the stream had come when the last difference was judged (a marker or a WAL position).
    position: str = ""
    plan_hash: str
    #: False where the pass ended early: such a report proves nothing.
    complete: bool
    #: Bytes of hashes and keys that travelled between the sides and the pass.
    bytes_moved: int = 0
    #: From which all seeds of the pass's hashes were drawn.
    seed: int = 0
    #: Columns that were not compared, each with the reason.
    left_out: list[str] = []
    warnings: list[str] = []
    #: Rows were read from a replica: no switch is decided by it.
    replica: bool = False
    id: int = 0
    #: Seconds since it was recorded, by the control database's clock, at the moment it was read.
    age: float = Field(default=0.0)

    @property
    def differences(self) -> int:
        return self.missing + self.extra + self.mismatched


@dataclass(frozen=True)
class Difference:
    """One key that differs; hashes of the rows, never their values. `table` as the plan names it."""

    table: str
    key_json: str
    kind: DifferenceKind
    source_hash: int | None
    target_hash: int | None
    confirmed: bool
    #: Names of the columns that differ; of mismatched keys only.
    columns: tuple[str, ...] = ()


async def record(control: Control, report: TableReport, differences: Sequence[Difference] = ()) -> int:
    """Store a report, with its differences where they are at hand (the last verdict of a key counts); its id."""
    async with control.transaction() as connection:
        report_id = await _store(connection, report)
        await _insert(connection, report_id, differences)
    return report_id


async def rehearse(control: Control, migration: str, service: str, table: str, plan_hash: str) -> bool:
    """Writes a report of an empty table, reads it back, and takes it back; whether it was found. Leaves nothing."""
    async with control.connection() as connection:
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        report = TableReport(
            migration=migration, service=service, table=table, direction="forward", started_at=now, finished_at=now,
            rows_source=0, rows_target=0, rate=0.0, seed_rate=0.0, duration_ms=0.0, plan_hash=plan_hash, complete=True,
        )  # fmt: skip
        transaction = connection.transaction()
        await transaction.start()
        try:
            report_id = await _store(connection, report)
            row = await connection.fetchrow(f"{_SELECT} WHERE id = $1", report_id)
        finally:
            await transaction.rollback()
    return row is not None and _report(row).table == table


async def _store(connection: Connection, report: TableReport) -> int:
    report_id: int = await connection.fetchval(
        "INSERT INTO control.report (migration, service, table_name, direction, started_at, finished_at,"
        " rows_source, rows_target, missing, extra, mismatched, unsettled, orphans, rate, seed_rate,"
        " duration_ms, position, plan_hash, complete, bytes_moved, seed, left_out, warnings, replica)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,"
        " $22, $23, $24)"
        " RETURNING id",
        report.migration,
        report.service,
        report.table,
        report.direction,
        report.started_at,
        report.finished_at,
        report.rows_source,
        report.rows_target,
        report.missing,
        report.extra,
        report.mismatched,
        report.unsettled,
        report.orphans,
        report.rate,
        report.seed_rate,
        report.duration_ms,
        report.position,
        report.plan_hash,
        report.complete,
        report.bytes_moved,
        report.seed,
        report.left_out,
        report.warnings,
        report.replica,
    )
    return report_id


async def latest(
    control: Control,
    migration: str,
    service: str,
    table: str,
    *,
    direction: Direction | None = None,
    complete: bool = True,
    decisive: bool = False,
) -> TableReport | None:
    """The newest report of the table (a complete one, unless said otherwise), or None.

    `decisive`: one that a switch may be decided by, which no report from a replica is.
    """
    row = await control.fetchrow(
        f"{_SELECT} WHERE migration = $1 AND service = $2 AND table_name = $3"
        " AND ($4::text IS NULL OR direction = $4) AND (complete OR NOT $5::boolean)"
        " AND NOT (replica AND $6::boolean) ORDER BY id DESC LIMIT 1",
        migration,
        service,
        table,
        direction,
        complete,
        decisive,
    )
    return _report(row) if row else None


async def latest_of_all(
    control: Control, migration: str, service: str | None = None, *, direction: Direction | None = None
) -> list[TableReport]:
    """The newest complete report of each table of the service (or of all services)."""
    rows = await control.fetch(
        f"SELECT DISTINCT ON (service, table_name) * FROM ({_SELECT} WHERE migration = $1"  # noqa: S608 (constant text)
        " AND ($2::text IS NULL OR service = $2) AND ($3::text IS NULL OR direction = $3) AND complete) AS r"
        " ORDER BY service, table_name, id DESC",
        migration,
        service,
        direction,
    )
    return [_report(row) for row in rows]


async def history(control: Control, migration: str, service: str, table: str, *, limit: int) -> list[TableReport]:
    """The last reports of a table in both directions, newest first, those of passes that ended early too."""
    rows = await control.fetch(
        f"{_SELECT} WHERE migration = $1 AND service = $2 AND table_name = $3 ORDER BY id DESC LIMIT $4",
        migration,
        service,
        table,
        limit,
    )
    return [_report(row) for row in rows]


async def pages_of(
    control: Control, report: TableReport, *, size: int = _BATCH
) -> AsyncGenerator[list[Difference], None]:
    """The confirmed differences of one report in the order of their keys' texts, `size` of them at a time."""
    after: str | None = None
    while True:
        rows = await control.fetch(
            f"{_DIFFERENCES} WHERE d.confirmed AND d.report_id = $1 AND d.table_name = $2"
            " AND ($3::text IS NULL OR d.key_json > $3) ORDER BY d.key_json LIMIT $4",
            report.id,
            report.table,
            after,
            size,
        )
        if rows:
            yield [_difference(row) for row in rows]
            after = rows[-1]["key_json"]
        if len(rows) < size:
            return


async def open_differences(
    control: Control, migration: str, service: str, table: str | None = None, *, limit: int = 1000
) -> list[Difference]:
    """Confirmed differences of the newest complete report of each table."""
    rows = await control.fetch(
        f"{_DIFFERENCES} WHERE d.confirmed AND d.report_id IN (SELECT max(id) FROM control.report"  # noqa: S608
        "  WHERE migration = $1 AND service = $2 AND ($3::text IS NULL OR table_name = $3) AND complete"
        "  GROUP BY table_name)"
        " ORDER BY d.table_name, d.key_json LIMIT $4",
        migration,
        service,
        table,
        limit,
    )
    return [_difference(row) for row in rows]


def _difference(row: asyncpg.Record) -> Difference:
    return Difference(
        row["table_name"],
        row["key_json"],
        cast(DifferenceKind, row["kind"]),
        row["source_hash"],
        row["target_hash"],
        row["confirmed"],
        tuple(json.loads(row["columns"])),
    )


_DIFFERENCES = (
    "SELECT d.table_name, d.key_json, d.kind, d.source_hash, d.target_hash, d.confirmed, d.columns"
    " FROM control.difference d"
)
_SELECT = (
    "SELECT id, migration, service, table_name, direction, started_at, finished_at, rows_source, rows_target, missing,"
    " extra, mismatched, unsettled, orphans, rate, seed_rate, duration_ms, position, plan_hash, complete, bytes_moved,"
    " seed, left_out, warnings, replica,"
    " extract(epoch FROM clock_timestamp() - recorded_at)::float8 AS age FROM control.report"
)


def _report(row: asyncpg.Record) -> TableReport:
    values = dict(row)
    values["table"] = values.pop("table_name")
    return TableReport.model_validate(values)


async def _insert(connection: Connection, report_id: int, differences: Sequence[Difference]) -> None:
    # The last verdict of a key counts; one statement cannot touch a row twice.
    distinct = list({(difference.table, difference.key_json): difference for difference in differences}.values())
    for start in range(0, len(distinct), _BATCH):
        batch = distinct[start : start + _BATCH]
        await connection.execute(
            "INSERT INTO control.difference (report_id, table_name, key_json, kind, source_hash, target_hash,"
            " confirmed, columns)"
            " SELECT $1, u.a, u.b, u.c, u.d, u.e, u.f, u.g::jsonb FROM unnest($2::text[], $3::text[], $4::text[],"
            " $5::bigint[], $6::bigint[], $7::boolean[], $8::text[]) AS u(a, b, c, d, e, f, g)"
            " ON CONFLICT (report_id, table_name, key_json) DO UPDATE SET kind = excluded.kind,"
            " source_hash = excluded.source_hash, target_hash = excluded.target_hash, confirmed = excluded.confirmed,"
            " columns = excluded.columns",
            report_id,
            [difference.table for difference in batch],
            [difference.key_json for difference in batch],
            [difference.kind for difference in batch],
            [difference.source_hash for difference in batch],
            [difference.target_hash for difference in batch],
            [difference.confirmed for difference in batch],
            [json.dumps(difference.columns) for difference in batch],
        )
