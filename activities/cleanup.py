"""Phase 4: evidence for giving up the way back, the machinery dropped, archive, rename, drop, the record."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from activities import models as m
from activities import signatures as s
from activities.checking import check
from activities.context import Context
from activities.evidence import as_evidence
from activities.guards import guarded
from activities.passes import fresh_reports
from activities.registration import implements
from cutover import faults
from cutover.archive import service as old_tables
from cutover.checklist.cleanup import FULL_PASS_SECONDS
from cutover.checklist.run import problems_of
from cutover.control import evidence, plans, reports, switches
from cutover.errors import GateClosed
from cutover.flags import store as flags
from cutover.postgres import applier, epoch, fence, own_schema
from cutover.postgres.databases import DIRECTIONS, SIDES
from cutover.reconcile.changed import ChangedKeys
from cutover.streams.outbox import OutboxStream, carrying
from cutover.switch import crossing

#: What the post-migration checklist asks for before the way back may be given up.
VERIFIED = ("data_verified", "full_reconciliation", "benchmarks_match_baseline")
#: For what is still in an outbox when its stream is dropped.
LAST_SECONDS = 60.0


class CleanupActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.MEASURE_WAY_BACK)
    async def measure_way_back(self, request: m.GateRequest) -> m.GateEvidence:
        """A full pass over every table in the direction of now, and each service's latency against its baseline."""
        context, plan = self.context, await self.context.plan(request.ref)
        problems: list[str] = []
        facts: dict[str, m.Scalar] = {}
        measures = {"differences": 0.0}
        for service in plan.services:
            ref = request.ref.model_copy(update={"service": service})
            if await context.primary(ref) != "service":
                problems.append(f"{service} is writable at the monolith")
            for report in await fresh_reports(context, ref, newer_than=FULL_PASS_SECONDS):
                measures["differences"] += report.differences
                facts[f"rows of {report.table}"] = report.rows_source
            problems += [f"{service}: {problem}" for problem in await guarded(context, ref)]
        problems += problems_of(await check(context, request.ref, "cleanup", VERIFIED))
        return await as_evidence(context.control, request, problems, measures, facts)

    @implements(s.DROP_MACHINERY)
    async def drop_machinery(self, ref: m.Ref) -> m.Facts:
        """Loose keys, streams, slots of changed keys, origins, and all that is ours at the service's side.

        The monolith's tables keep their fences until they are dropped; the flags stay until the record is written.
        Raises GateClosed where writes are at the monolith, or a switch is under way.
        """
        context, pair = self.context, await self.context.pair(ref)
        plan = await context.plan(ref)
        async with context.control.transaction() as connection:
            await switches.require_moved(connection, ref.migration, pair.service)
        # before the reverse stream goes: what is followed now is still in the archive's tables
        async with self._carried(ref):
            followed = await crossing.end(plan, pair.service, context.control, context.settings.database)
        async with faults.step("cleanup.streams"):
            for direction in DIRECTIONS:
                await ChangedKeys(pair, direction, context.control).drop()
                stream = await context.stream(ref, direction)
                await stream.drop()
        for side in SIDES:
            async with pair.at(side).session("cutover-cleanup") as connection:
                await applier.drop_origins(connection, pair.service)
        async with faults.step("cleanup.ours"), pair.target.session("cutover-cleanup") as connection:
            await fence.remove(connection, pair.tables)
            await epoch.remove(connection, pair.service)
            kept = await own_schema.drop_if_unused(connection)
        await self._require(ref, "dual_write_disabled")
        return m.Facts(facts={"deleted parents followed": followed, "schema cutover": kept[:200] or "gone"})

    @asynccontextmanager
    async def _carried(self, ref: m.Ref) -> AsyncIterator[None]:
        """What is written until the block's end is at the other side when it ends, as the run's relays are gone."""
        stream = await self.context.stream(ref, await self.context.direction(ref))
        if not isinstance(stream, OutboxStream) or not await stream.exists():
            yield
            return
        async with carrying(stream.pair):
            yield
            await stream.await_marker(await stream.put_marker(), LAST_SECONDS)

    async def _require(self, ref: m.Ref, item: str, otherwise: str = "") -> None:
        """Raises GateClosed where the item of the checklist does not hold: after the step that is to fulfil it, or
        before one that rests on it, and what that means then."""
        if problems := problems_of(await check(self.context, ref, "cleanup", [item])):
            raise GateClosed("; ".join([*([otherwise] if otherwise else []), *problems[:5]]))

    @implements(s.ARCHIVE_TABLES)
    async def archive_tables(self, ref: m.Ref) -> m.ArchiveResult:
        """Export with manifest and checksums, and a restore test of it."""
        pair = await self.context.pair(ref)
        folder = old_tables.folder(await self.context.plan(ref), pair.service)
        result = await old_tables.archive(pair, self.context.control, folder, ref.plan_hash)
        await self._require(ref, "tables_archived")
        return m.ArchiveResult(
            folder=result.folder.name,
            tables=result.tables,
            rows=result.rows,
            bytes=result.bytes,
            restored=True,
        )

    @implements(s.RENAME_TABLES)
    async def rename_tables(self, ref: m.Ref) -> m.Facts:
        renamed = await old_tables.rename(await self.context.pair(ref), self.context.control)
        return m.Facts(facts={"tables": len(renamed)})

    @implements(s.MEASURE_QUIET)
    async def measure_quiet(self, request: m.GateRequest) -> m.GateEvidence:
        """Nobody has read or written the renamed tables for as long as the plan says."""
        plan = await self.context.plan(request.ref)
        wanted = plan.waited(plan.cleanup.quiet_for).total_seconds()
        problems: list[str] = []
        tables = 0
        for service in plan.services:
            pair = await self.context.pair(request.ref.model_copy(update={"service": service}))
            for found in await old_tables.quiet(pair, self.context.control):
                tables += 1
                if found.quiet_seconds < wanted:
                    problems.append(
                        f"{found.retired_name} was used {found.quiet_seconds:.0f} s ago; {wanted:.0f} s without use "
                        "are asked for"
                    )
        return await as_evidence(self.context.control, request, problems, {}, {"tables not used": tables})

    @implements(s.DROP_TABLES)
    async def drop_tables(self, ref: m.Ref) -> m.Facts:
        """Raises GateClosed where the archive is not whole any more: nothing is dropped then."""
        pair = await self.context.pair(ref)
        if left := await old_tables.left(pair):
            await self._require(ref, "tables_archived", f"{len(left)} tables are kept, as all that is left")
        dropped = await old_tables.drop(pair)
        async with faults.step("cleanup.last"), pair.monolith.session("cutover-cleanup") as connection:
            await epoch.remove(connection, pair.service)
            kept = await own_schema.drop_if_unused(connection)
        return m.Facts(facts={"tables": dropped, "schema cutover": kept[:200] or "gone"})

    @implements(s.RECORD_MIGRATION)
    async def record_migration(self, ref: m.Ref) -> m.Facts:
        """What the migration did and what it leaves to the application, kept as evidence; flags and claims removed.

        Instances stay where they are: the last route of a service stands for good.
        """
        control, plan = self.context.control, await self.context.plan(ref)
        ended = await switches.outcomes(control, ref.migration)
        newest = await reports.latest_of_all(control, ref.migration)
        facts: dict[str, m.Scalar] = {
            "services": len(plan.services),
            "switches": sum(one.get("result") == "done" for one in ended),
            "longest_pause_ms": round(max((float(one.get("pause_ms") or 0) for one in ended), default=0.0), 1),
            "rows": sum(one.rows_source for one in newest),
            "differences": sum(one.differences for one in newest),
        }
        for key in await crossing.definitions(control, ref.migration):
            facts[f"foreign key {key.name}, the application's own from now on"] = key.words[:300]
        for service in plan.services:
            await flags.drop(control, ref.migration, service, actor="cleanup")
        await self._require(ref, "feature_flags_removed")
        taken = evidence.Evidence(ref.migration, None, "record", ref.plan_hash, {"measures": {}, "facts": facts}, True)
        await evidence.record(control, taken)
        await plans.release_tables(control, ref.migration, by="cleanup")
        return m.Facts(facts=facts)
