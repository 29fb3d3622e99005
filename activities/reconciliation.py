"""Passes and repairs."""

from contextlib import aclosing

from temporalio import activity

from activities import models as m
from activities import passes
from activities import signatures as s
from activities.context import Context
from activities.guards import TEXT_LIMIT, guard_catalogs, guard_servers
from activities.registration import implements
from cutover.alerts.cases import REMEMBERED, escalate, tell_repair, tell_waiting
from cutover.alerts.store import Alert, raise_alert
from cutover.alerts.webhook import Webhook
from cutover.control import reports
from cutover.errors import AnotherServer
from cutover.postgres.identifiers import TableName
from cutover.reconcile.conflicts import Resolution, repairs
from cutover.streams.base import settling


class ReconciliationActivities:
    """See the module."""

    def __init__(self, context: Context, webhook: Webhook | None = None) -> None:
        self.context = context
        self.webhook = webhook

    @implements(s.OPEN_PASS)
    async def open_pass(self, request: m.PassRequest) -> m.PassOpened:
        """Begins a pass, or finds it where it stands."""
        await guard_catalogs(self.context, request.ref)
        plan = await self.context.plan(request.ref)
        spans = await passes.begin(self.context, request.ref, request.table, request.pass_id)
        return m.PassOpened(spans=spans, at_once=plan.reconciliation.connections)

    @implements(s.WALK_SPAN)
    async def walk_span(self, request: m.SpanRequest) -> m.SpanWalked:
        """Compares one span; a killed attempt is gone on with."""
        where = self.context, request.ref, request.table, request.pass_id
        try:
            await passes.walk(*where, request.number, self._late)
        except passes.Frozen as frozen:
            return m.SpanWalked(frozen_until=frozen.until)
        return m.SpanWalked()

    @implements(s.FINISH_PASS)
    async def finish_pass(self, request: m.PassRequest) -> m.PassResult:
        """Settles what the spans have found, and records the report."""
        report = await passes.finish(self.context, request.ref, request.table, request.pass_id)
        plan = await self.context.plan(request.ref)
        await escalate(self.context.control, report.migration, report.service, webhook=self.webhook)
        return m.PassResult(
            table=request.table,
            direction=report.direction,
            report_id=str(report.id),
            rows_source=report.rows_source,
            rows_target=report.rows_target,
            missing=report.missing,
            extra=report.extra,
            mismatched=report.mismatched,
            unsettled=report.unsettled,
            rate=report.rate,
            rate_limit=plan.thresholds.mismatch_rate,
            seconds=round(report.duration_ms / 1000, 3),
        )

    async def _late(self, ref: m.Ref, text: str, table: str) -> None:
        """Before it is too late: a pass will not be done when the next one is due."""
        alert = Alert(
            "reconciliation-cadence", "warning", ref.migration, self.context.service(ref), text, subject=table
        )
        await raise_alert(self.context.control, alert, REMEMBERED, webhook=self.webhook)

    @implements(s.RESOLVE_CONFLICTS)
    async def resolve_conflicts(self, request: m.ResolveRequest) -> m.Resolved:
        """The plan's rule for the confirmed differences of the newest report, page by page, however many there are.

        On a server that nobody has accepted all stay as they are, and it is told; passes go on.
        """
        context, ref, table = self.context, request.ref, request.table
        service = context.service(ref)
        plan, pair, direction = await context.plan(ref), await context.pair(ref), await context.direction(ref)
        rules = plan.service(service).tables[table]
        report = await reports.latest(context.control, ref.migration, service, table)
        result, refused = Resolution(), ""
        if report is not None:
            work = repairs(
                pair, direction, TableName.parse(table), rules, reports.pages_of(context.control, report),
                context.control, settling(await context.stream(ref, direction), passes.SETTLE_SECONDS),
                actor=activity.info().workflow_id or "reconciliation",
            )  # fmt: skip
            try:
                async with aclosing(work):
                    async for steps in work:
                        result.count(steps)
                        text = result.told(rules)
                        await tell_repair(context.control, ref.migration, service, table, text, webhook=self.webhook)
            except AnotherServer as error:
                refused = str(error)[:TEXT_LIMIT]
                await guard_servers(context, ref)
        await tell_waiting(context.control, ref.migration, service, table, webhook=self.webhook)
        return m.Resolved(repaired=result.repaired, cases=result.cases, refused=refused)
