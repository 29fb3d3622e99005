"""Phase 2: baseline, stream, backfill, armed fences, changed keys, schedules, loose keys, gate `ready`."""

import asyncio
import time
from datetime import timedelta

from temporalio.client import Client

from activities import models as m
from activities import passes, schedules
from activities import signatures as s
from activities.checking import check
from activities.context import Context
from activities.evidence import as_evidence
from activities.guards import guarded
from activities.registration import implements
from cutover.checklist.run import problems_of
from cutover.control import stages, tasks
from cutover.errors import ConfigError
from cutover.monitor import baseline
from cutover.postgres import fence
from cutover.reconcile.changed import ChangedKeys
from cutover.switch import crossing
from cutover.switch.attempt import under_token
from cutover.switch.environment import SwitchEnvironment
from cutover.telemetry.meters import instruments

#: What is recorded before the stream starts: the clients' last ten minutes.
BASELINE_WINDOW = timedelta(minutes=10)
#: Seconds for which kinds of operations that are seldom are waited for; less than the activity's time limit.
ENOUGH_SECONDS = 30.0
LAG_SECONDS = 10.0


class ReplicationActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.RECORD_BASELINE)
    async def record_baseline(self, ref: m.Ref) -> m.Facts:
        """What the clients saw before anything changed for them. Not taken again once the stream has been started.

        A service gets its first stage when the backfill is done; until then the stream itself tells that it runs.
        """
        service = self.context.service(ref)
        rows = await stages.get_stages(self.context.control, ref.migration)
        stream = await self.context.stream(ref, "forward")
        if service in rows or await stream.exists():
            return m.Facts(facts={"baseline": "taken before the stream was started"})
        control, deadline = self.context.control, time.monotonic() + ENOUGH_SECONDS
        # what the soak cannot be judged against would hold it for good
        while thin := await baseline.too_few(control, ref.migration, service, BASELINE_WINDOW):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        taken = await baseline.record(control, ref.migration, service, BASELINE_WINDOW)
        facts: dict[str, m.Scalar] = {"operations measured": len(taken)}
        if thin:
            facts["measured too seldom"] = ", ".join(thin)
        return m.Facts(facts=facts)

    @implements(s.START_STREAM)
    async def start_stream(self, ref: m.Ref) -> m.Facts:
        """With the first copy; a stream that exists is left as it is."""
        context, stream = self.context, await self.context.stream(ref, "forward")
        env = SwitchEnvironment(await context.plan(ref), await context.pair(ref), context.control)
        await stream.prepare()
        # what an earlier start has left is cleared away under a token: one that slept must not drop what is in use
        await stream.start(copy=True, through=under_token(env, "monolith"))
        return m.Facts()

    @implements(s.BACKFILL_PROGRESS)
    async def backfill_progress(self, ref: m.Ref) -> m.Backfill:
        stream = await self.context.stream(ref, "forward")
        tables = [
            m.TableBackfill(
                table=one.table,
                state=one.stage,
                rows=one.rows_copied,
                rows_estimated=one.rows_estimated,
                bytes=one.bytes_copied,
            )
            for one in await stream.progress()
        ]
        for table in tables:
            labels = {"service": self.context.service(ref), "table": table.table}
            instruments().migration_backfill_rows.set(table.rows, labels)
        return m.Backfill(complete=await stream.ready(), tables=tables)

    @implements(s.ARM_FENCES)
    async def arm_fences(self, ref: m.Ref) -> m.Facts:
        """The first copy is done, so sessions in replica mode are refused as well from now on."""
        pair = await self.context.pair(ref)
        async with pair.target.session("cutover-fence") as connection:
            await fence.make_always(connection, pair.tables)
        return m.Facts()

    @implements(s.PREPARE_CHANGED_KEYS)
    async def prepare_changed_keys(self, ref: m.Ref) -> m.Facts:
        pair = await self.context.pair(ref)
        async with ChangedKeys(pair, "forward", self.context.control) as changed:
            await changed.prepare()
        return m.Facts()

    @implements(s.CREATE_SCHEDULES)
    async def create_schedules(self, ref: m.Ref) -> m.Facts:
        """A Temporal Schedule for each table, on the table's own (compressed) cadence."""
        plan, service = await self.context.plan(ref), self.context.service(ref)
        return m.Facts(facts={"schedules": await schedules.create(self._client(), plan, service, ref.plan_hash)})

    @implements(s.DELETE_SCHEDULES)
    async def delete_schedules(self, ref: m.Ref) -> m.Facts:
        await schedules.delete(self._client(), await self.context.plan(ref), self.context.service(ref))
        return m.Facts()

    @implements(s.PROCESS_LOOSE_KEYS)
    async def process_loose_keys(self, ref: m.Ref) -> m.Facts:
        """Queues of deleted parents, and the slot of the changed keys, so that its tail stays short."""
        context = self.context
        database = context.settings.database
        done = await crossing.process(await context.plan(ref), context.service(ref), context.control, database)
        pair, direction = await self.context.pair(ref), await self.context.direction(ref)
        async with ChangedKeys(pair, direction, self.context.control) as changed:
            compared = await changed.shorten(polite=True)
        return m.Facts(facts={"loose keys followed": done, "changed keys compared": compared})

    @implements(s.MEASURE_READY)
    async def measure_ready(self, request: m.GateRequest) -> m.GateEvidence:
        """Zero confirmed differences on fresh reports, a live stream, no open item of the phase."""
        context, ref = self.context, request.ref
        problems = await guarded(context, ref)
        limit = (await context.plan(ref)).thresholds.mismatch_rate
        facts: dict[str, m.Scalar] = {}
        total = 0
        for report in await passes.fresh_reports(context, ref):
            total += report.differences
            facts[f"rows of {report.table}"] = report.rows_source
            if report.differences:
                problems.append(f"{report.table}: {report.differences} rows differ, as confirmed by its last pass")
            elif unsure := passes.unjudged(report, limit):
                problems.append(unsure)
            if not report.complete:
                problems.append(f"{report.table}: its last pass is not complete")
        stream = await context.stream(ref, await context.direction(ref))
        health = await stream.health()
        if not health.ok:
            problems.append(health.detail)
        lag = await stream.lag(LAG_SECONDS)
        if lag.seconds is None:
            problems.append(f"a marker took longer than {LAG_SECONDS:g} s: the stream lags")
        problems += problems_of(await check(context, ref, "dual_write"))
        pending = await tasks.pending(context.control, ref.migration, "dual_write")
        problems += [f"task {one.name!r} is not confirmed" for one in pending if one.service == ref.service]
        return await as_evidence(context.control, request, problems, {"differences": float(total)}, facts)

    def _client(self) -> Client:
        if self.context.client is None:
            raise ConfigError("this worker has no Temporal client, so it cannot keep schedules")
        return self.context.client
