"""Switchover: gates, the read flag, the way back, the fenced section. Thin; `cutover.switch` does the work."""

from contextlib import AbstractContextManager
from datetime import timedelta

from opentelemetry.trace import Span
from temporalio import activity

from activities import models as m
from activities import signatures as s
from activities.checking import check
from activities.context import Context
from activities.evidence import as_evidence
from activities.guards import guard_fences, guarded
from activities.passes import fresh_reports, unjudged
from activities.registration import implements
from cutover.alerts.store import Alert, raise_alert
from cutover.alerts.webhook import Webhook
from cutover.checklist.run import problems_of
from cutover.control import approvals, stages, switches
from cutover.errors import ApprovalLapsed, GateClosed
from cutover.flags import instances
from cutover.flags import store as flags
from cutover.monitor.catalogs import TAKEN_OVER
from cutover.postgres.databases import Side, direction_from
from cutover.switch import crossing, finish, gates, reverse, section
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchRequest
from cutover.telemetry.meters import instruments
from cutover.telemetry.setup import tracer

#: The gate whose approvals a write switch needs (workflows/writeswitch.py opens it under this name).
WRITE_GATE = "write"
READ_LAG_SECONDS = 10.0
#: How long instances are waited for after a flag changed; those that die meanwhile lose their lease in 2 s.
ACKNOWLEDGE = timedelta(seconds=10)


class SwitchActivities:
    """See the module."""

    def __init__(self, context: Context, webhook: Webhook | None = None) -> None:
        self.context = context
        self.webhook = webhook

    async def _environment(self, ref: m.Ref) -> SwitchEnvironment:
        context = self.context
        return SwitchEnvironment(plan=await context.plan(ref), pair=await context.pair(ref), control=context.control)

    async def _request(self, order: m.SwitchOrder) -> SwitchRequest:
        return SwitchRequest(
            migration=order.ref.migration,
            service=self.context.service(order.ref),
            switch_id=order.switch_id,
            to_side=order.to_side,
            plan_hash=order.ref.plan_hash,
        )

    def _span(self, step: str, ref: m.Ref, to_side: Side) -> AbstractContextManager[Span]:
        """A span for a step outside of the fenced section, named like those inside."""
        labels = {"cutover.service": self.context.service(ref), "cutover.to_side": to_side}
        return tracer().start_as_current_span(f"switch {step}", attributes=labels)

    @implements(s.POSITION)
    async def position(self, ref: m.Ref) -> m.Position:
        """Where the service stands by the control database."""
        service = self.context.service(ref)
        rows = await stages.get_stages(self.context.control, ref.migration)
        row = rows.get(service)
        route = await flags.find(self.context.control, ref.migration, service)
        if route is None:
            return m.Position(stage=row.stage if row else "")
        begun = await switches.under_way(self.context.control, ref.migration, service)
        return m.Position(
            unfinished=begun.switch_id if begun else "",
            unfinished_to=begun.to_side if begun else "service",
            stage=row.stage if row else "",
            primary_side=route.primary_side,
            read_from_new=route.read_from_new,
            epoch=route.epoch,
        )

    @implements(s.MEASURE_READ)
    async def measure_read(self, request: m.GateRequest) -> m.GateEvidence:
        """The rate of differences of each table within the threshold, on fresh evidence; the stream alive."""
        context, ref = self.context, request.ref
        plan = await context.plan(ref)
        problems = await guarded(context, ref)
        facts: dict[str, m.Scalar] = {}
        worst, total, limit = 0.0, 0, plan.thresholds.mismatch_rate
        for report in await fresh_reports(context, ref):
            worst, total = max(worst, report.rate), total + report.differences
            facts[f"rows of {report.table}"] = report.rows_source
            if not report.complete:
                problems.append(f"{report.table}: its last pass is not complete")
            if report.rate > limit:
                problems.append(f"{report.table}: {report.rate:.4%} of its rows differ, the limit is {limit:.4%}")
            elif unsure := unjudged(report, limit):
                problems.append(unsure)
        stream = await context.stream(ref, await context.direction(ref))
        health = await stream.health()
        if not health.ok:
            problems.append(health.detail)
        lag = await stream.lag(READ_LAG_SECONDS)
        if lag.seconds is None:
            problems.append(f"a marker took longer than {READ_LAG_SECONDS:g} s: the stream lags")
        measures = {"mismatch_rate": worst, "differences": float(total)}
        return await as_evidence(context.control, request, problems, measures, facts)

    @implements(s.SET_READ_FLAG)
    async def set_read_flag(self, change: m.FlagChange) -> m.Acknowledged:
        """Flip the read flag and wait until every live instance follows it."""
        control, ref = self.context.control, change.ref
        service = self.context.service(ref)
        if change.read_from_new:
            # the soak watches what the switch will rest on
            await (await self.context.stream(ref, "forward")).give_up_nothing()
        route = await flags.set_read_from_new(
            control, ref.migration, service, change.read_from_new, actor=activity.info().workflow_id or "workflow"
        )
        acks = await instances.await_acknowledged(
            control, ref.migration, service, revision=route.revision, timeout=ACKNOWLEDGE
        )
        return m.Acknowledged(acked=acks.acked, lapsed=acks.lapsed)

    @implements(s.MEASURE_WRITE)
    async def measure_write(self, request: m.GateRequest) -> m.GateEvidence:
        """Step 1 of the write switch, on reports that are fresh, after a soak that was watched all along."""
        await fresh_reports(self.context, request.ref)
        with self._span("gates", request.ref, request.to_side):
            await guarded(self.context, request.ref)  # tells people, and gives late partitions their fences
            found = await gates.measure(await self._environment(request.ref), request.to_side)
        watched = await check(self.context, request.ref, "switchover", ["error_rates_monitored"])
        facts: dict[str, m.Scalar] = dict(found.facts)
        problems = [*found.problems, *problems_of(watched)]
        return await as_evidence(self.context.control, request, problems, found.measures, facts)

    @implements(s.PREPARE_REVERSE)
    async def prepare_reverse(self, order: m.SwitchOrder) -> None:
        """Step 2: the stream of the other direction exists and is proved."""
        with self._span("make-ready", order.ref, order.to_side):
            await reverse.make_ready(await self._environment(order.ref), order.to_side)

    @implements(s.TAKE_BACK_REVERSE)
    async def take_back_reverse(self, order: m.SwitchOrder) -> None:
        """Undoes step 2 where no switch followed."""
        await reverse.take_back(await self._environment(order.ref), order.to_side)

    @implements(s.DETACH_KEYS)
    async def detach_keys(self, ref: m.Ref) -> m.Facts:
        """Foreign keys across services that begin or end here leave the monolith; their definitions are kept."""
        return m.Facts(facts={"keys": await crossing.detach(await self._environment(ref))})

    @implements(s.RESTORE_KEYS)
    async def restore_keys(self, ref: m.Ref) -> m.Facts:
        """The keys whose tables are all back at the monolith, validated."""
        context = self.context
        problems = await crossing.reattach(await self._environment(ref), context.settings.database)
        for problem in problems:
            # a key whose rows refer to nothing is a person's matter; it does not undo a rollback
            alert = Alert("foreign-key", "warning", ref.migration, context.service(ref), problem, subject=problem)
            await raise_alert(context.control, alert, webhook=self.webhook)
        return m.Facts(facts={"keys that stay away": len(problems)})

    async def _permitted(self, order: m.SwitchOrder) -> None:
        """Approvals and fences once more, right before a switch begins.

        A fence that somebody has lifted would make rows that no stream carried the truth of the new side.
        """
        await self._approved(order)
        if problems := (await guard_fences(self.context, order.ref)).problems:
            raise GateClosed(f"{order.ref.service}: {'; '.join(problems[:3])}")

    async def _approved(self, order: m.SwitchOrder) -> None:
        """The approvals of the write gate, by the control database's clock and under the plan in force.

        A way back needs none, and is not held up by another plan; once it was given up there is none.
        """
        if order.to_side == "monolith":
            row = (await stages.get_stages(self.context.control, order.ref.migration)).get(order.ref.service)
            if row is not None and row.stage in TAKEN_OVER:
                raise GateClosed(f"{order.ref.service}: its way back was given up; cleanup has taken it over")
            return
        await self.context.require_in_force(order.ref)
        ref, plan = order.ref, await self.context.plan(order.ref)
        standing = await approvals.valid(
            self.context.control,
            ref.migration,
            ref.service,
            WRITE_GATE,
            ref.plan_hash,
            order.evidence or None,
            plan.waited(plan.approvals.expire),
        )
        if len(standing) < plan.approvals.required:
            raise ApprovalLapsed(
                f"{ref.service}: {len(standing)} of {plan.approvals.required} approvals of the write gate hold now; "
                "approve it again"
            )

    @implements(s.FENCED_SECTION)
    async def fenced_section(self, order: m.SwitchOrder) -> m.SwitchReport:
        """Steps 3 to 11 in one activity; called again with the same id it recovers."""
        environment = await self._environment(order.ref)
        outcome = await section.run(
            environment, await self._request(order), activity.heartbeat, lambda: self._permitted(order)
        )
        if outcome.result == "done":
            instruments().migration_fence_epoch.set(outcome.epoch, {"service": outcome.service})
            if not outcome.recovered:
                labels = {"service": outcome.service, "direction": direction_from(outcome.to_side)}
                pause = instruments().migration_switchover_pause
                pause.record(outcome.pause_ms / 1000, {**labels, "kind": "client"})
                pause.record(outcome.write_pause_ms / 1000, {**labels, "kind": "write"})
        return m.SwitchReport(
            result=outcome.result,
            switch_id=outcome.switch_id,
            from_side=outcome.from_side,
            to_side=outcome.to_side,
            epoch=outcome.epoch,
            reason=(outcome.reason or "")[:500],
            pause_ms=outcome.pause_ms,
            write_pause_ms=outcome.write_pause_ms,
            acked=outcome.acked,
            lapsed=outcome.lapsed,
            compared_keys=outcome.compared_keys,
            steps=[m.StepTime(name=step.name, ms=step.ms) for step in outcome.steps],
        )

    @implements(s.FINISH_SWITCH)
    async def finish_switch(self, order: m.SwitchOrder) -> None:
        """Step 12: the new direction proved once more, the old stream dropped."""
        with self._span("finish", order.ref, order.to_side):
            await finish.finish(await self._environment(order.ref), await self._request(order))
        if order.to_side == "service":
            # kept for the checklist; the end of deprecation asks for all items of the phase
            await check(self.context, order.ref, "switchover", ["rollback_command_ready"])
