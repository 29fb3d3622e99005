"""`cutover status`: what every run waits for, since when, and the exact command that would answer or roll back."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from temporalio.client import Client, RPCError, WorkflowQueryFailedError

from activities import ids
from cutover.cli.checklist import read_checklist
from cutover.cli.connection import control
from cutover.cli.failing import judged, plainly, print_json, run
from cutover.cli.runs import open_runs
from cutover.cli.screen import Overview, Screen, ServiceLine, render, since
from cutover.control import conflicts, reports, stages
from cutover.control.database import Control
from cutover.errors import Exit
from cutover.flags import store as flags
from cutover.flags.store import Route
from cutover.settings import Settings
from cutover.telemetry.temporal import connect
from workflows.status import Status

__all__ = ["Overview", "ServiceLine", "overview", "render", "status"]

#: Seconds that a run has for its answer, and that one look at everything may take.
ANSWER = 5.0
LOOK = 15.0


async def overview(client: Client, opened: Control, migration: str, *, passes: bool = False) -> Overview:
    """Asks every open run and the control database. A run that does not answer is listed as silent."""
    found = Overview(migration)
    await look_at_runs(client, found, passes=passes)
    await look_at_services(opened, found)
    return found


async def look_at_runs(client: Client, found: Overview, *, passes: bool = False) -> None:
    """The open runs as they answer now; `passes`: those of reconciliation as well."""
    run_ids = await open_runs(client, found.migration)
    answers = await asyncio.gather(*(_ask(client, one) for one in run_ids if passes or "/reconciliation" not in one))
    found.runs = [answer for _, answer in answers if answer is not None]
    found.silent = [workflow_id for workflow_id, answer in answers if answer is None]


async def look_at_services(opened: Control, found: Overview) -> None:
    """The services as the control database knows them; lag by the runs' last samples. Raises Unreachable."""
    migration = found.migration
    staged = await stages.get_stages(opened, migration)
    cases = await conflicts.count_open(opened, migration)
    overdue = Counter[str]()
    for late in await conflicts.overdue(opened, migration):
        overdue[late.service] += late.count
    lines = []
    for name, route in sorted((await flags.all(opened, migration)).items()):
        last = await reports.latest_of_all(opened, migration, name)
        lines.append(
            ServiceLine(
                service=name,
                stage=staged[name].stage if name in staged else "",
                writable=route.primary_side,
                reads=_reads(route),
                epoch=route.epoch,
                paused=route.pause_id is not None,
                differences=sum(r.differences for r in last) if last else None,
                oldest_pass_seconds=max((r.age for r in last), default=None),
                lag_seconds=_lag(found.runs, migration, name),
                cases=cases.get(name, 0),
                cases_overdue=overdue[name],
            )
        )
    found.services = lines
    found.checklist = await read_checklist(opened, found.migration)


def _reads(route: Route) -> str:
    """The side of the `stale_ok` reads; a share of them is named as one."""
    if 0 < route.percentage < 100:
        return f"{route.percentage} % service"
    return "service" if route.percentage else "monolith"


def _lag(runs: list[Status], migration: str, service: str) -> float | None:
    """Seconds, as the service's runs sampled it last: the way back's where the writes have moved, else the stream's."""
    progress = {one.workflow_id: one.progress for one in runs}
    for workflow_id, name in (
        (ids.switchover(migration, service), "reverse lag seconds"),
        (ids.replication(migration, service), "lag seconds"),
    ):
        value = progress.get(workflow_id, {}).get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


async def _ask(client: Client, workflow_id: str) -> tuple[str, Status | None]:
    try:
        handle = client.get_workflow_handle(workflow_id)
        return workflow_id, await asyncio.wait_for(handle.query("status", result_type=Status), ANSWER)
    except (RPCError, WorkflowQueryFailedError, TimeoutError):
        return workflow_id, None


class Watching:
    """Looks again and again; what fails is shown above the last good look, and tried again."""

    def __init__(self, client: Client, opened: Control, migration: str) -> None:
        self.client = client
        self.opened = opened
        self.found = Overview(migration)
        self.trouble: dict[str, tuple[str, datetime]] = {}

    async def look(self) -> Screen:
        """One look. Never raises for a server that does not answer."""
        await self._attempt("runs", look_at_runs(self.client, self.found))
        await self._attempt("services", look_at_services(self.opened, self.found))
        texts = [
            f"{what} are as they were {since(at)} ago; tried again: {text}" for what, (text, at) in self.trouble.items()
        ]
        return Screen(self.found, "\n".join(texts))

    async def _attempt(self, what: str, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(LOOK):
                await work
        except Exception as error:
            text = judged(error)[0]
            self.trouble[what] = (text, self.trouble.get(what, ("", datetime.now(UTC)))[1])
        else:
            self.trouble.pop(what, None)


async def _watch(watching: Watching, every: float, console: Console) -> None:
    """Until Ctrl-C."""
    if not console.is_terminal:
        while True:
            screen = await watching.look()
            console.print(screen.trouble, render(watching.found))
            await asyncio.sleep(every)
    with Live(await watching.look(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            await asyncio.sleep(every)
            live.update(await watching.look(), refresh=True)


@plainly()
def status(
    plan: Annotated[str, typer.Argument(help="The migration's name.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the screen up to date until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.2)] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What every run waits for, since when, and the command that would answer it or roll back.

    Exit status 0, or 1 where a run needs attention or does not answer.
    """
    settings = Settings.from_environment()
    if watch and as_json:
        raise typer.BadParameter("--watch is a screen and --json is none: give one of them")

    async def work() -> int:
        client = await connect(settings)
        async with control(settings) as opened:
            if watch:
                await _watch(Watching(client, opened, plan), every, Console())
            found = await overview(client, opened, plan)
            if as_json:
                print_json(found.as_json())
            else:
                Console().print(render(found))
        attention = any(one.attention for one in found.runs)
        return Exit.REFUSED if found.silent or attention else Exit.DONE

    raise typer.Exit(run(work()))
