"""Runs of a pass in processes of their own, which a test can kill or measure.

Each is forked off a small server process that has everything imported, so that it begins within milliseconds.
"""

import asyncio
import contextlib
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from cutover.control.database import Control
from cutover.errors import StaleAttempt
from cutover.plan.models import Reconcile, Table
from cutover.postgres.buckets import Buckets, Reader, Region, Slices
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName
from cutover.reconcile import ranges, spans
from cutover.reconcile.passes import Job, finish_pass, run_pass, walk_span


@dataclass(frozen=True)
class Order:
    """What a process is to do: over which databases, in parts of how many rows, and where it writes its notes."""

    source: Database
    target: Database
    control: Database
    pass_id: str
    notes: Path
    #: Numbers of the modules `ranges` and `spans`, by their names.
    sizes: dict[str, int] = field(default_factory=dict)

    def note(self, text: object) -> None:
        """One line, written at once: what a killed process has noted is there."""
        descriptor = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, f"{text}\n".encode())
        finally:
            os.close(descriptor)

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def job(self, control: Control) -> Job:
        async def no_stream() -> None:
            return

        rules = Table(reconcile=Reconcile(every=timedelta(minutes=1), max_lag=timedelta(minutes=1)))
        pair = Pair("m", "svc", self.source, self.target, ())
        return Job(pair, "forward", TableName("public", "t"), rules, control, "h", no_stream, pass_id=self.pass_id)


def set_sizes(sizes: dict[str, int]) -> None:
    for name, value in sizes.items():
        for module in (ranges, spans):
            if hasattr(module, name):
                setattr(module, name, value)


def _noting(order: Order) -> None:
    """Each reading of rows at the source is noted with their number, once it has begun to be worth something."""
    buckets = Reader.buckets

    async def noted(self: Reader, region: Region, slices: Slices | None, count: int) -> Buckets:
        found = await buckets(self, region, slices, count)
        if "monolith" in str(await self.connection.fetchval("SELECT current_database()")):
            order.note(found.rows)
        return found

    Reader.buckets = noted  # type: ignore[method-assign]


async def _with_job(order: Order, deed: Callable[[Job], Any]) -> Any:
    set_sizes(order.sizes)
    control = await Control.open(order.control)
    try:
        return await deed(order.job(control))
    finally:
        await control.close()


def walk(order: Order, numbers: Sequence[int]) -> None:
    """Walks these spans, one after the other; one that another process takes over is left to it."""

    async def deed(job: Job) -> None:
        for number in numbers:
            with contextlib.suppress(StaleAttempt):
                await walk_span(job, number)

    _noting(order)
    asyncio.run(_with_job(order, deed))


def finish(order: Order) -> None:
    """Settles and records; notes when it begins."""

    async def deed(job: Job) -> None:
        order.note("begins")
        with contextlib.suppress(StaleAttempt):
            await finish_pass(job)

    asyncio.run(_with_job(order, deed))


def whole(order: Order) -> None:
    """The whole pass; notes the most memory that the process has had, in kilobytes."""
    asyncio.run(_with_job(order, run_pass))
    order.note(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@contextmanager
def processes() -> Iterator[Callable[..., ForkServerProcess]]:
    """`start(walk, order, numbers)`: a process that does it. Those that still live at the end are killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started: list[ForkServerProcess] = []

    def start(deed: Callable[..., None], *arguments: object) -> ForkServerProcess:
        process = context.Process(target=deed, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.join()
            process.close()
