"""Plans, stages, claims and the calendar."""

from datetime import timedelta

from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.registration import implements
from cutover.control import adoption, approvals, checks, plans, stages, tasks
from cutover.errors import GateClosed
from cutover.flags import store as flags
from cutover.plan.calendar import next_opening
from cutover.plan.explain import changes
from cutover.plan.models import Plan
from cutover.telemetry.meters import instruments

HOUR = timedelta(hours=1)
#: The gate of the cleanup run whose approvals end every way back (workflows/cleanup.py).
WAY_BACK_GATE = "give-up-way-back"
#: The gate itself looked at the approvals' age when it opened.
FOR_GOOD = timedelta(days=36500)
RELEASED = ("released", "archived")
WATCH = timedelta(minutes=10)
#: Characters of what differs between two plans that a run shows.
CHANGES_SHOWN = 400


def rules_of(plan: Plan) -> m.Rules:
    """The plan's numbers a workflow waits by; what is waited for on purpose is compressed here."""
    return m.Rules(
        migration=plan.migration,
        plan_hash=plan.hash,
        compress=plan.compress,
        services=[
            m.ServiceRules(
                name=name,
                tables=[
                    m.TableRules(name=table, every=plan.cadence(rules.reconcile.every))
                    for table, rules in service.tables.items()
                ],
                stream=service.stream,
            )
            for name, service in plan.services.items()
        ],
        dual_write_at_least=plan.waited(plan.dual_write.at_least),
        soak=plan.waited(plan.switchover.soak),
        deprecation=plan.waited(plan.switchover.deprecation),
        quiet_for=plan.waited(plan.cleanup.quiet_for),
        hour=plan.cadence(HOUR),
        watch_every=plan.cadence(WATCH),
        approvals_required=plan.approvals.required,
        approvals_expire=plan.waited(plan.approvals.expire),
        max_write_pause=plan.switchover.max_write_pause,
    )


class PlanActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.BIND_PLAN)
    async def bind_plan(self, request: m.BindRequest) -> m.Rules:
        """Bind the migration to the plan in force. Raises Refused where none is registered, or another is bound.

        Where a person has adopted another plan in place of the one that is asked for, that one, with what it replaces.
        """
        control = self.context.control
        asked = await plans.load(control, request.plan, request.plan_hash or None)
        bound = await plans.bind(control, request.plan, asked.hash, request.workflow_id or "workflow")
        if bound == asked.hash:
            return rules_of(asked)
        plan = await plans.load(control, request.plan, bound)
        by = await adoption.adopter(control, request.plan, bound)
        words = "; ".join(str(one) for one in changes(asked, plan))
        return rules_of(plan).model_copy(
            update={"former": rules_of(asked), "adopted_by": by, "changes": words[:CHANGES_SHOWN]}
        )

    @implements(s.STAGES)
    async def stages(self, ref: m.Ref) -> m.Stages:
        await self.context.require_in_force(ref)
        rows = await stages.get_stages(self.context.control, ref.migration)
        own = rows.get(None)
        return m.Stages(
            migration=own.stage if own else "",
            services={name: row.stage for name, row in sorted(rows.items(), key=lambda one: one[0] or "") if name},
        )

    @implements(s.SET_STAGE)
    async def set_stage(self, change: m.StageChange) -> None:
        """`prepared` is what the plan in force makes of it; what else has happened is told under any plan.

        `released` ends a service's way back: nobody can write it without the people's approvals of that, nor while the
        monolith is the writable side. `rolled-back` takes those approvals away: the next switch has another way back
        than the one they were about.
        """
        if change.stage == "released" and not (standing := await self._given_up(m.GivenUpQuery(ref=change.ref))).ok:
            raise GateClosed(standing.detail)
        if change.stage == "rolled-back":
            await approvals.void(
                self.context.control,
                migration=change.ref.migration,
                service=None,
                gate=WAY_BACK_GATE,
                reason=f"{change.ref.service} was rolled back",
                actor=change.actor,
            )
        await stages.set_stage(
            self.context.control,
            change.ref.migration,
            change.ref.service,
            change.stage,  # type: ignore[arg-type]  # checked against the known stages by set_stage itself
            {"detail": change.detail, "plan_hash": change.ref.plan_hash},
            actor=change.actor,
            by_plan=change.ref.plan_hash if change.stage == "prepared" else "",
        )
        labels = {"migration": change.ref.migration, "service": change.ref.service or "", "stage": change.stage}
        instruments().migration_phase_info.set(1, labels)

    @implements(s.GIVEN_UP)
    async def given_up(self, query: m.GivenUpQuery) -> m.Standing:
        """Whether people have given up the way back, whoever says so in a message."""
        try:
            return await self._given_up(query)
        except GateClosed as error:
            return m.Standing(ok=False, detail=str(error))

    async def _given_up(self, query: m.GivenUpQuery) -> m.Standing:
        """Raises GateClosed for evidence that stands for nothing."""
        ref, control = query.ref, self.context.control
        plan = await self.context.plan(ref)
        stage = (await stages.get_stages(control, ref.migration)).get(ref.service or "")
        if stage is not None and stage.stage in RELEASED:
            return m.Standing()
        standing = await approvals.valid(
            control, ref.migration, None, WAY_BACK_GATE, plan.hash, query.evidence or None, FOR_GOOD
        )
        if len(standing) >= plan.approvals.required:
            return m.Standing()
        return m.Standing(
            ok=False,
            detail=f"the way back of {ref.service or ref.migration} was not given up: {len(standing)} of "
            f"{plan.approvals.required} approvals of gate {WAY_BACK_GATE!r} (cutover start cleanup {ref.migration})",
        )

    @implements(s.CLAIM_TABLES)
    async def claim_tables(self, ref: m.Ref) -> None:
        """Take the tables of this monolith, and make the rows that all later steps update."""
        await self.context.require_in_force(ref)
        context, plan = self.context, await self.context.plan(ref)
        await plans.claim_tables(context.control, plan, await context.monolith_name(plan))
        await tasks.ensure(context.control, plan)
        await checks.ensure(context.control, plan)
        for service in plan.services:
            await flags.ensure(context.control, ref.migration, service)

    @implements(s.CALENDAR)
    async def calendar(self, request: m.CalendarRequest) -> m.Calendar:
        """The windows of the services that are left, one after the other in the plan's order."""
        await self.context.require_in_force(request.ref)
        plan = await self.context.plan(request.ref)
        moment, windows = request.at, []
        for name, service in plan.services.items():
            if name in request.services:
                moment, end = next_opening(service.switchover, moment, plan.timezone)
                windows.append(m.SwitchWindow(service=name, start=moment, end=end))
        return m.Calendar(windows=windows)
