"""Phase 1: preflight, schemas, roles, fences, loose keys, fingerprints, the gate `prepared`."""

from temporalio import activity

from activities import models as m
from activities import signatures as s
from activities import watching
from activities.context import Context
from activities.evidence import as_evidence
from activities.registration import implements
from cutover.checklist.preparation import FINGERPRINTS
from cutover.control import evidence, plans, stages, tasks
from cutover.errors import GateClosed
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.plan.models import Plan
from cutover.postgres import epoch, fence, roles, schema
from cutover.postgres.databases import SIDES, Pair
from cutover.preflight.run import preflight as run_preflight
from cutover.switch import crossing

FINDINGS_SHOWN = 10


class PreparationActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.PREFLIGHT)
    async def preflight(self, ref: m.Ref) -> m.PreflightResult:
        """All checks over all services; the blocking findings in words. It changes nothing.

        Tables that another migration has are told first: then the other findings may be that one's doing.
        """
        context, plan = self.context, await self.context.plan(ref)
        taken = await plans.taken(context.control, plan, await context.monolith_name(plan))
        found = await run_preflight(plan, context.settings.database, bindir=context.client_programs)
        blocking = [one for one in found if one.severity == "blocking"]
        words = [taken] * bool(taken) + [f"{one.where}: {one.what}" for one in blocking]
        return m.PreflightResult(
            blocking=len(words),
            advice=len(found) - len(blocking),
            findings=[one[:200] for one in words[:FINDINGS_SHOWN]],
        )

    @implements(s.CREATE_SCHEMA)
    async def create_schema(self, ref: m.Ref) -> m.Facts:
        """The service's tables as they are at the monolith, empty."""
        pair = await self.context.pair(ref)
        await plans.begin_service(self.context.control, ref.migration, ref.plan_hash, pair.service)
        report = await schema.apply_schema(
            pair.monolith, pair.target, pair.tables, service=pair.service, bindir=self.context.client_programs
        )
        return m.Facts(facts={"created": len(report.created), "keys left out": len(report.left_out_keys)})

    @implements(s.COMPARE_SCHEMAS)
    async def compare_schemas(self, ref: m.Ref) -> m.Facts:
        """Raises GateClosed where the schemas of the two sides differ."""

        pair = await self.context.pair(ref)
        different = await schema.compare(pair.monolith, pair.target, pair.tables)
        if different:
            raise GateClosed(f"{pair.service}: the schemas differ: " + "; ".join(different[:10]))
        return m.Facts(facts={"tables alike": len(pair.tables)})

    @implements(s.CREATE_ROLES)
    async def create_roles(self, ref: m.Ref) -> m.Facts:
        """The application's roles with the grants they have at the monolith."""
        plan, pair = await self.context.plan(ref), await self.context.pair(ref)
        made = await roles.copy_roles(pair.monolith, pair.target, pair.tables, plan.service(pair.service).app_roles)
        return m.Facts(facts={"roles": len(made), "created": sum(one.created for one in made)})

    @implements(s.INSTALL_FENCES)
    async def install_fences(self, ref: m.Ref) -> m.Facts:
        """Closed at the side that is not the primary: a rogue writer there is refused from today on.

        Run again later, a fence that is missing is made for the primary of then. Raises GateClosed where a side has
        lost its epoch row since a switch, or knows of a later switch than the control database.
        """
        pair = await self.context.pair(ref)
        route = await flags.find(self.context.control, pair.migration, pair.service)
        primary = route.primary_side if route else "monolith"
        made = 0
        stage = (await stages.get_stages(self.context.control, pair.migration)).get(pair.service)
        if route is not None and (stage is None or stage.stage not in catalogs.TAKEN_OVER):
            await _require_epochs(pair, route.epoch)
        for side in SIDES:
            async with pair.at(side).session("cutover-fence") as connection:
                await epoch.install(connection, pair.service, side)
                made += await fence.install(connection, pair.service, pair.tables, closed=side != primary)
                if route is not None and route.epoch:
                    await fence.make_always(connection, pair.tables)
        if self.context.client is not None:
            # there is something to watch from here on
            await watching.ensure(self.context.client, ref.migration, ref.plan_hash, activity.info().task_queue)
        return m.Facts(facts={"fences made": made})

    @implements(s.CAPTURE_LOOSE_KEYS)
    async def capture_loose_keys(self, ref: m.Ref) -> m.Facts:
        """Keys that cross services are noted; deletes of the loose ones' parents are queued from now on."""
        context = self.context
        loose = await crossing.capture(await context.plan(ref), await context.pair(ref), context.control)
        return m.Facts(facts={"loose keys": ", ".join(loose) or "none"})

    @implements(s.TAKE_FINGERPRINTS)
    async def take_fingerprints(self, ref: m.Ref) -> m.Facts:
        """Both catalogs' fingerprints, which every gate and pass compares with; kept as evidence too."""
        pair = await self.context.pair(ref)
        found = await catalogs.take(self.context.control, pair, ref.plan_hash, by="preparation")
        facts = {side: one.hash for side, one in found.items()}
        taken = evidence.Evidence(
            ref.migration, pair.service, FINGERPRINTS, ref.plan_hash, {"measures": {}, "facts": facts}, True
        )
        await evidence.record(self.context.control, taken)
        return m.Facts(facts={name: text[:12] for name, text in facts.items()})

    async def _schemas(self, plan: Plan, ref: m.Ref) -> tuple[int, list[str]]:
        alike, different = 0, []
        for name in plan.services:
            pair = await self.context.pair(ref.model_copy(update={"service": name}))
            found = await schema.compare(pair.monolith, pair.target, pair.tables)
            different += [f"{name}: {one}" for one in found]
            alike += not found
        return alike, different

    @implements(s.MEASURE_PREPARED)
    async def measure_prepared(self, request: m.GateRequest) -> m.GateEvidence:
        """Schemas still alike, every fence in place, no human item open."""
        ref, plan = request.ref, await self.context.plan(request.ref)
        alike, problems = await self._schemas(plan, ref)
        fences = 0
        for name in plan.services:
            pair = await self.context.pair(ref.model_copy(update={"service": name}))
            for side in ("monolith", "service"):
                async with pair.at(side).session("cutover-gate") as connection:
                    states = await fence.states_of(connection, await fence.relations(connection, pair.tables))
                fences += len(states)
                wanted = ("open",) if side == "monolith" else ("fenced", "fenced-always")
                problems += [
                    f"{name}: the fence of {table} at the {side} is {state}"
                    for table, state in states.items()
                    if state not in wanted
                ]
        pending = await tasks.pending(self.context.control, ref.migration, "preparation")
        problems += [f"task {task.name!r} ({task.owner}) is not confirmed" for task in pending]
        return await as_evidence(
            self.context.control, request, problems, {}, {"schemas alike": alike, "fenced tables": fences}
        )


async def _require_epochs(pair: Pair, number: int) -> None:
    """Raises GateClosed where what is made by the route's word, of epoch `number`, would not be the truth."""
    for side in SIDES:
        name = pair.at(side).name
        async with pair.at(side).session("cutover-fence") as connection:
            known = await epoch.read(connection, pair.service)
        if known is None and number:
            raise GateClosed(
                f"{pair.service}: database {name!r} has lost its epoch row since a switch, and is perhaps another one: "
                "nothing is made there before you have found out what became of it "
                f"(cutover watch {pair.migration} shows the statement that makes the row)"
            )
        if known is not None and known.epoch > number:
            raise GateClosed(
                f"{pair.service}: database {name!r} says epoch {known.epoch} and the control database {number}: it has "
                "lost its last commits (a restored backup). Nothing is changed; find out which side holds the newest "
                "rows before anything else"
            )
