"""`cutover status`: what every run waits for, since when, and the exact command that would answer or roll back."""

import asyncio
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from temporalio.client import Client, RPCError, WorkflowQueryFailedError

from cutover.cli.checklist import Checklist, read_checklist
from cutover.cli.connection import control, temporal
from cutover.cli.failing import print_json, run
from cutover.cli.runs import open_runs
from cutover.control import reports, stages
from cutover.control.database import Control
from cutover.flags import store as flags
from cutover.settings import Settings
from workflows.status import Status

_STYLE = {
    "RUNNING": "green",
    "WAITING": "cyan",
    "PAUSED": "yellow",
    "NEEDS_ATTENTION": "bold red",
    "ROLLED_BACK": "magenta",
    "DONE": "dim",
}


@dataclass
class ServiceLine:
    """One service as the control database knows it."""

    service: str
    stage: str
    writable: str
    reads: str
    epoch: int
    paused: bool
    differences: int | None
    oldest_pass_seconds: float | None


@dataclass
class Overview:
    """Everything `status` shows."""

    migration: str
    runs: list[Status] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    services: list[ServiceLine] = field(default_factory=list)
    checklist: Checklist = field(default_factory=Checklist)

    def as_json(self) -> dict[str, Any]:
        return {
            "migration": self.migration,
            "runs": [one.model_dump(mode="json") for one in self.runs],
            "runs_without_answer": self.silent,
            "services": [asdict(one) for one in self.services],
            "checklist": self.checklist.as_json(),
        }


async def overview(client: Client, opened: Control, migration: str, *, passes: bool = False) -> Overview:
    """Asks every open run and the control database. A run that does not answer is listed as silent."""
    found = Overview(migration)
    run_ids = await open_runs(client, migration)
    answers = await asyncio.gather(*(_ask(client, one) for one in run_ids if passes or "/reconciliation" not in one))
    for workflow_id, answer in answers:
        if answer is None:
            found.silent.append(workflow_id)
        else:
            found.runs.append(answer)
    staged = await stages.get_stages(opened, migration)
    for name, route in sorted((await flags.all(opened, migration)).items()):
        last = await reports.latest_of_all(opened, migration, name)
        found.services.append(
            ServiceLine(
                service=name,
                stage=staged[name].stage if name in staged else "",
                writable=route.primary_side,
                reads="service" if route.read_from_new else "monolith",
                epoch=route.epoch,
                paused=route.pause_id is not None,
                differences=sum(r.missing + r.extra + r.mismatched for r in last) if last else None,
                oldest_pass_seconds=max((r.age for r in last), default=None),
            )
        )
    found.checklist = await read_checklist(opened, migration)
    return found


async def _ask(client: Client, workflow_id: str) -> tuple[str, Status | None]:
    try:
        handle = client.get_workflow_handle(workflow_id)
        return workflow_id, await asyncio.wait_for(handle.query("status", result_type=Status), 5)
    except (RPCError, WorkflowQueryFailedError, TimeoutError):
        return workflow_id, None


def since(moment: datetime) -> str:
    """How long ago, in one unit."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def render(found: Overview) -> RenderableType:
    """The screen."""
    parts: list[RenderableType] = []
    if found.services:
        table = Table("service", "stage", "writable", "reads", "epoch", "differences", "oldest pass", expand=True)
        for line in found.services:
            table.add_row(
                line.service,
                line.stage or "-",
                line.writable + (" [bold red]PAUSED[/]" if line.paused else ""),
                line.reads,
                str(line.epoch),
                "-" if line.differences is None else str(line.differences),
                "-" if line.oldest_pass_seconds is None else f"{line.oldest_pass_seconds:.0f} s ago",
            )
        parts.append(table)
    if found.checklist.total:
        parts.append(found.checklist.panel())
    for one in found.runs:
        parts.append(_run_panel(one))
    for workflow_id in found.silent:
        parts.append(Text(f"{workflow_id}: does not answer; is a worker running? (cutover worker)", style="bold red"))
    if not found.runs and not found.silent:
        parts.append(
            Text(f"no open run of {found.migration}; start it with: cutover start migration {found.migration}")
        )
    return Group(*parts)


def _run_panel(one: Status) -> Panel:
    body = Text()
    body.append(f"waits for {one.waiting_for} (since {since(one.since)})\n")
    if one.attention:
        body.append(f"{one.attention}\n", style="bold red")
    for name, value in one.progress.items():
        body.append(f"{name}: {value}\n", style="dim")
    for answer in one.commands:
        body.append(f"{answer.does}: ")
        body.append(f"{answer.cutover}\n", style="bold")
    if one.rollback:
        body.append(f"{one.rollback_note} ")
        body.append(f"{one.rollback.cutover}\n", style="bold")
    for refusal in one.refused[-3:]:
        body.append(f"refused: {refusal.text}\n", style="yellow")
    body.rstrip()
    title = f"{one.workflow_id} · {one.phase} · [{_STYLE.get(one.state, '')}]{one.state}[/]"
    return Panel(body, title=title, title_align="left")


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

    async def work() -> int:
        client = await temporal(settings)
        async with control(settings) as opened:
            found = await overview(client, opened, plan)
            if as_json:
                print_json(found.as_json())
            elif not watch:
                Console().print(render(found))
            else:
                with Live(render(found), screen=False, auto_refresh=False) as live:
                    while True:
                        await asyncio.sleep(every)
                        found = await overview(client, opened, plan)
                        live.update(render(found), refresh=True)
        return 1 if found.silent or any(one.state == "NEEDS_ATTENTION" for one in found.runs) else 0

    raise typer.Exit(run(work()))
