"""One pass of reconciliation over one table: walk, confirm, report (design 5.4)."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

from cutover.control import reports
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.plan.models import Table
from cutover.postgres import compare
from cutover.postgres.buckets import Reader
from cutover.postgres.databases import Direction, Pair
from cutover.postgres.hashing import agree
from cutover.postgres.identifiers import TableName
from cutover.postgres.shapes import Shape, shapes
from cutover.reconcile.confirm import confirm
from cutover.reconcile.ranges import Walk
from cutover.reconcile.sides import both_sides
from cutover.reconcile.state import PassState

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
    candidates: int
    rows_per_second: float


async def run_pass(
    pair: Pair,
    direction: Direction,
    table: TableName,
    rules: Table,
    *,
    control: Control,
    plan_hash: str,
    settle: Settle,
    progress: Callable[[Progress], None] | None = None,
    pass_id: str | None = None,
    busy: float = 1.0,
    orphans: int = 0,
) -> TableReport:
    """Compares the whole table and records a report with every differing key.

    `settle()` puts a marker at the source and returns when the target has applied it. With a `pass_id` (one per
    activity, say) a pass that was killed goes on at its last finished range, and one that had finished returns its
    report. `busy` is the share of the time that statements may take. Its memory does not grow with the table or with
    the number of differences.

    Raises GateClosed (definitions or the plan's rules do not fit), ConfigError (no such table), Refused (no privilege),
    Unreachable and NotYet (run it again), StaleAttempt (a newer run of this pass has taken over).
    """
    pass_id = pass_id or str(uuid4())
    limit = f"{max(1, round(rules.reconcile.max_snapshot.total_seconds() * 1000))}ms"
    async with both_sides(pair, direction, f"compare/{pair.service}", statement_timeout=limit) as (source, sink):
        source_shape, sink_shape = await shapes(source, sink, table, pair.passes_over(table))
        state = await PassState.open(
            control, pass_id=pass_id, migration=pair.migration, service=pair.service, table=str(table),
            direction=direction, plan_hash=plan_hash, position=await compare.position(source),
        )  # fmt: skip
        if finished := await state.finished_report():
            return finished
        if not state.row["walked"]:
            hashing = await agree(source, sink, (source_shape, sink_shape), state.row["seed"])
            walk = Walk(Reader(source, source_shape, hashing), Reader(sink, sink_shape, hashing), busy)
            await _walk(state, walk, progress)
        await confirm(state, (source, source_shape, sink, sink_shape), settle, rules.reconcile.max_lag)
    return await _report(state, pair, direction, source_shape, plan_hash, orphans)


async def _walk(state: PassState, walk: Walk, progress: Callable[[Progress], None] | None) -> None:
    if state.after and state.after.startswith("[") != walk.ordered:
        await state.restart()
        after = None
    else:
        after = state.after
    started, rows_before, candidates = time.monotonic(), state.rows_source, 0
    async for chunk in walk.chunks(after):
        if chunk.candidates:
            await state.spill(chunk.candidates)
        candidates += len(chunk.candidates)
        if chunk.last:
            await state.advance(chunk.after, chunk.rows_source, chunk.rows_target, chunk.moved)
        if progress:
            elapsed = max(time.monotonic() - started, 0.001)
            progress(
                Progress(
                    pass_id=state.id,
                    table=str(walk.source.shape.table),
                    rows_source=state.rows_source,
                    rows_target=state.rows_target,
                    rows_estimated=walk.source.shape.estimated_rows,
                    chunks=state.chunks,
                    candidates=candidates,
                    rows_per_second=(state.rows_source - rows_before) / elapsed,
                )
            )


async def _report(
    state: PassState, pair: Pair, direction: Direction, shape: Shape, plan_hash: str, orphans: int
) -> TableReport:
    counts = await state.counts()
    base = max(state.rows_source, 1)
    finished_at, duration_ms, moved = await state.clock()
    report = TableReport(
        migration=pair.migration,
        service=pair.service,
        table=str(shape.table),
        direction=direction,
        started_at=state.row["started_at"],
        finished_at=finished_at,
        rows_source=state.rows_source,
        rows_target=state.rows_target,
        missing=counts.missing,
        extra=counts.extra,
        mismatched=counts.mismatched,
        unsettled=counts.unsettled,
        orphans=orphans,
        rate=counts.confirmed / base,
        seed_rate=counts.mismatched / base,
        duration_ms=duration_ms,
        position=state.row["position"],
        plan_hash=plan_hash,
        complete=False,
        bytes_moved=moved,
        seed=state.row["seed"],
        left_out=shape.left_out,
        warnings=_warnings(shape),
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
