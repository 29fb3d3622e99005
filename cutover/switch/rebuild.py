"""A lost stream, built anew: new slot, full passes, repair to zero, proof.

A slot that was invalidated has changes that nobody will ever send, so a new one alone would leave a gap
(design 5.7). The stream is made anew first, so that from then on nothing more is missed; what is
missing is then found by comparing every row, and mended on the side that is not the primary. Until then rows there
give way to what the stream brings: those that the gap left behind would stop it for good.
"""

import asyncio
import time
from collections.abc import Callable

from cutover import faults
from cutover.control import rebuilds, reports, switches
from cutover.control.reports import TableReport
from cutover.errors import GateClosed, NotYet, Refused
from cutover.flags import store as flags
from cutover.plan.models import Table
from cutover.postgres.databases import Direction, direction_from
from cutover.postgres.identifiers import TableName
from cutover.reconcile.conflicts import resolve
from cutover.reconcile.passes import Job, run_pass
from cutover.streams.base import settling
from cutover.switch import servers
from cutover.switch.attempt import between_switches, under_token
from cutover.switch.environment import SwitchEnvironment

#: Rounds of pass and repair before a person has to look.
ROUNDS = 5
_READY_SECONDS = 60.0
#: The primary is the truth here: what the lost slot did not carry was written there.
_RULES = Table(conflict="source-wins", alert_on_conflict=False)
_ALL = 1_000_000


async def rebuild(env: SwitchEnvironment, say: Callable[[str], None]) -> list[TableReport]:
    """Builds the stream from the primary of now to the other side anew; the last report of each table.

    May be called again at any time. Raises Refused while a switch is under way, GateClosed on a server that nobody
    has accepted, and where differences stay after some rounds, NotYet where the stream carries nothing or rows will not
    settle.
    """
    if begun := await switches.under_way(env.control, env.pair.migration, env.pair.service):
        raise Refused(
            f"{env.pair.service}: a switch is {begun.state}, and awaits a marker of this very stream: let a worker "
            "end it first (cutover worker)"
        )
    await servers.require_known(env)  # the rows of a primary that has lost its last commits are not the truth
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    direction = direction_from(route.primary_side)
    stream, changed = env.stream(direction), env.changed(direction)
    place = env.pair.migration, env.pair.service, direction
    say(f"dropping what is left of the {direction} stream, and making it anew")
    async with faults.step("rebuild.note"):
        await rebuilds.begin(env.control, *place)
    async with faults.step("rebuild.drop"), between_switches(env, route.primary_side) as attempt:
        await stream.drop(attempt.at_leisure)
        await changed.drop(attempt.at_leisure, attempt.row)
    async with faults.step("rebuild.make"):
        await stream.prepare()
        await changed.prepare()
        await stream.start(copy=False, gap=True, through=under_token(env, route.primary_side))
    deadline = time.monotonic() + _READY_SECONDS
    while not await stream.ready():
        if time.monotonic() > deadline:
            raise NotYet(f"{env.pair.service}: the {direction} stream does not become ready; see cutover doctor")
        await asyncio.sleep(0.1)
    found = await _mend_all(env, direction, say, gap=True)
    async with faults.step("rebuild.stand"):
        await stream.close_gap()
        await rebuilds.end(env.control, *place)
    return found


async def follow_anew(env: SwitchEnvironment, say: Callable[[str], None]) -> list[TableReport]:
    """The record of changed keys made anew, where it was lost and the stream was not; the last reports.

    Nothing is known any more of the keys that changed before, so every row is compared. May be called again.
    """
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    direction = direction_from(route.primary_side)
    changed = env.changed(direction)
    async with faults.step("rebuild.follow"):
        if await changed.lost():
            async with between_switches(env, route.primary_side) as attempt:
                await changed.drop_slot(attempt.at_leisure)
        await changed.prepare()
    return await _mend_all(env, direction, say, gap=False)


async def _mend_all(
    env: SwitchEnvironment, direction: Direction, say: Callable[[str], None], *, gap: bool
) -> list[TableReport]:
    """`gap`: the stream has missed changes, so a row that would not settle may be one of them.

    Else it stays among the changed keys, which every switch compares.
    """
    found = []
    for table in env.pair.tables:
        async with faults.step("rebuild.mend"):
            found.append(await _mend(env, direction, table, say, gap=gap))
    return found


async def _mend(
    env: SwitchEnvironment, direction: Direction, table: TableName, say: Callable[[str], None], *, gap: bool
) -> TableReport:
    stream = env.stream(direction)
    settle = settling(stream, _READY_SECONDS)
    for _ in range(ROUNDS):
        report = await run_pass(Job(env.pair, direction, table, _RULES, env.control, env.plan.hash, settle))
        await env.changed(direction).verified(report)
        moving = f", {report.unsettled} would not settle" if report.unsettled else ""
        say(f"{table}: {report.rows_source} rows compared, {report.differences} differ{moving}")
        if not report.differences and not (gap and report.unsettled):
            return report
        if not report.differences:
            await settle()  # a stream that carries nothing settles nothing: the next pass would only wait again
            continue
        found = await reports.open_differences(
            env.control, env.pair.migration, env.pair.service, str(table), limit=_ALL
        )
        result = await resolve(env.pair, direction, table, _RULES, found, env.control, settle, actor="doctor")
        say(f"{table}: {result.repaired} rows mended, {result.cases} left to a person")
    if not report.differences:
        raise NotYet(
            f"{env.pair.service}: {table}: {report.unsettled} rows changed at every look in {ROUNDS} rounds, "
            "so nobody can tell whether the stream has missed one; when they are written less: cutover doctor "
            f"{env.pair.migration} --service {env.pair.service} --rebuild-stream"
        )
    raise GateClosed(f"{env.pair.service}: {table} still differs after {ROUNDS} rounds; see cutover reconcile --show")
