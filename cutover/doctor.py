"""The doctor: is exactly one side of a service writable, does its stream run, is a switch half done? Read only."""

from dataclasses import asdict, dataclass, field
from typing import Any

import asyncpg

from cutover.control import identity, rebuilds, stages, switches
from cutover.control.database import Control
from cutover.errors import CutoverError
from cutover.flags import store as flags
from cutover.monitor import catalogs, fences
from cutover.plan.models import Plan
from cutover.postgres import epoch, fence
from cutover.postgres.databases import CONNECTION_ERRORS, Pair, Side, direction_from
from cutover.reconcile.changed import ChangedKeys
from cutover.streams import open_stream
from cutover.streams.base import Stream
from cutover.streams.outbox import OutboxStream
from cutover.switch import servers
from cutover.switch.environment import SwitchEnvironment

#: The fact that says what to do where epoch rows and route disagree.
_DISAGREE = "route and epochs"
#: Held keys that one remedy names; the next one names others.
_SHOWN = 20


@dataclass
class Examination:
    """What was found of one service: facts, and problems each with its remedy."""

    service: str
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    #: The one command that comes first on the way to a good state; "" where none is needed, or none of ours can help.
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.service}: {'in order' if not self.problems else f'{len(self.problems)} problems'}"]
        lines += [f"  {name}: {value}" for name, value in self.facts.items()]
        lines += [f"  ! {problem}" for problem in self.problems]
        lines += [f"  → {self.remedy}"] if self.remedy else []
        return "\n".join(lines)


async def examine(plan: Plan, pair: Pair, control: Control) -> Examination:
    """Looks at both databases and the control database; never raises for what it finds.

    Where several things are wrong the remedy is that of the first in this order: first that exactly one side takes
    writes, then that both servers are the right ones, and only then the stream, which may overwrite rows.
    """
    found = Examination(pair.service)
    for look in (_sides, _switch, _servers, _stream, _catalogs):
        if "cleanup" in found.facts:
            break
        try:
            await look(plan, pair, control, found)
        except CutoverError as error:
            found.problems.append(str(error))
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            found.problems.append(f"a database did not answer ({type(error).__name__}); look again")
    return found


def _leads(found: Examination, command: str) -> None:
    """That command leads on from what was just found, where nothing else has to be done before."""
    if _DISAGREE in found.facts:
        return  # a person has to find out first which side is right
    found.remedy = found.remedy or command


def _mend(pair: Pair) -> str:
    return f"cutover doctor {pair.migration} --service {pair.service} --mend"


async def _sides(plan: Plan, pair: Pair, control: Control, found: Examination) -> None:
    """Invariant 1, from the databases themselves; a service that cleanup has taken over has no fences to look at."""
    preparation = f"cutover start preparation {pair.migration}"
    row_of = (await stages.get_stages(control, pair.migration)).get(pair.service)
    if row_of is not None and row_of.stage in ("released", "archived"):
        found.facts["cleanup"] = f"{row_of.stage}: the way back was given up; fences and streams of this side are gone"
        return
    route = await flags.find(control, pair.migration, pair.service)
    if route is None:
        found.problems.append("it has no route yet, so nothing of it is prepared")
        _leads(found, preparation)
        return
    found.facts["flags"] = f"writes at the {route.primary_side}, epoch {route.epoch}"
    open_sides: list[Side] = []
    installed = True
    for side in ("monolith", "service"):
        async with pair.at(side).session("cutover-doctor") as connection:
            states = await fence.states_of(connection, await fence.relations(connection, pair.tables))
            row = await epoch.read(connection, pair.service)
        kinds = sorted(set(states.values()))
        found.facts[f"fence at the {side}"] = ", ".join(kinds) or "no table"
        if row is None:
            installed = False
        else:
            found.facts[f"epoch at the {side}"] = f"{row.epoch}, writable: {row.primary_side}"
        if any(state not in fence.SHUT for state in states.values()):
            open_sides.append(side)
    seen = await fences.look(control, pair, mend=False)
    if seen.disagree:
        found.facts[_DISAGREE] = seen.disagree
        found.problems.append(f"{_DISAGREE} do not tell the same")
    missing = any("missing" in found.facts[f"fence at the {side}"] for side in ("monolith", "service"))
    remedy = _mend(pair) if installed else preparation
    if missing and not seen.disagree:
        found.problems.append(f"fences are missing: a worker makes them with its next sample, or {remedy}")
    found.problems += seen.problems
    if not installed and (row_of is not None or missing):
        found.problems.append("an epoch row is missing: that database does not know which side is writable")
        if route.epoch:  # preparation knows the beginning only
            found.facts[_DISAGREE] = (
                "find out what became of the database without its row; where it holds the rows that it should, the "
                f"statement that makes the row again is shown by: cutover watch {pair.migration} --once"
            )
        _leads(found, preparation)
    elif seen.problems:
        _leads(found, remedy)
    if len(open_sides) == 2:
        found.problems.append("BOTH sides are writable: stop the writers of the side that is not the primary now")
    if not open_sides:
        found.problems.append("no side is writable; a switch is under way, or its worker is gone (start a worker)")


async def _catalogs(plan: Plan, pair: Pair, control: Control, found: Examination) -> None:
    drift = await catalogs.drift(control, pair)
    found.facts["schema"] = drift.text or "as it was taken"
    if drift.changed:
        found.problems.append(f"the schema changed, so every gate is closed: {catalogs.remedy(pair)}")
        _leads(found, catalogs.command(pair))


async def _servers(plan: Plan, pair: Pair, control: Control, found: Examination) -> None:
    if strange := await servers.strange(SwitchEnvironment(plan, pair, control)):
        found.problems += strange
        _leads(found, identity.remedy(pair))


async def _switch(plan: Plan, pair: Pair, control: Control, found: Examination) -> None:
    row = await switches.find(control, pair.migration, pair.service)
    if row is None:
        found.facts["switch"] = "none yet"
        return
    found.facts["switch"] = f"{row.state}, to the {row.to_side}, epoch {row.to_epoch}"
    if row.state not in switches.SETTLED:
        found.problems.append(
            f"a switch is {row.state}: a running worker finishes or undoes it (cutover worker), and so does --mend"
        )
        _leads(found, _mend(pair))
        return
    route = await flags.get(control, pair.migration, pair.service)
    if route.pause_id:
        found.problems.append(
            f"pause {route.pause_id!r} stands though its switch has ended, and holds the clients' requests"
        )
        _leads(found, _mend(pair))


async def _stream(plan: Plan, pair: Pair, control: Control, found: Examination) -> None:
    route = await flags.get(control, pair.migration, pair.service)
    stream = open_stream(pair, direction_from(route.primary_side), plan.service(pair.service))
    if half := await rebuilds.unfinished(control, pair.migration, pair.service, stream.direction):
        found.problems.append(f"{half}: changes may be missing at the other side")
        _leads(found, _mend(pair))
    if not await stream.exists():
        found.facts["stream"] = f"{stream.direction}: not started"
        if route.primary_side == "service":
            found.problems.append("the reverse stream is missing: there is no lossless way back")
            _leads(found, _mend(pair))
        elif (await stages.get_stages(control, pair.migration)).get(pair.service) is not None:
            found.problems.append("the forward stream is missing: the service's database falls behind")
            _leads(found, _mend(pair))
        return
    health = await stream.health()
    found.facts["stream"] = f"{stream.direction}: {'runs' if health.ok else health.detail}"
    if not health.ok:
        found.problems.append(health.detail)
    if health.lost:
        _leads(found, _mend(pair))
        return
    if health.stopped:
        _leads(found, _mend(pair))
    # passes wait for a marker, which held keys keep back
    await _held(pair, stream, found)
    if await ChangedKeys(pair, stream.direction, control).lost():
        found.problems.append(
            f"the record of keys changed in the {stream.direction} direction is lost (its replication slot at "
            f"{pair.source(stream.direction).name!r} is gone): no switch begins until every row has been compared"
        )
        _leads(found, _mend(pair))
    if health.unattended:
        _leads(found, "cutover worker")


async def _held(pair: Pair, stream: Stream, found: Examination) -> None:
    if not isinstance(stream, OutboxStream):
        return
    if numbers := " ".join(str(one.id) for one in (await stream.held())[:_SHOWN]):
        listed = f"cutover quarantine list {pair.migration} --service {pair.service}"
        found.problems.append(f"the held keys are tried again by the remedy; what they are refused for shows: {listed}")
        _leads(found, f"cutover quarantine retry {pair.migration} {pair.service} {numbers} --reason WHY")
