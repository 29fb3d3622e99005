"""What people decided, written to the control database with an audit row; alerts."""

from typing import Literal, cast

from temporalio import activity

from activities import ids, schedules
from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.registration import implements
from cutover.alerts.store import ALWAYS, Alert, raise_alert
from cutover.alerts.webhook import Webhook
from cutover.control import approvals, tasks
from cutover.plan.durations import format_duration
from cutover.plan.models import Phase
from cutover.telemetry.meters import instruments


class MessageActivities:
    """See the module."""

    def __init__(self, context: Context, webhook: Webhook | None = None) -> None:
        self.context = context
        self.webhook = webhook

    @implements(s.RECORD_DECISION)
    async def record_decision(self, decision: m.Decision) -> None:
        """Idempotent by the decision's key. Raises GateClosed where its evidence stands for nothing.

        While the migration's or a service's replication run is paused, its passes are not begun either.
        """
        control, ref = self.context.control, decision.ref
        if decision.action in ("pause", "resume") and self.context.client and _leads(decision.workflow_id, ref):
            plan, held = await self.context.plan(ref), decision.action == "pause"
            await schedules.hold(self.context.client, plan, ref.service, decision.workflow_id, held=held)
        if decision.action in ("approve", "reject"):
            run_id, _, number = decision.key.rpartition("/")
            await approvals.record(
                control,
                migration=ref.migration,
                service=ref.service,
                gate=decision.gate,
                plan_hash=ref.plan_hash,
                by=decision.by,
                run_id=run_id,
                message_id=number,
                decision=cast(Literal["approve", "reject"], decision.action),
                evidence_code=decision.evidence or None,
                note=decision.reason,
            )
            instruments().migration_approvals.add(1, {"gate": decision.gate, "decision": decision.action})
            return
        known = await control.fetchval(
            "SELECT 1 FROM control.audit WHERE migration = $1 AND detail ->> 'key' = $2 LIMIT 1",
            ref.migration,
            decision.key,
        )
        if known:
            return
        detail = {"key": decision.key, "reason": decision.reason, "workflow": decision.workflow_id}
        async with control.acting(
            decision.by, f"message.{decision.action}", migration=ref.migration, service=ref.service, detail=detail
        ):
            pass

    @implements(s.OPEN_TASKS)
    async def open_tasks(self, query: m.TaskQuery) -> m.Tasks:
        """In the plan's words; a service's own where the reference names one, else those of no service."""
        phase = cast(Phase, query.phase)
        return m.Tasks(
            tasks=[
                m.TaskRules(
                    key=task.name,
                    owner=task.owner,
                    phase=task.phase,
                    description=task.description,
                    duration=format_duration(task.duration),
                    service=task.service,
                )
                for task in await tasks.pending(self.context.control, query.ref.migration, phase)
                if task.service == query.ref.service
            ]
        )

    @implements(s.COMPLETE_TASK)
    async def complete_task(self, done: m.TaskDone) -> None:
        await tasks.complete(self.context.control, done.ref.migration, done.task, done.by, done.reason)

    @implements(s.RAISE_ALERT)
    async def raise_alert(self, request: m.AlertRequest) -> None:
        """To the table, the log and the webhook, with a link to the run's page."""
        page, namespace = self.context.settings.temporal_ui, self.context.settings.temporal_namespace
        link = f"{page}/namespaces/{namespace}/workflows/{request.workflow_id.replace('/', '%2F')}" if page else ""
        subject = request.subject
        if request.kind in ALWAYS and not subject:
            # one event: only another attempt of this very activity is a repetition of it
            info = activity.info()
            subject = f"{info.workflow_run_id}/{info.activity_id}"
        ref = request.ref
        alert = Alert(request.kind, request.severity, ref.migration, ref.service, request.text, link, subject)
        await raise_alert(self.context.control, alert, webhook=self.webhook)


def _leads(workflow_id: str, ref: m.Ref) -> bool:
    """Whether passes are held with this run: the migration's own, or a service's replication."""
    return workflow_id in (ids.migration(ref.migration), ids.replication(ref.migration, ref.service or ""))
