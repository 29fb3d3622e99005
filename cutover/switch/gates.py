"""Step 1: what has to hold before the writable side may change, measured now.

Each problem is a sentence for a person. A guard that cannot read counts as a breach (invariant 6):
a database that does not answer, a report that is missing and evidence that is too old are problems.
"""

import asyncpg

from cutover.control import conflicts, rebuilds, reports
from cutover.errors import CutoverError
from cutover.flags import store as flags
from cutover.monitor import catalogs, fences
from cutover.postgres import epoch, fence
from cutover.postgres.databases import CONNECTION_ERRORS, Side, direction_from, other
from cutover.switch import servers
from cutover.switch.environment import TAIL_LIMIT, SwitchEnvironment
from cutover.switch.models import GateFacts

#: A fence waits this long at most, so an older transaction would hold it off.
_LONG_TRANSACTION_SECONDS = 60.0

_OTHERS_PREPARED = """
SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND NOT starts_with(gid, 'cutover:')
"""
_LONG_TRANSACTIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND xact_start < clock_timestamp() - $1 * interval '1 second'
  AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Measurement:
    """Collects problems, measures (higher is worse) and facts."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.measures: dict[str, float] = {}
        self.facts: dict[str, str] = {}

    def result(self) -> GateFacts:
        return GateFacts(ok=not self.problems, problems=self.problems, measures=self.measures, facts=self.facts)


async def measure(env: SwitchEnvironment, to_side: Side) -> GateFacts:
    """All gates of a change to `to_side`. Never raises for what it finds; everything is in the result."""
    found = Measurement()
    for name, look in (
        ("route", _route),
        ("servers", _servers),
        ("stream", _stream),
        ("differences", _differences),
        ("cases", _cases),
        ("transactions", _transactions),
        ("catalogs", _catalogs),
        ("fences", _fences),
        ("changed keys", _tail),
    ):
        try:
            await look(env, to_side, found)
        except CutoverError as error:
            found.problems.append(f"{name}: cannot be read: {error}")
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            found.problems.append(f"{name}: cannot be read ({type(error).__name__})")
    return found.result()


async def _route(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    found.facts["writable"] = f"{route.primary_side}, epoch {route.epoch}"
    if route.primary_side == to_side:
        found.problems.append(f"{env.pair.service} is writable at the {to_side} already")


async def _servers(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    found.problems += await servers.changed(env)


async def _stream(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    stream = env.stream(direction_from(other(to_side)))
    if half := await rebuilds.unfinished(env.control, env.pair.migration, env.pair.service, stream.direction):
        found.problems.append(f"{half}: cutover doctor {env.pair.migration} --service {env.pair.service} --mend")
        return
    health = await stream.health()
    if not health.ok:
        found.problems.append(health.detail)
        return
    if not await stream.ready():
        found.problems.append("the first copy is not done yet")
        return
    limit = env.max_pause / 2
    lag = await stream.lag(env.max_pause)
    if lag.seconds is None or lag.seconds > limit:
        shown = "more than the pause's limit" if lag.seconds is None else f"{lag.seconds:.1f} s"
        found.problems.append(f"the stream lags by {shown}; the fence needs it under {limit:g} s")
    else:
        found.measures["lag_seconds"] = round(lag.seconds, 3)
    found.facts["behind"] = f"{lag.bytes} bytes of WAL"


async def _differences(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    """Zero confirmed differences per table, on evidence not older than the table's max lag."""
    direction = direction_from(other(to_side))
    total = 0
    for name, rules in env.service.tables.items():
        report = await reports.latest(env.control, env.pair.migration, env.pair.service, name, decisive=True)
        if report is None or report.direction != direction or not report.complete:
            found.problems.append(f"{name}: no complete reconciliation pass in this direction yet")
            continue
        age, limit = report.age, rules.reconcile.max_lag.total_seconds()
        if age > limit:
            found.problems.append(f"{name}: the last pass is {age:.0f} s old, its max lag is {limit:.0f} s")
        differing = report.missing + report.extra + report.mismatched
        total += differing
        strict = env.plan.switchover.write_gate == "zero-differences"
        if differing and (strict or report.rate > env.plan.thresholds.mismatch_rate):
            found.problems.append(
                f"{name}: {report.missing} missing, {report.extra} extra, {report.mismatched} mismatched rows; "
                f"see them with: cutover reconcile {env.pair.migration} --service {env.pair.service} --table {name}"
            )
    found.measures["differences"] = float(total)


async def _cases(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    """No row waits for a person: whoever decides needs both sides as they are."""
    count = (await conflicts.count_open(env.control, env.pair.migration)).get(env.pair.service, 0)
    found.measures["cases"] = float(count)
    if count:
        found.problems.append(
            f"{count} rows that differ wait for a person or for the next pass; "
            f"see them with: cutover conflicts list {env.pair.migration} --service {env.pair.service}"
        )


async def _transactions(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    for side in ("monolith", "service"):
        database = env.pair.at(side)
        async with database.session("cutover-gate") as connection:
            if prepared := await connection.fetchval(_OTHERS_PREPARED):
                found.problems.append(
                    f"{database.name!r} holds {prepared} prepared transactions of somebody else: "
                    "end them (pg_prepared_xacts lists them)"
                )
            if old := await connection.fetchval(_LONG_TRANSACTIONS, _LONG_TRANSACTION_SECONDS):
                found.problems.append(
                    f"{database.name!r} has {old} transactions older than {_LONG_TRANSACTION_SECONDS:.0f} s: "
                    "the fence would wait for them (pg_stat_activity)"
                )


async def _catalogs(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    drift = await catalogs.drift(env.control, env.pair)
    found.facts["catalogs"] = " / ".join(one[:12] for one in drift.hashes.values())
    if drift.changed:
        found.problems.append(f"the schema changed: {drift.text}; {catalogs.remedy(env.pair)}")


async def _fences(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    for side in ("monolith", "service"):
        async with env.pair.at(side).session("cutover-gate") as connection:
            states = await fence.states_of(connection, await fence.relations(connection, env.pair.tables))
            if not await epoch.refuses(connection):
                mend = f"cutover doctor {env.pair.migration} --service {env.pair.service} --mend"
                found.problems.append(f"{fences.replaced(side)}: {mend}")
        wanted = "fenced-always" if side == to_side else "open"
        for table, state in states.items():
            if state != wanted:
                found.problems.append(f"the fence of {table} at the {side} is {state}, not {wanted}")


async def _tail(env: SwitchEnvironment, to_side: Side, found: Measurement) -> None:
    async with env.changed(direction_from(other(to_side))) as changed:
        await changed.shorten()
        tail = await changed.require_short_tail(TAIL_LIMIT)
    found.facts["keys changed since the last pass"] = str(tail)
