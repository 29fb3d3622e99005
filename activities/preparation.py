"""Phase 1: preflight, schemas, roles, fences, loose keys, fingerprints, the checklist's automatic items."""

from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.evidence import as_evidence
from activities.registration import implements
from cutover.control import evidence, plans, tasks
from cutover.errors import GateClosed
from cutover.plan import checklist
from cutover.plan.models import Plan
from cutover.postgres import epoch, fence, fingerprint, roles, schema
from cutover.preflight.run import preflight as run_preflight
from cutover.switch import crossing

FINDINGS_SHOWN = 10
#: Gate name under which a service's catalog fingerprints are kept.
FINGERPRINTS = "fingerprints"


class PreparationActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.PREFLIGHT)
    async def preflight(self, ref: m.Ref) -> m.PreflightResult:
        """All checks over all services; the blocking findings in words."""
        found = await run_preflight(await self.context.plan(ref), self.context.settings.database)
        blocking = [one for one in found if one.severity == "blocking"]
        return m.PreflightResult(
            blocking=len(blocking),
            advice=len(found) - len(blocking),
            findings=[f"{one.where}: {one.what}"[:200] for one in blocking[:FINDINGS_SHOWN]],
        )

    @implements(s.CREATE_SCHEMA)
    async def create_schema(self, ref: m.Ref) -> m.Facts:
        """The service's tables as they are at the monolith, empty."""
        pair = await self.context.pair(ref)
        await plans.begin_service(self.context.control, ref.migration, ref.plan_hash, pair.service)
        report = await schema.apply_schema(pair.monolith, pair.target, pair.tables, service=pair.service)
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
        """Open at the monolith, closed at the service's database: a rogue writer there is refused from today on."""
        pair = await self.context.pair(ref)
        made = 0
        async with pair.monolith.session("cutover-fence") as connection:
            await epoch.install(connection, pair.service, "monolith")
            made += await fence.install(connection, pair.service, pair.tables, closed=False)
        async with pair.target.session("cutover-fence") as connection:
            await epoch.install(connection, pair.service, "service")
            made += await fence.install(connection, pair.service, pair.tables, closed=True)
        return m.Facts(facts={"fences made": made})

    @implements(s.CAPTURE_LOOSE_KEYS)
    async def capture_loose_keys(self, ref: m.Ref) -> m.Facts:
        """Keys that cross services are noted; deletes of the loose ones' parents are queued from now on."""
        context = self.context
        loose = await crossing.capture(await context.plan(ref), await context.pair(ref), context.control)
        return m.Facts(facts={"loose keys": ", ".join(loose) or "none"})

    @implements(s.TAKE_FINGERPRINTS)
    async def take_fingerprints(self, ref: m.Ref) -> m.Facts:
        """Both catalogs' fingerprints, kept as evidence; gates compare with the catalogs of then."""
        pair = await self.context.pair(ref)
        async with pair.monolith.session("cutover-schema") as here, pair.target.session("cutover-schema") as there:
            one = await fingerprint.fingerprint(here, pair.tables)
            two = await fingerprint.fingerprint(there, pair.tables)
        facts = {"monolith": one.hash, "service": two.hash}
        taken = evidence.Evidence(
            ref.migration, pair.service, FINGERPRINTS, ref.plan_hash, {"measures": {}, "facts": facts}, True
        )
        await evidence.record(self.context.control, taken)
        return m.Facts(facts={name: text[:12] for name, text in facts.items()})

    @implements(s.CHECKLIST)
    async def checklist(self, ref: m.Ref) -> m.Checklist:
        """The strategy's automatic items of Preparation, each with what shows it."""
        plan = await self.context.plan(ref)
        alike, different = await self._schemas(plan, ref)
        tables = sum(len(service.tables) for service in plan.services.values())
        shown = {
            "service_schemas": (not different, f"{tables} tables in {len(plan.services)} databases"),
            "schemas_match_source": (not different, "; ".join(different[:3]) or f"{alike} schemas alike"),
            "reconciliation_dashboard": (True, "reports go to control.report; shown by `cutover status`"),
        }
        items = []
        for item in checklist.items("preparation", "automatic"):
            if item.key in shown:
                ok, words = shown[item.key]
                items.append(m.ChecklistItem(key=item.key, text=item.text, ok=ok, evidence=words[:300]))
        return m.Checklist(items=items)

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
