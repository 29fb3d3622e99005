"""`cutover reconcile --repair`: what would be written where and by which rule, then the deed, then its result."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Grid

from cutover.alerts.cases import tell_failover, tell_repair, tell_waiting
from cutover.alerts.webhook import Webhook
from cutover.cli.failing import print_json
from cutover.cli.reports import Chosen
from cutover.cli.texts import cell, key_text
from cutover.control import reports, switches
from cutover.control.database import Control
from cutover.control.reports import Difference, TableReport
from cutover.errors import AnotherServer, Exit, GateClosed, Refused
from cutover.pairs import pair
from cutover.plan.models import Plan, Table
from cutover.postgres.databases import Pair, Side
from cutover.postgres.identifiers import TableName
from cutover.reconcile.conflicts import AGAIN, EQUAL, REPAIRED, Resolution, Step, repairs
from cutover.settings import Settings
from cutover.streams import open_stream
from cutover.streams.base import Stream, settling

SETTLE_SECONDS = 60.0
WRITES = ("insert", "update", "delete")


@dataclass(frozen=True)
class Order:
    """How the repair was asked for, and by whom."""

    by: str
    dry_run: bool
    yes: bool
    #: Steps shown of each table; 0: all.
    keys: int
    as_json: bool


@dataclass
class Part:
    """The repair of one table: its plan in counts, its first steps, and what came of them."""

    pair: Pair
    chosen: Chosen
    rules: Table
    report: TableReport
    stream: Stream
    shown: list[Step] = field(default_factory=list)
    #: Steps by action and reason; after the deed by outcome too.
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    result: Resolution = field(default_factory=Resolution)

    @property
    def side(self) -> Side:
        """Where it writes: the side that is not the primary."""
        return "service" if self.chosen.direction == "forward" else "monolith"

    @property
    def database(self) -> str:
        return self.pair.sink(self.chosen.direction).name

    def planned(self, *actions: str) -> int:
        return sum(count for (action, _), count in self.counts.items() if action in actions)

    @property
    def left(self) -> int:
        """Keys that still differ, or may: for a person, for the next pass, or written and different again."""
        return sum(count for outcome, count in self.outcomes.items() if outcome not in (REPAIRED, EQUAL))

    def steps(self, control: Control, *, dry_run: bool, actor: str) -> AsyncGenerator[list[Step], None]:
        """The steps of all differences of the report, batch by batch; with what became of them unless `dry_run`."""
        settle = settling(self.stream, SETTLE_SECONDS)
        table = TableName.parse(self.chosen.table)
        pages: AsyncIterator[Sequence[Difference]] = reports.pages_of(control, self.report)
        return repairs(
            self.pair, self.chosen.direction, table, self.rules, pages, control, settle, dry_run=dry_run, actor=actor
        )

    def keep(self, steps: list[Step], limit: int) -> None:
        """Counts a batch, and keeps its first steps."""
        for step in steps:
            if not limit or len(self.shown) < limit:
                self.shown.append(step)
            self.counts[step.action, step.reason] += 1
            if step.outcome:
                # of what was passed over the reason says more than the outcome
                self.outcomes[step.reason if step.action == "skip" else step.outcome] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "service": self.chosen.service, "table": self.chosen.name, "side": self.side, "database": self.database,
            "rule": self.rules.conflict, "report": self.report.id, "differences": self.report.differences,
            "unsettled": self.report.unsettled,
            "planned": {name: self.planned(name) for name in (*WRITES, "case", "skip")},
            "outcomes": dict(self.outcomes),
            "steps": [self._step_json(step) for step in self.shown],
            "steps_left_out": sum(self.counts.values()) - len(self.shown),
        }  # fmt: skip

    def _step_json(self, step: Step) -> dict[str, Any]:
        facts = {
            "key": step.key, "kind": step.difference.kind, "action": step.action, "side": self.side,
            "database": self.database, "rule": self.rules.conflict, "reason": step.reason,
        }  # fmt: skip
        return {**facts, "outcome": step.outcome} if step.outcome else facts


async def repair(settings: Settings, control: Control, plan: Plan, chosen: list[Chosen], order: Order) -> int:
    """Plans, asks, repairs; the exit status. Raises Refused while a switch is under way, and what `repairs` raises."""
    webhook = Webhook.from_settings(settings)
    found = [part for one in chosen if (part := await _part(settings, control, plan, one)) is not None]
    parts = [part for part in found if await _planned(control, part, order, webhook)]
    whole = len(parts) == len(chosen) and not any(part.report.unsettled for part in parts)
    if not order.as_json:
        _show_plan(parts)
    writes, cases = (sum(part.planned(*actions) for part in parts) for actions in (WRITES, ("case",)))
    acts = bool(writes or cases) and not order.dry_run
    if acts:
        if not order.yes:
            typer.confirm(_question(parts, cases), abort=True, err=True)
        await _perform(control, parts, order, webhook)
    if order.as_json:
        facts = {"migration": plan.migration, "done": acts, "by": order.by}
        print_json({**facts, "tables": [part.as_json() for part in parts]})
    elif acts:
        _show_result(plan, parts)
    elif not order.dry_run:
        typer.echo("nothing to repair")
    if acts:
        return Exit.DONE if whole and not any(part.left for part in parts) else Exit.REFUSED
    differ = any(count for part in parts for (_, reason), count in part.counts.items() if reason != EQUAL)
    return Exit.DONE if whole and not differ else Exit.REFUSED


async def _planned(control: Control, part: Part, order: Order, webhook: Webhook | None) -> bool:
    """Plans the repair of a table; False (and a line on stderr) where it cannot be repaired at all."""
    if not part.report.differences:
        return True
    try:
        async with (
            _failover_told(control, part, order, webhook),
            aclosing(part.steps(control, dry_run=True, actor=order.by)) as planned,
        ):
            async for steps in planned:
                part.keep(steps, order.keys)
    except AnotherServer:
        raise  # it is about more than this table
    except GateClosed as error:
        typer.echo(f"{part.chosen.service}: {error}", err=True)
        return False
    return True


async def _part(settings: Settings, control: Control, plan: Plan, one: Chosen) -> Part | None:
    """What is to be repaired of a table; None (and a line on stderr) where no report of now's direction is there."""
    if begun := await switches.under_way(control, plan.migration, one.service):
        raise Refused(f"{one.service}: a switch is {begun.state}; nothing is repaired until it has ended")
    report = await reports.latest(control, plan.migration, one.service, one.name, direction=one.direction)
    if report is None:
        command = f"cutover reconcile {plan.migration} --now --service {one.service} --table {one.name}"
        typer.echo(f"{one.service}.{one.name}: no report in the direction of now; compare first: {command}", err=True)
        return None
    both = pair(plan, one.service, settings.database)
    service = plan.service(one.service)
    stream = open_stream(both, one.direction, service)
    if report.differences and not await stream.exists():
        raise GateClosed(
            f"{one.service}: its {one.direction} stream is not there, and a repair is only safe behind one: "
            f"look with cutover doctor {plan.migration} --service {one.service}"
        )
    return Part(both, one, service.tables[one.table], report, stream)


def _question(parts: list[Part], cases: int) -> str:
    """Each database with what would be done there, then the cases."""
    places: dict[str, Counter[str]] = {}
    for part in parts:
        counts = places.setdefault(f"the {part.side}'s database {part.database!r}", Counter())
        counts.update({action: part.planned(action) for action in WRITES})
    asked = [
        ", ".join(f"{action} {counts[action]}" for action in WRITES if counts[action]) + f" rows in {place}"
        for place, counts in sorted(places.items())
        if counts.total()
    ]
    if cases:
        asked.append(f"open {cases} cases for a person")
    text = " and ".join(asked)
    return f"{text[0].upper()}{text[1:]}?"


async def _perform(control: Control, parts: list[Part], order: Order, webhook: Webhook | None) -> None:
    """The deed. Raises typer.Exit on Ctrl-C: what was counted by then is done."""
    done, total = 0, sum(part.report.differences for part in parts)
    with Progress(console=Console(stderr=True), disable=order.as_json or not Console(stderr=True).is_terminal) as bars:
        task = bars.add_task("repairing", total=total)
        for part in parts:
            part.shown.clear()
            part.counts.clear()
            try:
                async with (
                    _failover_told(control, part, order, webhook),
                    aclosing(part.steps(control, dry_run=False, actor=order.by)) as steps_done,
                ):
                    async for steps in steps_done:
                        part.keep(steps, order.keys)
                        part.result.count(steps)
                        await _tell(control, part, webhook)
                        done += len(steps)
                        bars.update(task, completed=done)
            except asyncio.CancelledError:
                bars.stop()
                typer.echo(
                    f"stopped: {done} of {total} keys are done for good; give the same command again, it goes on there",
                    err=True,
                )
                raise typer.Exit(Exit.INTERRUPTED) from None


@asynccontextmanager
async def _failover_told(control: Control, part: Part, order: Order, webhook: Webhook | None) -> AsyncIterator[None]:
    """Others hear too that a server is another one than noted; a dry run writes nothing, not even an alert."""
    try:
        yield
    except AnotherServer as error:
        if not order.dry_run:
            await tell_failover(control, part.pair.migration, part.chosen.service, str(error), webhook=webhook)
        raise


async def _tell(control: Control, part: Part, webhook: Webhook | None) -> None:
    """The alerts that a repair by the schedule raises too."""
    migration, service, table = part.pair.migration, part.chosen.service, part.chosen.name
    await tell_repair(control, migration, service, table, part.result.told(part.rules), webhook=webhook)
    if part.result.cases:
        await tell_waiting(control, migration, service, table, webhook=webhook)


def _show_plan(parts: list[Part]) -> None:
    for part in parts:
        if part.report.unsettled:
            typer.echo(
                f"{part.chosen.service}.{part.chosen.name}: {part.report.unsettled} rows would not hold still in the "
                "last pass, so nobody can say and none is mended: compare again (--now)"
            )
        if not part.shown:
            typer.echo(f"{part.chosen.service}.{part.chosen.name}: the last report found no difference")
            continue
        typer.echo(f"{part.chosen.service}.{part.chosen.name}, to be written at the {part.side} ({part.database}):")
        grid = Grid("key", "kind", "action", "rule", "reason")
        for step in part.shown:
            key = cell(key_text(step.difference.key_json))
            grid.add_row(key, step.difference.kind, step.action, part.rules.conflict, cell(step.reason))
        Console().print(grid)
        if more := sum(part.counts.values()) - len(part.shown):
            typer.echo(f"… and {more} more keys; --keys 0 shows all of them")
        for (action, reason), count in sorted(part.counts.items()):
            typer.echo(f"  {count} × {action}: {reason}")


def _show_result(plan: Plan, parts: list[Part]) -> None:
    grid = Grid("service", "table", "repaired", "cases", "passed over", "different again")
    for part in parts:
        done = part.result
        grid.add_row(
            cell(part.chosen.service), cell(part.chosen.name), str(done.repaired), str(done.cases), str(done.skipped),
            str(done.still_different),
        )  # fmt: skip
    Console().print(grid)
    for part in parts:
        for outcome, count in sorted(part.outcomes.items()):
            if outcome not in (REPAIRED, "case"):
                typer.echo(f"  {part.chosen.name}: {count} × {outcome}")
    if any(part.result.cases for part in parts):
        typer.echo(f"decide the cases: cutover conflicts list {plan.migration}")
    if any(part.outcomes[AGAIN] for part in parts):
        typer.echo("rows that were different again are written by somebody at this moment: the next pass judges them")
    typer.echo(f"every repaired key was compared again; the whole tables: cutover reconcile {plan.migration} --now")
