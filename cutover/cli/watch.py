"""`cutover watch`: the permanent monitor's looks from a terminal, without Temporal."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cutover.cli.connection import control
from cutover.cli.failing import judged, plainly, run
from cutover.cli.texts import cell, printable
from cutover.control import plans
from cutover.control.database import Control
from cutover.errors import Exit, Refused, Unreachable
from cutover.monitor import permanent
from cutover.monitor.findings import Finding, by_importance
from cutover.monitor.permanent import Looked
from cutover.pairs import pair
from cutover.plan.models import Plan
from cutover.settings import Settings

_STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


class Watcher:
    """Looks at the services of one migration, all at once, by the plan that is in force."""

    def __init__(self, opened: Control, settings: Settings, migration: str, service: str = "") -> None:
        self.control = opened
        # one look after the other, so that sessions are worth keeping
        self.settings = replace(settings, reuse_sessions=True)
        self.migration = migration
        self.service = service
        self._plan: Plan | None = None

    async def look(self) -> list[Looked]:
        """One look at each service. Raises what keeps the plan from being read the first time."""
        plan = await self._in_force()
        names = [self.service] if self.service else list(plan.services)
        return list(
            await asyncio.gather(
                *(permanent.look(self.control, plan, pair(plan, name, self.settings.database)) for name in names)
            )
        )

    def end(self) -> None:
        """No session stays."""
        self.settings.end_sessions()

    async def _in_force(self) -> Plan:
        """As it is now; while the control database is away, as it was, and each look says that it is away."""
        try:
            self._plan = await plans.load(self.control, self.migration)
        except Unreachable:
            if self._plan is None:
                raise
        return self._plan


def findings_of(looks: list[Looked]) -> list[Finding]:
    """All of them, the worst first."""
    return by_importance(finding for one in looks for finding in one.findings)


def as_json(migration: str, looks: list[Looked]) -> dict[str, Any]:
    """One look as one line of JSON has it."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "migration": migration,
        "ok": not findings_of(looks),
        "findings": [asdict(one) for one in findings_of(looks)],
        "services": [
            {
                "service": one.service,
                "settled": one.settled,
                "writable": one.primary,
                "epoch": one.epoch,
                "stage": one.stage,
                "seconds": round(one.seconds, 3),
            }
            for one in looks
        ],
    }


def render(migration: str, looks: list[Looked], trouble: str = "") -> RenderableType:
    """A screen: what is wrong with the deed that helps, then each service."""
    found = findings_of(looks)
    title = f"{len(found)} findings" if found else "all is well"
    head = f"{migration} · {title} · looked at {datetime.now(UTC).isoformat(sep=' ', timespec='seconds')}"
    parts: list[RenderableType] = [Text(trouble, style="bold red")] if trouble else []
    parts.append(Text(printable(head), style="bold red" if found else "bold green"))
    for one in found:
        text = Text(f"{one.severity} {one.watch} · ", style=_STYLES[one.severity])
        text.append(printable(f"{one.service}: {one.text}"), style="default not bold")
        text.append(f"\n    → {printable(one.remedy)}", style="bold default")
        parts.append(text)
    table = Table("service", "", "stage", "findings", "look", expand=True)
    for look in looks:
        count = Text(str(len(look.findings)), style="bold red" if look.findings else "")
        table.add_row(cell(look.service), look.state, look.stage or "-", count, f"{look.seconds:.2f} s")
    return Group(*parts, table)


async def _looks(watcher: Watcher, every: float) -> AsyncIterator[tuple[list[Looked], str]]:
    """Until Ctrl-C. What fails is said beside the last good look, and tried again."""
    seen: list[Looked] = []
    while True:
        trouble = ""
        try:
            seen = await watcher.look()
        except Refused:
            raise
        except Exception as error:
            text = judged(error)[0]
            trouble = f"the last look failed, and is tried again: {text}"
        yield seen, trouble
        await asyncio.sleep(every)


async def _screen(watcher: Watcher, every: float, console: Console) -> None:
    first = await watcher.look()
    if not console.is_terminal:
        async for seen, trouble in _looks(watcher, every):
            console.print(render(watcher.migration, seen, trouble))
        return
    with Live(render(watcher.migration, first), console=console, auto_refresh=False) as live:
        async for seen, trouble in _looks(watcher, every):
            live.update(render(watcher.migration, seen, trouble), refresh=True)


async def _lines(watcher: Watcher, every: float) -> None:
    await watcher.look()
    async for seen, trouble in _looks(watcher, every):
        facts = {**as_json(watcher.migration, seen), **({"trouble": trouble, "ok": False} if trouble else {})}
        typer.echo(json.dumps(facts, ensure_ascii=False, default=str))


@plainly()
def watch(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    service: Annotated[str, typer.Option(help="Only this service.")] = "",
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 3.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end; status 1 where anything is wrong.")] = False,
    as_lines: Annotated[bool, typer.Option("--json", help="Print each look as one line of JSON.")] = False,
) -> None:
    """Watch both sides of every service until Ctrl-C: writable sides, rogue writers, fences, slots, streams, and more.

    Needs no Temporal and no worker, and changes nothing: the monitor that alerts is a workflow. With --once, exit
    status 0 where all is well, 1 where something is wrong.
    """
    settings = Settings.from_environment()

    async def work() -> int:
        async with control(settings) as opened:
            watcher = Watcher(opened, settings, plan, service)
            try:
                if not once:
                    await (_lines(watcher, every) if as_lines else _screen(watcher, every, Console()))
                looks = await watcher.look()
            finally:
                watcher.end()
            if as_lines:
                typer.echo(json.dumps(as_json(plan, looks), ensure_ascii=False, default=str))
            else:
                Console().print(render(plan, looks))
        return Exit.REFUSED if findings_of(looks) else Exit.DONE

    raise typer.Exit(run(work()))
