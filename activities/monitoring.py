"""Samples of the thresholds, and the hourly summary row."""

import logging
from datetime import timedelta

import asyncpg
from temporalio import activity
from temporalio.service import RPCError

from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.guards import guard_fences, guard_servers
from activities.registration import implements
from activities.watching import ensure
from cutover.alerts.cases import escalate
from cutover.control import reports, summaries, watching
from cutover.errors import CutoverError
from cutover.flags import instances
from cutover.monitor import thresholds
from cutover.monitor.samples import Reading, StreamFacts
from cutover.monitor.work import stream_facts
from cutover.postgres.databases import CONNECTION_ERRORS, FAILURES, Direction
from cutover.telemetry.meters import instruments

_log = logging.getLogger(__name__)

LAG_SECONDS = 5.0


class MonitoringActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def _lag(self, ref: m.Ref, direction: Direction) -> float | None:
        """The lag in seconds by a marker; None where it could not be measured."""
        try:
            stream = await self.context.stream(ref, direction)
            if not (await stream.health()).ok:
                return None
            measured = await stream.lag(LAG_SECONDS)
        except (*CONNECTION_ERRORS, CutoverError):
            return None
        labels = {"service": self.context.service(ref), "direction": direction}
        instruments().migration_replication_lag_bytes.set(measured.bytes, labels)
        if measured.seconds is not None:
            instruments().migration_replication_lag.set(measured.seconds, labels)
        return measured.seconds

    async def _work(self, ref: m.Ref, direction: Direction, window: timedelta) -> StreamFacts | str:
        """What stands for writes at the secondary, or in words why the stream could not be asked."""
        context = self.context
        try:
            stream = await context.stream(ref, direction)
            return await stream_facts(context.control, await context.pair(ref), direction, stream, window)
        except CutoverError as error:
            return str(error)
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            # its text may hold an address, or a value
            return f"a database ended the connection ({type(error).__name__})"

    async def _fences(self, ref: m.Ref) -> Reading:
        """How many tables have a fence that does not stand; while a switch is under way nothing is said."""
        try:
            found = await guard_fences(self.context, ref)
        except FAILURES as error:
            return thresholds.unreadable(0, type(error).__name__)
        if not found.settled:
            return Reading(value=None, limit=0, not_applicable=True, detail="no fences to look at, or a switch at work")
        wrong = len(found.problems)
        detail = found.problems[0] if wrong else f"{found.tables} fences stand"
        return Reading(value=wrong, limit=0, breached=wrong > 0, detail=detail)

    async def _servers(self, ref: m.Ref) -> Reading:
        """How much is said against the servers being the ones that the evidence came from."""
        try:
            problems = await guard_servers(self.context, ref)
        except FAILURES as error:
            return thresholds.unreadable(0, type(error).__name__)
        detail = problems[0] if problems else "both servers are the ones that are noted"
        return Reading(value=len(problems), limit=0, breached=bool(problems), detail=detail)

    async def _ensure_monitor(self, ref: m.Ref) -> None:
        """Somebody may have ended its run, or the migration is older than it; without it the sample is taken too."""
        if self.context.client is None:
            return
        try:
            await ensure(self.context.client, ref.migration, ref.plan_hash, activity.info().task_queue)
        except RPCError as error:
            _log.warning("%s: its monitor could not be started (%s)", ref.migration, error.status.name)

    @implements(s.SAMPLE)
    async def sample(self, request: m.SampleRequest) -> m.Readings:
        """One look at all thresholds and fences; what cannot be read is breached."""
        context, ref = self.context, request.ref
        await context.require_in_force(ref)
        await self._ensure_monitor(ref)
        primary, direction = await context.primary(ref), await context.direction(ref)
        window = max(thresholds.WINDOW, timedelta(seconds=request.window_seconds))
        lag = await self._lag(ref, direction)
        service = context.service(ref)
        taken = await thresholds.sample(
            context.control,
            await context.pair(ref),
            await context.plan(ref),
            service,
            await self._work(ref, direction, window),
            primary=primary,
            reads=request.reads,
            window=window,
        )
        values = {**taken.values, "fences": await self._fences(ref), "servers": await self._servers(ref)}
        for name, reading in values.items():
            outcome = "breached" if reading.breached else "not_applicable" if reading.not_applicable else "ok"
            labels = {"service": service, "name": name, "outcome": outcome}
            instruments().migration_threshold_readings.add(1, labels)
        await escalate(context.control, ref.migration, service, webhook=context.webhook)
        await watching.note(context.control, ref.migration, service, soak=request.reads, breached=taken.breached)
        open_now = await reports.open_differences(context.control, ref.migration, service)
        return m.Readings(
            readings=[
                m.Reading(
                    name=name,
                    value=reading.value,
                    limit=reading.limit,
                    breached=reading.breached,
                    waiting=reading.waiting,
                    not_applicable=reading.not_applicable,
                    detail=reading.detail[:200],
                )
                for name, reading in values.items()
            ],
            lag_seconds=round(lag, 3) if lag is not None else None,
            differences=len(open_now),
        )

    @implements(s.SUMMARISE)
    async def summarise(self, ref: m.Ref) -> m.Facts:
        """The row a person reads in the morning, written for the present (compressed) hour."""
        context = self.context
        service, plan = context.service(ref), await context.plan(ref)
        primary, direction = await context.primary(ref), await context.direction(ref)
        lag = await self._lag(ref, direction)
        found = await reports.latest_of_all(context.control, ref.migration, service, direction=direction)
        facts: dict[str, m.Scalar] = {
            "writable": primary,
            "lag_seconds": round(lag, 3) if lag is not None else None,
            "differences": sum(one.differences for one in found),
            "oldest_report_seconds": round(max((one.age for one in found), default=0.0), 1),
            "instances": len(await instances.live(context.control, ref.migration, service)),
        }
        every = plan.cadence(timedelta(hours=1))
        await summaries.record(context.control, ref.migration, service, facts, every=every)
        return m.Facts(facts=facts)
