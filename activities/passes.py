"""Reconciliation passes over one table, as the scheduled workflow and the gates run them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.context import Context
from activities.models import Ref
from cutover.control import conflicts, reports
from cutover.control.places import places
from cutover.control.reports import TableReport
from cutover.errors import NotYet
from cutover.plan.calendar import frozen_until
from cutover.postgres.identifiers import TableName
from cutover.reconcile.changed import ChangedKeys
from cutover.reconcile.pace import Looking, Pace
from cutover.reconcile.passes import Job, Progress, finish_pass, open_pass, run_pass, walk_span
from cutover.streams.base import settling
from cutover.switch import crossing
from cutover.telemetry.meters import instruments

SETTLE_SECONDS = 60.0
#: A pass is judged by its speed only after so long.
SETTLED_SPEED = timedelta(seconds=5)

Late = Callable[[Ref, str, str], Awaitable[None]]


class Frozen(Exception):
    """A freeze window of the plan: nothing is compared until that moment."""

    def __init__(self, until: datetime) -> None:
        super().__init__(f"frozen until {until.isoformat(timespec='seconds')}")
        self.until = until


async def begin(context: Context, ref: Ref, table: str, pass_id: str) -> int:
    """Opens a pass; the number of its spans, 0 for one that has its report."""
    job = await _job(context, ref, table, pass_id, replicas=True)
    await _drain(job)
    async with _places(context, ref, job):
        return await open_pass(job)


async def walk(context: Context, ref: Ref, table: str, pass_id: str, number: int, late: Late) -> None:
    """One span of a pass that stands open. Raises Frozen where a freeze window begins."""
    plan = await context.plan(ref)
    job = await _job(context, ref, table, pass_id, replicas=True)
    every = plan.cadence(job.rules.reconcile.every)
    await _require_unfrozen(context, ref)

    async def tell(progress: Progress) -> None:
        activity.heartbeat(progress.rows_source, progress.rows_target)
        if text := too_slow(progress, every):
            await late(ref, text, table)
        await _require_unfrozen(context, ref)

    async with _places(context, ref, job):
        await walk_span(job, number, tell)


async def finish(context: Context, ref: Ref, table: str, pass_id: str) -> TableReport:
    """Settles what the spans have found; the changed keys learn what was verified."""
    job = await _job(context, ref, table, pass_id, replicas=True)
    async with _places(context, ref, job):
        report = await finish_pass(job, await _orphans(context, ref, table))
    return await _ended(context, job, report)


async def pass_over(context: Context, ref: Ref, table: str, *, pass_id: str) -> TableReport:
    """A whole pass on the primaries, in the direction in which rows flow now: gates decide by it.

    The same `pass_id` goes on where a killed attempt stopped. Raises NotYet in a freeze window.
    """
    job = await _job(context, ref, table, pass_id, replicas=False)
    await _drain(job)

    async def tell(progress: Progress) -> None:
        activity.heartbeat(progress.rows_source, progress.rows_target)
        await _require_unfrozen(context, ref)

    try:
        await _require_unfrozen(context, ref)
        async with _places(context, ref, job):
            report = await run_pass(job, tell, await _orphans(context, ref, table))
    except Frozen as frozen:
        raise NotYet(f"{job.pair.service}: {table} is not compared in a freeze window: {frozen}") from None
    return await _ended(context, job, report)


def too_slow(progress: Progress, every: timedelta) -> str:
    """Why a pass will not be done before the next one is due; "" where it will, or nothing can be said yet."""
    seconds = progress.seconds
    if progress.rows_source and progress.rows_estimated > progress.rows_source:
        seconds *= progress.rows_estimated / progress.rows_source
    if progress.seconds < min(SETTLED_SPEED, every / 2).total_seconds() or seconds <= every.total_seconds():
        return ""
    return (
        f"a pass over {progress.table} will take about {seconds:.0f} s ({progress.rows_source} of about "
        f"{progress.rows_estimated} rows after {progress.seconds:.0f} s), longer than the "
        f"{every.total_seconds():.0f} s until the next one is due: raise the table's `every`, or "
        "`reconciliation.connections`, or name a replica"
    )


async def fresh_reports(context: Context, ref: Ref, *, newer_than: float | None = None) -> list[TableReport]:
    """A report for each table in the direction of now; where the last one is too old or of another, a pass is run.

    `newer_than`: age limit in seconds for all tables; by default each table's own max lag. Reports from replicas do
    not count. A pass that was under way while the primary changed may leave one of the other direction behind.
    """
    plan = await context.plan(ref)
    direction = await context.direction(ref)
    info = activity.info()
    found = []
    for table, rules in plan.service(context.service(ref)).tables.items():
        limit = rules.reconcile.max_lag.total_seconds() if newer_than is None else newer_than
        report = await reports.latest(context.control, ref.migration, context.service(ref), table, decisive=True)
        if report is None or report.direction != direction or report.age > limit:
            report = await pass_over(
                context, ref, table, pass_id=f"{info.workflow_run_id}/{info.activity_id}/{ref.service}/{table}"
            )
        found.append(report)
    return found


def unjudged(report: TableReport, limit: float) -> str:
    """Why a pass does not verify its table: rows that would not hold still could lift its rate over the limit (0..1).

    "" where they could not.
    """
    share = report.unsettled / max(report.rows_source, 1)
    if report.rate + share <= limit:
        return ""
    return f"{report.table}: {report.unsettled} of its rows did not settle in the last pass, so nobody can judge them"


async def _job(context: Context, ref: Ref, table: str, pass_id: str, *, replicas: bool) -> Job:
    plan, pair, direction = await context.plan(ref), await context.pair(ref), await context.direction(ref)
    rules = plan.service(context.service(ref)).tables[table]
    stream = await context.stream(ref, direction)
    lag_limit = rules.reconcile.max_lag.total_seconds() / 2
    return Job(
        pair=pair,
        direction=direction,
        table=TableName.parse(table),
        rules=rules,
        control=context.control,
        plan_hash=ref.plan_hash,
        settle=settling(stream, SETTLE_SECONDS),
        pass_id=pass_id,
        pace=Pace(look=Looking(stream, min(lag_limit, SETTLE_SECONDS)), lag_limit=lag_limit),
        replicas=replicas,
    )


@asynccontextmanager
async def _places(context: Context, ref: Ref, job: Job) -> AsyncIterator[None]:
    """No more sessions at a database than the plan allows, whatever tables and workers there are."""
    limit = (await context.plan(ref)).reconciliation.connections
    names = (job.pair.monolith.name, job.pair.target.name)
    async with places(context.control, ref.migration, names, limit):
        yield


async def _require_unfrozen(context: Context, ref: Ref) -> None:
    """Raises Frozen inside of a freeze window."""
    plan = await context.plan(ref)
    if until := frozen_until(plan.reconciliation.freeze, datetime.now(UTC), plan.timezone):
        raise Frozen(until)


async def _orphans(context: Context, ref: Ref, table: str) -> int:
    """Rows of the table whose loose foreign keys point at nothing."""
    plan = await context.plan(ref)
    return await crossing.orphans(plan, context.service(ref), table, context.control, context.settings.database)


async def _drain(job: Job) -> None:
    """What is known to have changed before the pass begins is cleared by it."""
    async with ChangedKeys(job.pair, job.direction, job.control) as changed:
        await changed.drain(polite=True)


async def _ended(context: Context, job: Job, report: TableReport) -> TableReport:
    await ChangedKeys(job.pair, job.direction, context.control).verified(report)
    await conflicts.close_settled(context.control, report)
    _count(report)
    return report


def _count(report: TableReport) -> None:
    labels = {"service": report.service, "table": report.table, "direction": report.direction}
    meters = instruments()
    meters.migration_reconciliation_compared_rows.add(report.rows_source, labels)
    for kind, count in (("missing", report.missing), ("extra", report.extra), ("mismatched", report.mismatched)):
        meters.migration_reconciliation_mismatched_rows.set(count, {**labels, "kind": kind})
    if report.complete:
        meters.migration_reconciliation_last_success_timestamp.set(report.finished_at.timestamp(), labels)
