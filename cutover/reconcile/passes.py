"""One pass of reconciliation over one table: cut into spans, walk them, confirm, report (design 5.4).

Opening, walking a span and finishing can each be done by another worker, one after the other or the spans at the same
time; all that they have to know of each other stands in the control database.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg

from cutover.control import reports
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.errors import GateClosed
from cutover.plan.models import Table
from cutover.postgres import compare
from cutover.postgres.buckets import Reader
from cutover.postgres.databases import Database, Direction, Pair
from cutover.postgres.hashing import agree
from cutover.postgres.identifiers import TableName
from cutover.postgres.replicas import await_replayed, require_replica
from cutover.postgres.shapes import Shape, shapes, without_text
from cutover.reconcile.confirm import confirm
from cutover.reconcile.pace import Pace
from cutover.reconcile.ranges import Walk
from cutover.reconcile.sides import both_sides
from cutover.reconcile.spans import cut
from cutover.reconcile.state import PassState, SpanState, Walked

Settle = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Progress:
    """How far a pass is; no keys, so that it may stand in a heartbeat."""

    pass_id: str
    table: str
    rows_source: int
    rows_target: int
    rows_estimated: int
    chunks: int
    #: Found by this walk, and not yet looked at again.
    candidates: int
    #: Of this walk, at the source.
    rows_per_second: float
    #: Since the pass began.
    seconds: float


@dataclass(frozen=True)
class Job:
    """One pass: what is compared by which rules, and how politely.

    `settle()` puts a marker at the source and returns when the target has applied it. The same `pass_id` (one per
    run of a workflow, say) goes on where a killed one stood, and returns the report of one that had finished.
    `replicas`: rows are read from the replicas that the plan names. What differs there is judged on the primaries, but
    what is equal was seen on a replica alone: such a report decides nothing about a switch.
    """

    pair: Pair
    direction: Direction
    table: TableName
    rules: Table
    control: Control
    plan_hash: str
    settle: Settle
    pass_id: str = field(default_factory=lambda: str(uuid4()))
    pace: Pace = field(default_factory=Pace)
    replicas: bool = False

    @property
    def from_replica(self) -> bool:
        """Whether the plan names a replica for this pass to read from."""
        return self.replicas and bool(self.pair.replicas)


@dataclass(frozen=True)
class _Sides:
    """Open sessions at both sides, and how the table is compared there."""

    source: asyncpg.Connection
    sink: asyncpg.Connection
    source_shape: Shape
    sink_shape: Shape


async def open_pass(job: Job) -> int:
    """Begins a pass, or finds it where it stands; the number of its spans, 0 for one that has its report.

    Raises GateClosed (definitions or the plan's rules do not fit), ConfigError (no such table), Refused (no privilege),
    Unreachable and NotYet (run it again).
    """
    async with _opened(job) as sides:
        state = await _open(job, sides)
        return 0 if await state.finished_report() else len(await state.spans())


async def walk_span(job: Job, number: int, progress: Callable[[Progress], Awaitable[None]] | None = None) -> None:
    """Compares one span (1 is the first), from where an earlier walk of it stood.

    Raises what `open_pass` raises, and StaleAttempt where another walk of the span has taken over.
    """
    async with _opened(job, replicas=job.from_replica) as sides:
        await _walk(job, sides, number, progress)


async def finish_pass(job: Job, orphans: int = 0) -> TableReport:
    """Settles what the spans have found, and records the report with every differing key.

    Raises what `open_pass` raises, GateClosed where a span was not walked to its end, StaleAttempt where another run
    has taken over.
    """
    async with _opened(job) as sides:
        state = await _open(job, sides)
        if finished := await state.finished_report():
            return finished
        return await _finish(job, state, sides, orphans)


async def run_pass(
    job: Job, progress: Callable[[Progress], Awaitable[None]] | None = None, orphans: int = 0
) -> TableReport:
    """The whole pass, one span after the other, by this process alone; its memory does not grow with the table.

    Raises what `open_pass` raises, StaleAttempt where a newer run of this pass has taken over.
    """
    async with _opened(job) as sides:
        state = await _open(job, sides)
        if finished := await state.finished_report():
            return finished
        for number, (_, done) in (await state.spans()).items():
            if done:
                continue
            if job.from_replica:
                await walk_span(job, number, progress)
            else:
                await _walk(job, sides, number, progress)
        return await _finish(job, state, sides, orphans)


@asynccontextmanager
async def _opened(job: Job, *, replicas: bool = False) -> AsyncIterator[_Sides]:
    limit = f"{max(1, round(job.rules.reconcile.max_snapshot.total_seconds() * 1000))}ms"
    purpose = f"compare/{job.pair.service}"
    async with both_sides(job.pair, job.direction, purpose, replicas=replicas, statement_timeout=limit) as connections:
        alike = await shapes(*connections, job.table, job.pair.passes_over(job.table))
        try:
            yield _Sides(*connections, *alike)
        except asyncpg.FeatureNotSupportedError:
            for connection, shape in zip(connections, alike, strict=True):
                if names := await without_text(connection, shape):
                    raise GateClosed(
                        f"table {job.table}: column {', '.join(names)} has no text form, so its values cannot be "
                        "compared: exclude it in the plan's `compare`, or give it a type that can be shown"
                    ) from None
            raise


async def _open(job: Job, sides: _Sides) -> PassState:
    if job.from_replica:
        await _require_replicas(job, sides)
    state = await PassState.open(
        job.control, pass_id=job.pass_id, migration=job.pair.migration, service=job.pair.service,
        table=str(job.table), direction=job.direction, plan_hash=job.plan_hash,
        positions=(await compare.position(sides.source), await compare.position(sides.sink)),
        rows_estimated=max(sides.source_shape.estimated_rows, sides.sink_shape.estimated_rows),
    )  # fmt: skip
    if await state.finished_report():
        return state
    found = [span for span, _ in (await state.spans()).values()]
    # an index may be gone since a killed run cut the table
    if not found or found[0].ordered != sides.source_shape.ordered:
        await state.cut(await cut(sides.source, sides.source_shape, state.row["rows_estimated"]))
    return state


async def _walk(job: Job, sides: _Sides, number: int, progress: Callable[[Progress], Awaitable[None]] | None) -> None:
    state = await SpanState.open(job.control, job.pass_id, number)
    if state.row["done"]:
        return
    if state.span.ordered != sides.source_shape.ordered:
        raise GateClosed(
            f"table {job.table}: the index of its key has changed since the pass began: begin another pass"
        )
    if job.from_replica:
        await _require_replayed(job, sides, state)
    hashing = await agree(sides.source, sides.sink, (sides.source_shape, sides.sink_shape), state.whole["seed"])
    walk = Walk(
        Reader(sides.source, sides.source_shape, hashing), Reader(sides.sink, sides.sink_shape, hashing), job.pace
    )
    started, rows, candidates = time.monotonic(), 0, 0
    try:
        async for chunk in walk.chunks(state.span, state.after):
            if chunk.candidates:
                await state.spill(chunk.candidates)
            candidates += len(chunk.candidates)
            if not chunk.last:
                continue
            if chunk.after is not None:
                # nothing of this walk runs just now; one of a single part has nobody to give way to
                await job.pace.begin()
            rows += chunk.rows_source
            walked = await state.advance(chunk.after, chunk.rows_source, chunk.rows_target, chunk.moved)
            if progress:
                speed = rows / max(time.monotonic() - started, 0.001)
                await progress(_progress(job, walked, candidates, speed))
    finally:
        await job.pace.end()


async def _require_replayed(job: Job, sides: _Sides, state: SpanState) -> None:
    """What was there when the pass began has to be seen: a replica must have come so far."""
    for _, connection, column in _replicated(job, sides):
        await await_replayed(connection, state.whole[column], job.rules.reconcile.max_lag.total_seconds())


async def _require_replicas(job: Job, sides: _Sides) -> None:
    for replica, connection, _ in _replicated(job, sides):
        async with compare.compare_session(replica, f"compare/{job.pair.service}") as other:
            await require_replica(connection, other, replica.name)


def _replicated(job: Job, sides: _Sides) -> list[tuple[Database, asyncpg.Connection, str]]:
    """The plan's replicas of this pair, each with its side's session and the pass's column of that side's position."""
    both = (
        (job.pair.source(job.direction), sides.source, "position"),
        (job.pair.sink(job.direction), sides.sink, "sink_position"),
    )
    replicas = job.pair.replicas
    return [(replicas[primary.name], at, column) for primary, at, column in both if primary.name in replicas]


def _progress(job: Job, walked: Walked, candidates: int, rows_per_second: float) -> Progress:
    return Progress(
        pass_id=job.pass_id,
        table=str(job.table),
        rows_source=walked.rows_source,
        rows_target=walked.rows_target,
        rows_estimated=walked.rows_estimated,
        chunks=walked.chunks,
        candidates=candidates,
        rows_per_second=rows_per_second,
        seconds=walked.seconds,
    )


async def _finish(job: Job, state: PassState, sides: _Sides, orphans: int) -> TableReport:
    if left := [number for number, (_, done) in (await state.spans()).items() if not done]:
        raise GateClosed(
            f"table {job.table}: {len(left)} spans of the pass were not walked to their end; walk them first"
        )
    both = (sides.source, sides.source_shape, sides.sink, sides.sink_shape)
    await confirm(state, both, job.settle, job.rules.reconcile.max_lag)
    counts = await state.counts()
    rows_source, rows_target = await state.totals()
    base = max(rows_source, 1)
    finished_at, duration_ms, moved = await state.clock()
    report = TableReport(
        migration=job.pair.migration,
        service=job.pair.service,
        table=str(job.table),
        direction=job.direction,
        started_at=state.row["started_at"],
        finished_at=finished_at,
        rows_source=rows_source,
        rows_target=rows_target,
        missing=counts.missing,
        extra=counts.extra,
        mismatched=counts.mismatched,
        unsettled=counts.unsettled,
        orphans=orphans,
        rate=counts.confirmed / base,
        seed_rate=counts.mismatched / base,
        duration_ms=duration_ms,
        position=state.row["position"],
        plan_hash=job.plan_hash,
        complete=False,
        bytes_moved=moved,
        seed=state.row["seed"],
        left_out=sorted({*sides.source_shape.left_out, *sides.sink_shape.left_out}),
        warnings=_warnings(sides.source_shape),
        replica=job.from_replica,
    )
    report_id = await reports.record(state.control, report)
    await state.publish(report_id)
    await state.finish(report_id)
    return report.model_copy(update={"id": report_id, "complete": True})


def _warnings(shape: Shape) -> list[str]:
    """What somebody who trusts the report should know."""
    if not shape.keyed_by:
        return [
            "the table has no key: equal rows were counted, a key in this report is the hash of a row, a changed row "
            "shows as one missing and one extra, and nothing can be mended"
        ]
    if shape.keyed_by != "the primary key":
        return [f"the table has no primary key: rows were told apart by {shape.keyed_by}"]
    return []
