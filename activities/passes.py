"""One reconciliation pass over one table, as the scheduled workflow and the gates run it."""

from collections.abc import Awaitable, Callable

from temporalio import activity

from activities.context import Context
from activities.models import Ref
from cutover.control import conflicts, reports
from cutover.control.reports import TableReport
from cutover.postgres.databases import Direction
from cutover.postgres.identifiers import TableName
from cutover.reconcile.changed import ChangedKeys
from cutover.reconcile.passes import Progress, run_pass
from cutover.telemetry.meters import instruments

SETTLE_SECONDS = 60.0


async def settling(context: Context, ref: Ref, direction: Direction) -> Callable[[], Awaitable[None]]:
    """A function that returns once all that is committed at the source now is at the target."""
    stream = await context.stream(ref, direction)

    async def settle() -> None:
        await stream.await_marker(await stream.put_marker(), SETTLE_SECONDS)

    return settle


async def pass_over(context: Context, ref: Ref, table: str, *, pass_id: str) -> TableReport:
    """Compare a table in the direction in which rows flow now; the changed keys learn what was verified.

    The same `pass_id` goes on where a killed attempt stopped.
    """
    plan, pair = await context.plan(ref), await context.pair(ref)
    direction = await context.direction(ref)

    def tell(progress: Progress) -> None:
        activity.heartbeat(progress.rows_source, progress.rows_target)

    changed = ChangedKeys(pair, direction, context.control)
    async with changed:
        # what is known to have changed before the pass begins is cleared by it
        await changed.drain(polite=True)
    report = await run_pass(
        pair,
        direction,
        TableName.parse(table),
        plan.service(context.service(ref)).tables[table],
        control=context.control,
        plan_hash=ref.plan_hash,
        settle=await settling(context, ref, direction),
        progress=tell,
        pass_id=pass_id,
    )
    await changed.verified(report)
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


async def fresh_reports(context: Context, ref: Ref, *, newer_than: float | None = None) -> list[TableReport]:
    """A report for each table in the direction of now; where the last one is too old, a pass is run.

    `newer_than`: age limit in seconds for all tables; by default each table's own max lag.
    """
    plan = await context.plan(ref)
    direction = await context.direction(ref)
    info = activity.info()
    found = []
    for table, rules in plan.service(context.service(ref)).tables.items():
        limit = rules.reconcile.max_lag.total_seconds() if newer_than is None else newer_than
        report = await reports.latest(context.control, ref.migration, context.service(ref), table, direction=direction)
        if report is None or report.age > limit:
            report = await pass_over(
                context, ref, table, pass_id=f"{info.workflow_run_id}/{info.activity_id}/{ref.service}/{table}"
            )
        found.append(report)
    return found
