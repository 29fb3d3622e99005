"""Samples of the thresholds, and the hourly summary row."""

from datetime import timedelta

from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.registration import implements
from cutover.control import reports, summaries
from cutover.errors import CutoverError
from cutover.flags import instances
from cutover.monitor import thresholds
from cutover.monitor.samples import StreamFacts
from cutover.postgres.databases import CONNECTION_ERRORS, Direction
from cutover.telemetry.meters import instruments

LAG_SECONDS = 5.0


class MonitoringActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        #: Apply errors at the last look, by migration, service and direction: the server only counts upwards.
        self._errors: dict[tuple[str, str, Direction], int] = {}

    async def _stream(self, ref: m.Ref, direction: Direction) -> tuple[StreamFacts | None, float | None]:
        """What stands for secondary failures on `logical`: new apply errors; and the lag in seconds."""
        try:
            stream = await self.context.stream(ref, direction)
            health = await stream.health()
            measured = await stream.lag(LAG_SECONDS) if health.ok else None
        except (*CONNECTION_ERRORS, CutoverError):
            return None, None
        service = self.context.service(ref)
        lag = measured.seconds if measured else None
        if measured is not None:
            labels = {"service": service, "direction": direction}
            instruments().migration_replication_lag_bytes.set(measured.bytes, labels)
            if lag is not None:
                instruments().migration_replication_lag.set(lag, labels)
        key = (ref.migration, service, direction)
        failures = max(0, health.apply_errors - self._errors.get(key, health.apply_errors))
        self._errors[key] = health.apply_errors
        if not health.ok:
            failures = max(failures, 1)
        return StreamFacts(attempts=max(failures, 1), failures=failures), lag

    @implements(s.SAMPLE)
    async def sample(self, request: m.SampleRequest) -> m.Readings:
        """One look at all thresholds; what cannot be read is breached."""
        context, ref = self.context, request.ref
        await context.require_in_force(ref)
        primary, direction = await context.primary(ref), await context.direction(ref)
        facts, lag = await self._stream(ref, direction)
        service = context.service(ref)
        taken = await thresholds.sample(
            context.control,
            await context.pair(ref),
            await context.plan(ref),
            service,
            facts,
            primary=primary,
            reads=request.reads,
            window=max(thresholds.WINDOW, timedelta(seconds=request.window_seconds)),
        )
        for name, reading in taken.values.items():
            outcome = "breached" if reading.breached else "not_applicable" if reading.not_applicable else "ok"
            labels = {"service": service, "name": name, "outcome": outcome}
            instruments().migration_threshold_readings.add(1, labels)
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
                for name, reading in taken.values.items()
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
        _, lag = await self._stream(ref, direction)
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
