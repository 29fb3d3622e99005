"""Passes that a person waits for: started one after the other, with a bar (or plain lines) for each table."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities import ids
from cutover.cli.reports import Chosen
from cutover.cli.texts import printable, span
from cutover.cli.waiting import polled
from cutover.control import passes
from cutover.control.database import Control
from cutover.control.passes import PassProgress
from cutover.errors import Exit, Unreachable
from workflows.timeouts import TASK_QUEUE

#: Seconds between two looks at a pass, and between two lines about it where there is no terminal.
LOOK, LINE = 0.5, 5.0


@dataclass
class Watch:
    """What is shown of passes: a bar each on a terminal, plain lines elsewhere, nothing where JSON is asked for."""

    total: int
    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))
    bars: Progress | None = None
    task: TaskID | None = None
    _line_at: float = 0.0

    def __enter__(self) -> "Watch":
        if self.console.is_terminal and not self.quiet:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}"))
            self.bars = Progress(*columns, console=self.console)
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def begin(self, number: int, table: Chosen) -> None:
        name = printable(f"{table.service}: {table.table}")
        if self.bars:
            self.task = self.bars.add_task(f"{number} of {self.total}  {name}", total=None, said="begins")
        else:
            self.say(f"{number} of {self.total}: comparing {name}")
        self._line_at = time.monotonic() + LINE

    def look(self, table: Chosen, at: PassProgress | None) -> None:
        if self.bars and self.task is not None:
            if at is not None:
                rows = max(at.rows_estimated, at.rows)
                self.bars.update(self.task, total=rows or None, completed=at.rows, said=described(at))
        elif time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE
            self.say(f"{printable(table.table)}: {described(at) if at else 'waiting for a worker to begin'}")

    def end(self, said: str) -> None:
        if self.bars and self.task is not None:
            self.bars.update(self.task, total=1, completed=1, said=printable(said))
        else:
            self.say(printable(said))

    def say(self, text: str) -> None:
        if not self.quiet:
            typer.echo(text, err=True)


def described(at: PassProgress) -> str:
    """Rows, rows a second, and how long it will take."""
    rows = f"{at.rows:,} of about {at.rows_estimated:,} rows" if at.rows_estimated else f"{at.rows:,} rows"
    if at.round:
        return f"{rows}, settling what differs (look {at.round})"
    left = "" if at.seconds_left is None else f", {span(at.seconds_left)} left"
    return f"{rows}, {at.rows_per_second:,.0f} rows/s{left}"


async def compare(
    client: Client, control: Control, migration: str, tables: Sequence[Chosen], *, quiet: bool
) -> dict[Chosen, str]:
    """A pass over each table; what became of those that failed. One that was begun by hand before is gone on with.

    Raises Unreachable where no worker would make it, and typer.Exit on Ctrl-C: the passes go on.
    """
    if not await polled(client):
        raise Unreachable(f"no worker polls task queue {TASK_QUEUE!r}, so nobody compares: start one (cutover worker)")
    failed: dict[Chosen, str] = {}
    with Watch(len(tables), quiet) as watch:
        for number, table in enumerate(tables, 1):
            watch.begin(number, table)
            try:
                # within: what is broken off while it is being begun may have begun
                handle = await _begun(client, migration, table, watch)
                said = await _followed(handle, control, migration, table, watch)
            except WorkflowFailureError as error:
                said = failed[table] = f"{table.table}: {error.cause}"
            except asyncio.CancelledError:
                watch.__exit__()
                raise _left(migration, table, len(tables) - number) from None
            watch.end(said)
    return failed


async def _begun(client: Client, migration: str, table: Chosen, watch: Watch) -> WorkflowHandle[Any, str]:
    workflow_id = f"{ids.reconciliation(migration, table.service, table.table)}/by-hand"
    payload = {"plan": migration, "service": table.service, "table": table.table}
    try:
        return await client.start_workflow(
            "ReconciliationWorkflow", payload, id=workflow_id, task_queue=TASK_QUEUE, result_type=str
        )
    except WorkflowAlreadyStartedError as error:
        watch.say(f"a pass over {table.table} that was begun by hand is under way; this follows it")
        return client.get_workflow_handle(workflow_id, run_id=error.run_id, result_type=str)


async def _followed(
    handle: WorkflowHandle[Any, str], control: Control, migration: str, table: Chosen, watch: Watch
) -> str:
    """The run's own words at its end."""
    run_id = handle.result_run_id or handle.run_id or ""
    result = asyncio.ensure_future(handle.result())
    task = asyncio.current_task()
    try:
        while True:
            if task is not None and task.cancelling():
                # asyncio.wait_for of Python 3.11 loses a Ctrl-C that comes together with what it waited for
                raise asyncio.CancelledError
            await asyncio.wait([result], timeout=LOOK)
            if result.done():
                return await result
            watch.look(table, await passes.progress(control, migration, table.service, table.name, run_id))
    finally:
        result.cancel()


def _left(migration: str, table: Chosen, behind: int) -> typer.Exit:
    """Ctrl-C: what is told, and how the command ends."""
    where = f"cutover reconcile {migration} --service {table.service} --table {table.table}"
    text = f"the pass over {table.table} goes on on the workers"
    if behind:
        text += f"; the {behind} behind it were not begun"
    typer.echo(f"{text}\nfollow it again: {where} --now\nits report, when it has ended: {where} --show", err=True)
    return typer.Exit(Exit.INTERRUPTED)
