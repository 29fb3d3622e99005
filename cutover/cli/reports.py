"""Reports of reconciliation for people and as JSON: the last ones with the keys that differ, and their history.

In JSON each report also stands as the migration strategy's own `ReconciliationReport`, under that name and with its
field names. Rows stand there by key and hash: the control database holds no values of rows (`cutover diff` shows them).
"""

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cutover.cli.texts import cell, key_text, moment, span
from cutover.control import reports
from cutover.control.database import Control
from cutover.control.reports import Difference, TableReport
from cutover.postgres.databases import Direction
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import key_from_json


@dataclass(frozen=True)
class Chosen:
    """A table (as the plan names it), the direction in which its rows flow now, its evidence's greatest age in s."""

    service: str
    table: str
    direction: Direction
    max_lag: float

    @property
    def name(self) -> str:
        """The table as reports and passes name it."""
        return str(TableName.parse(self.table))


@dataclass(frozen=True)
class Found:
    """The last complete report of a table, if there is one, with its first differing keys."""

    chosen: Chosen
    report: TableReport | None
    keys: list[Difference] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Whether it still counts: of the direction of now, and not older than the table's max lag."""
        report = self.report
        return report is not None and report.direction == self.chosen.direction and report.age <= self.chosen.max_lag

    @property
    def in_order(self) -> bool:
        """Whether the report says that both sides agree; rows that nobody could judge say nothing."""
        return self.report is not None and not self.report.differences and not self.report.unsettled


async def look(control: Control, migration: str, chosen: Chosen, *, keys: int) -> Found:
    """The table's last report with so many of its keys (0: all)."""
    report = await reports.latest(control, migration, chosen.service, chosen.name)
    return Found(chosen, report, await first_keys(control, report, keys) if report else [])


async def first_keys(control: Control, report: TableReport, limit: int) -> list[Difference]:
    """The first differing keys of a report (0: all)."""
    found: list[Difference] = []
    async with aclosing(reports.pages_of(control, report)) as pages:
        async for page in pages:
            found += page
            if limit and len(found) >= limit:
                return found[:limit]
    return found


def as_json(found: Found) -> dict[str, Any]:
    """The report's own fields, its keys, and the strategy's report beside them."""
    if found.report is None:
        return {"service": found.chosen.service, "table": found.chosen.table, "complete": False, "fresh": False}
    facts = found.report.model_dump(mode="json")
    facts["fresh"] = found.fresh
    facts["keys"] = [
        {"key": key_from_json(d.key_json), "kind": d.kind, "columns": d.columns,
         "source_hash": d.source_hash, "target_hash": d.target_hash}
        for d in found.keys
    ]  # fmt: skip
    facts["keys_left_out"] = found.report.differences - len(found.keys)
    facts["ReconciliationReport"] = strategys_own(found.report, found.keys)
    return facts


def strategys_own(report: TableReport, keys: list[Difference]) -> dict[str, Any]:
    """The report in the terms of the migration strategy (`ReconciliationReport`)."""

    def row(difference: Difference, digest: int | None) -> dict[str, Any]:
        return {"key": key_from_json(difference.key_json), "hash": digest}

    return {
        "table": report.table,
        "totalSource": report.rows_source,
        "totalTarget": report.rows_target,
        "mismatches": [
            {"source": row(d, d.source_hash), "target": row(d, d.target_hash), "columns": d.columns}
            for d in keys
            if d.kind == "mismatched"
        ],
        "missing": [row(d, d.source_hash) for d in keys if d.kind == "missing"],
        "extra": [row(d, d.target_hash) for d in keys if d.kind == "extra"],
        "mismatchRate": report.seed_rate,
    }


def show(found: list[Found]) -> None:
    """The last reports in one table, then what a reader should know, then the keys."""
    shown = Table(
        "service", "table", "direction", "rows", "missing", "extra", "mismatched", "unsettled", "rate", "took", "age"
    )
    for one in found:
        if (r := one.report) is None:
            shown.add_row(cell(one.chosen.service), cell(one.chosen.table), "", "never compared")
            continue
        shown.add_row(
            cell(r.service), cell(r.table), r.direction, f"{r.rows_source}/{r.rows_target}", str(r.missing),
            str(r.extra), str(r.mismatched), str(r.unsettled), f"{r.rate:.4%}", span(r.duration_ms / 1000),
            span(r.age) + ("" if one.fresh else " (stale)"),
        )  # fmt: skip
    Console().print(shown)
    for one in found:
        if one.report is not None:
            _notes(one, one.report)


def _notes(one: Found, report: TableReport) -> None:
    name = f"{report.service}.{report.table}"
    if report.direction != one.chosen.direction:
        typer.echo(
            f"{name}: the rows flow {one.chosen.direction} now, and this report is of before: no gate goes by it"
        )
    if report.unsettled:
        typer.echo(f"{name}: {report.unsettled} rows would not hold still, so nobody can say: compare again (--now)")
    if report.replica:
        typer.echo(f"{name}: the rows were read from a replica: no switch is decided by it")
    if report.orphans:
        typer.echo(f"{name}: {report.orphans} rows whose loose foreign key points at nothing")
    for warning in report.warnings:
        typer.echo(f"{name}: {warning}")
    if report.left_out:
        typer.echo(f"{name}: not compared: {', '.join(report.left_out)}")
    if not one.keys:
        return
    typer.echo(f"{name}: keys that differ")
    shown = Table("key", "kind", "columns")
    for difference in one.keys:
        shown.add_row(cell(key_text(difference.key_json)), difference.kind, cell(", ".join(difference.columns)))
    Console().print(shown)
    if report.differences > len(one.keys):
        typer.echo(
            f"… and {report.differences - len(one.keys)} more; all are in control.difference, report {report.id}"
        )


def history_json(report: TableReport) -> dict[str, Any]:
    """A report of the past, with the rows a second."""
    return {**report.model_dump(mode="json"), "rows_per_second": round(_speed(report), 1)}


def show_history(past: list[TableReport]) -> None:
    """One line a pass."""
    shown = Table(
        "service", "table", "began", "direction", "took", "rows", "rows/s", "missing", "extra", "mismatched",
        "unsettled", "complete",
    )  # fmt: skip
    for r in past:
        shown.add_row(
            cell(r.service), cell(r.table), moment(r.started_at), r.direction, span(r.duration_ms / 1000),
            f"{r.rows_source}/{r.rows_target}", f"{_speed(r):,.0f}", str(r.missing), str(r.extra), str(r.mismatched),
            str(r.unsettled), "yes" if r.complete else "NO",
        )  # fmt: skip
    Console().print(shown)


def _speed(report: TableReport) -> float:
    """Rows of the source in a second, over the whole of the pass."""
    return report.rows_source / max(report.duration_ms / 1000, 0.001)
