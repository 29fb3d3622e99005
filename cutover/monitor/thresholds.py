"""The thresholds of a running migration, read from the databases at the moment they are asked for.

Four come from the plan (write latency, mismatches, secondary failures, reconciliation lag); the soak adds the
error rate and the p95 of reads at the new side. What cannot be read is breached (invariant 6). What has seen
too few operations is waited for: it holds a gate, and never rolls back.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from cutover.control import reports
from cutover.control.database import Control
from cutover.monitor import baseline, statistics
from cutover.monitor.baseline import MINIMUM_OPERATIONS, Baseline
from cutover.monitor.samples import Reading, Sample, StreamFacts
from cutover.monitor.statistics import Key, Operation, Tally
from cutover.plan.models import Plan
from cutover.postgres.databases import FAILURES, Pair, Side, direction_from

#: Seconds by which a p95 must have risen before its share counts: a fifth of 2 ms is noise, not harm.
LATENCY_FLOOR = 0.005
#: The share of failed reads at the new side beyond the baseline's own.
READ_ERROR_RATE = 0.01
#: How far back client statistics are looked at.
WINDOW = timedelta(minutes=1)

Operations = tuple[Operation, ...]
Baselines = Mapping[tuple[str, Operation], Baseline]
Tallies = Mapping[Key, Tally]


async def sample(
    control: Control,
    pair: Pair,
    plan: Plan,
    service: str,
    stream_facts: StreamFacts | str,
    *,
    primary: Side = "monolith",
    reads: bool = False,
    window: timedelta = WINDOW,
) -> Sample:
    """Reads every threshold of one service. Never raises for a database that is away: that is a breach.

    `stream_facts`: why, where the stream could not be asked. `primary`: the writable side of now. `reads`: the soak's
    two readings as well. `window`: how far back; the soak gives the time since its reads moved, at least WINDOW.
    """
    limits = plan.thresholds
    direction = direction_from(primary)
    tables = plan.service(service).tables
    asked_fleet: list[Fleet] = []

    async def fleet() -> Fleet:
        """Read once for all readings; one that could not be read is asked for again by the next."""
        if not asked_fleet:
            asked_fleet.append(await _fleet(control, pair, window))
        return asked_fleet[0]

    async def due(compared: Mapping[str, float]) -> bool:
        """Whether a table without a comparison in this direction should have had one: a switch turned it around."""
        turned = await control.fetchval(
            "SELECT extract(epoch FROM clock_timestamp() - changed_at)::float8 FROM control.route"
            " WHERE migration = $1 AND service = $2 AND epoch > 0",
            pair.migration,
            service,
        )
        waits = [
            (plan.cadence(rules.reconcile.every) + rules.reconcile.max_lag).total_seconds()
            for table, rules in tables.items()
            if table not in compared
        ]
        return turned is None or any(turned > wait for wait in waits)

    async def write_latency() -> Reading:
        return latency(await fleet(), ("write",), primary, limits.write_latency_increase)

    async def mismatches() -> Reading:
        found = await reports.latest_of_all(control, pair.migration, service, direction=direction)
        rates = {report.table: report.rate for report in found}
        unsettled = {report.table: report.unsettled / max(report.rows_source, 1) for report in found}
        return mismatch_rate(rates, unsettled, list(tables), limits.mismatch_rate, due=await due(rates))

    async def secondary() -> Reading:
        return secondary_failures(stream_facts, limits.secondary_failure_rate)

    async def reconciliation() -> Reading:
        found = await reports.latest_of_all(control, pair.migration, service, direction=direction)
        late = {
            report.table: report.age - plan.cadence(tables[report.table].reconcile.every).total_seconds()
            for report in found
            if report.table in tables
        }
        return reconciliation_lag(late, list(tables), limits.reconciliation_lag.total_seconds(), due=await due(late))

    async def read_errors() -> Reading:
        return read_error_rate(await fleet(), moved(await fleet(), primary), READ_ERROR_RATE)

    async def read_latency() -> Reading:
        return latency(await fleet(), moved(await fleet(), primary), "service", limits.write_latency_increase)

    asked: dict[str, tuple[float, Callable[[], Awaitable[Reading]]]] = {
        "write_latency_increase": (limits.write_latency_increase, write_latency),
        "mismatch_rate": (limits.mismatch_rate, mismatches),
        "secondary_failure_rate": (limits.secondary_failure_rate, secondary),
        "reconciliation_lag": (limits.reconciliation_lag.total_seconds(), reconciliation),
    }
    if reads:
        asked["read_error_rate"] = (READ_ERROR_RATE, read_errors)
        asked["read_p95_increase"] = (limits.write_latency_increase, read_latency)
    return Sample(
        migration=pair.migration,
        service=service,
        values={name: await _read(limit, ask) for name, (limit, ask) in asked.items()},
    )


async def _read(limit: float, ask: Callable[[], Awaitable[Reading]]) -> Reading:
    try:
        return await ask()
    except FAILURES as error:
        return unreadable(limit, type(error).__name__)


class Fleet:
    """What the applications' instances report of one service, and whether there are any."""

    def __init__(self, tallies: Tallies, baselines: Baselines, live: int) -> None:
        self.tallies, self.baselines, self.live = tallies, baselines, live

    def at(self, operations: Operations, side: Side) -> dict[tuple[str, Operation], Tally]:
        """Tallies of one side by table and operation."""
        return {
            (key.table, key.operation): tally
            for key, tally in self.tallies.items()
            if key.operation in operations and key.side == side
        }

    def idle(self, operations: Operations) -> bool:
        """Whether instances are live and none of them tried such an operation at all, on either side."""
        return self.live > 0 and not any(t.attempts for k, t in self.tallies.items() if k.operation in operations)


async def _fleet(control: Control, pair: Pair, window: timedelta) -> Fleet:
    live = await control.fetchval(
        "SELECT count(*) FROM control.instance WHERE migration = $1 AND service = $2"
        " AND lease_until > clock_timestamp()",
        pair.migration,
        pair.service,
    )
    tallies = await statistics.window(control, pair.migration, pair.service, window)
    return Fleet(tallies, await baseline.load(control, pair.migration, pair.service), live)


def moved(fleet: Fleet, primary: Side) -> Operations:
    """Reads that are answered at the service's side: before the write switch the `stale_ok` ones, on level strong all.

    Whether reads that must see their writes have moved is each application's to know; they are judged where they have.
    """
    both = primary == "service" or fleet.at(("read",), "service")
    return ("read", "stale_read") if both else ("stale_read",)


def unreadable(limit: float, why: str) -> Reading:
    """Invariant 6: a guard that cannot read counts as a breach."""
    return Reading(value=None, limit=limit, breached=True, detail=f"cannot be read: {why}")


def latency(fleet: Fleet, operations: Operations, side: Side, limit: float) -> Reading:
    """The worst rise of a table's p95 over its baseline, as a share of it (0.2: a fifth slower).

    A rise of less than LATENCY_FLOOR seconds is shown and is no breach.
    """
    now = fleet.at(operations, side)
    what = _words(operations)
    early = _nothing_to_judge(fleet, operations, sum(tally.attempts for tally in now.values()), limit)
    if early is not None:
        return early
    rises: list[tuple[bool, float, str]] = []
    for (table, operation), tally in now.items():
        before = fleet.baselines.get((table, operation))
        if before is None or not before.p95 or before.attempts < MINIMUM_OPERATIONS:
            continue
        p95 = tally.p95
        if p95 is None or tally.attempts < MINIMUM_OPERATIONS:
            continue
        rise = p95 / before.p95 - 1
        harm = rise > limit and p95 - before.p95 >= LATENCY_FLOOR
        detail = f"p95 of {what} on {table} is {p95 * 1000:.1f} ms, was {before.p95 * 1000:.1f} ms ({rise:+.0%})"
        rises.append((harm, rise, detail))
    if rises:
        harm, rise, detail = max(rises)
        return Reading(value=rise, limit=limit, breached=harm, detail=detail)
    if not any(operation in operations for _, operation in fleet.baselines):
        return unreadable(limit, f"no baseline of {what} was recorded before the stream started")
    return _too_few(sum(tally.attempts for tally in now.values()), operations, limit)


def read_error_rate(fleet: Fleet, operations: Operations, limit: float) -> Reading:
    """The share of reads at the new side that failed, beyond the share that failed before."""
    now = fleet.at(operations, "service").values()
    seen = sum(tally.attempts for tally in now)
    early = _nothing_to_judge(fleet, operations, seen, limit)
    if early is not None:
        return early
    if seen < MINIMUM_OPERATIONS:
        return _too_few(seen, operations, limit)
    before = [b for (_, operation), b in fleet.baselines.items() if operation in operations]
    tried = sum(b.attempts for b in before)
    usual = sum(b.failures for b in before) / tried if tried else 0.0
    rate = max(0.0, sum(tally.failures for tally in now) / seen - usual)
    detail = f"{rate:.2%} of {seen} reads failed beyond the usual"
    return Reading(value=rate, limit=limit, breached=rate > limit, detail=detail)


def not_compared(missing: list[str], limit: float, due: bool) -> Reading:
    """Tables without a comparison: a breach, or waited for where the switch is younger than their cadence."""
    text = f"no complete comparison of {', '.join(missing)} in this direction yet"
    return unreadable(limit, text) if due else Reading(value=None, limit=limit, waiting=True, detail=text)


def mismatch_rate(
    rates: Mapping[str, float], unsettled: Mapping[str, float], tables: list[str], limit: float, *, due: bool = True
) -> Reading:
    """The worst table's rate of confirmed differences in its newest complete report of this direction.

    `unsettled`: the share of its rows that would not hold still. Where they could lift the rate over the limit, a
    table cannot be judged.
    """
    missing = [table for table in tables if table not in rates]
    if missing:
        return not_compared(missing, limit, due)
    table = max(tables, key=lambda name: rates[name])
    rate = rates[table]
    moving = max(tables, key=lambda name: rates[name] + unsettled[name])
    if rate <= limit < rates[moving] + unsettled[moving]:
        return unreadable(limit, f"{unsettled[moving]:.4%} of {moving} did not settle, so they cannot be judged")
    return Reading(value=rate, limit=limit, breached=rate > limit, detail=f"{rate:.4%} of {table} differ")


def reconciliation_lag(late: Mapping[str, float], tables: list[str], limit: float, *, due: bool = True) -> Reading:
    """Seconds by which the worst table's newest complete comparison is older than its cadence."""
    missing = [table for table in tables if table not in late]
    if missing:
        return not_compared(missing, limit, due)
    table = max(tables, key=lambda name: late[name])
    lag = max(0.0, late[table])
    return Reading(
        value=lag,
        limit=limit,
        breached=lag > limit,
        detail=f"the comparison of {table} is {lag:.0f} s behind its cadence",
    )


def secondary_failures(facts: StreamFacts | str, limit: float) -> Reading:
    """The share of the stream's attempts at the other side that failed."""
    if isinstance(facts, str):
        return unreadable(limit, facts)
    if facts.unknown:
        return unreadable(limit, facts.unknown)
    if facts.first:
        detail = "the stream's counters were read for the first time; the next look has a window"
        return Reading(value=None, limit=limit, waiting=True, detail=detail)
    rate = min(1.0, facts.failures / max(facts.attempts, 1))
    within = f" within {facts.seconds:.0f} s" if facts.seconds else ""
    detail = f"{facts.failures} of {facts.attempts} attempts failed{within}"
    return Reading(value=rate, limit=limit, breached=rate > limit, detail=detail)


def _nothing_to_judge(fleet: Fleet, operations: Operations, seen: int, limit: float) -> Reading | None:
    if seen:
        return None
    if fleet.live == 0:
        return unreadable(limit, "no live instance reports")
    if fleet.idle(operations):
        detail = f"{fleet.live} live instance(s) report no {_words(operations)} at all"
        return Reading(value=None, limit=limit, not_applicable=True, detail=detail)
    return _too_few(0, operations, limit)


def _too_few(seen: int, operations: Operations, limit: float) -> Reading:
    detail = f"not enough {_words(operations)}: {seen} seen, {MINIMUM_OPERATIONS} on one table are needed"
    return Reading(value=None, limit=limit, waiting=True, detail=detail)


def _words(operations: Operations) -> str:
    return "writes" if "write" in operations else "reads" if "read" in operations else "stale_ok reads"
