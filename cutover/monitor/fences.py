"""Whether the fences stand as they have to: exactly one writable side a table (invariant 1), seen by the databases.

A look counts only where no switch was under way from its beginning to its end. A partition or child that came later
has no fence: it gets one here, open on the writable side and shut on the other, if a lock is to be had at once.
What somebody has changed by hand is told and left alone: a person has to know why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import asyncpg

from cutover.alerts.store import Alert
from cutover.control import switches
from cutover.control.database import Control
from cutover.control.switches import Still
from cutover.monitor.catalogs import TAKEN_OVER
from cutover.postgres import epoch, fence
from cutover.postgres.databases import Pair, Side
from cutover.postgres.identifiers import TableName

#: A monitor never queues an application's writers behind its own lock for longer.
LOCK_WAIT = "200ms"
#: No stage yet: until the first copy is done, a closed fence lets replica mode pass.
_COPYING = ""


@dataclass(frozen=True)
class Wrong:
    """One table at one side whose fence is not as it has to be: `what` is wrong, and `cure`, what to do."""

    table: TableName
    side: Side
    state: fence.FenceState
    what: str
    cure: str
    #: Was without a fence and has one now.
    mended: bool = False

    @property
    def text(self) -> str:
        """Both, in a sentence."""
        return f"{self.what}: {self.cure}" if self.cure else self.what


@dataclass(frozen=True)
class Look:
    """What one look found. `settled` False: a switch was under way, and nothing is said of the fences."""

    settled: bool
    primary: Side = "monolith"
    wrong: list[Wrong] = field(default_factory=list)
    tables: int = 0
    #: What was read: each table's fence, and the epoch row, by side.
    states: Mapping[Side, Mapping[TableName, fence.FenceState]] = field(default_factory=dict)
    epochs: Mapping[Side, epoch.Epoch | None] = field(default_factory=dict)
    #: What to do instead of any cure, where an epoch row and the route tell of different primaries or epochs; else "".
    disagree: str = ""
    #: Sides where the function behind every fence is not this version's, so that no fence there need refuse anything.
    replaced: Sequence[Side] = ()

    @property
    def problems(self) -> list[str]:
        """What is still wrong, in words."""
        return [one.text for one in self.wrong if not one.mended] + [replaced(side) for side in self.replaced]

    def alert(self, pair: Pair) -> Alert | None:
        """What people are told; None where all is well. A fence that came late on the writable side is a warning."""
        if not self.wrong:
            return None
        harmless = all(one.mended and one.side == self.primary for one in self.wrong)
        text = "; ".join(one.text for one in self.wrong[:5])
        more = f" and {len(self.wrong) - 5} more (cutover doctor {pair.migration})" if len(self.wrong) > 5 else ""
        return Alert("fence", "warning" if harmless else "critical", pair.migration, pair.service, text + more)


def replaced(side: Side) -> str:
    """That the function there is another one, in words."""
    return (
        f"the function behind the fences at the {side}, cutover.refuse, is not this version's: somebody has replaced "
        "it, or an older version made it"
    )


async def look(control: Control, pair: Pair, *, mend: bool = True) -> Look:
    """Both sides' fences beside what the control database says. `mend`: fences that never were are made.

    Raises Unreachable and what a lost connection raises.
    """
    before = await switches.still(control, pair.migration, pair.service)
    if before is None or not before.settled or before.stage in TAKEN_OVER:
        return Look(settled=False)
    states: dict[Side, dict[TableName, fence.FenceState]] = {}
    rows: dict[Side, epoch.Epoch | None] = {}
    others: list[Side] = []
    for side in ("monolith", "service"):
        async with pair.at(side).session("cutover-fence") as connection:
            rows[side] = await epoch.read(connection, pair.service)
            states[side] = await fence.states_of(connection, await fence.relations(connection, pair.tables))
            if rows[side] is not None and not await epoch.refuses(connection):
                others.append(side)
    if await switches.still(control, pair.migration, pair.service) != before:
        return Look(settled=False)
    agree = all(row is None or _agrees(row, before) for row in rows.values())
    disagree = "" if agree else _find_the_newest(pair)
    found: list[Wrong] = []
    for side, tables in states.items():
        for table, state in tables.items():
            wrong = _judge(pair, before, table, side, state)
            if wrong is not None and state == "missing" and mend and agree:
                wrong = await _mend(pair, before, wrong, rows[side])
            if wrong is not None:
                found.append(wrong if agree else replace(wrong, cure=disagree))
    number = sum(len(tables) for tables in states.values())
    return Look(True, before.primary_side, found, number, states, rows, disagree, others)


def _agrees(row: epoch.Epoch, now: Still) -> bool:
    return (row.primary_side, row.epoch) == (now.primary_side, now.epoch)


def _find_the_newest(pair: Pair) -> str:
    """A control database that was restored tells of the primary of then: by its word the stale side would be opened."""
    return (
        "the route and the databases disagree on which side is writable: open, shut and make nothing before you have "
        f"found out which side holds the newest rows (cutover doctor {pair.migration} --service {pair.service})"
    )


def _judge(pair: Pair, now: Still, table: TableName, side: Side, state: fence.FenceState) -> Wrong | None:
    """What is wrong with one table's fence; None where it stands as it has to."""
    primary = now.primary_side
    if side == primary:
        if state == "open":
            return None
        if state == "missing":
            what = f"{table} at the {side} has no fence, so a switch could not stop its writers"
            return Wrong(table, side, state, what, "")
        what = f"the fence of {table} at the {side}, the writable side, is {state} and no switch is under way"
        altered = state == "altered"
        made = fence.create_sql(pair.service, table, closed=False, always=False)
        return Wrong(table, side, state, what, made if altered else fence.open_sql([table]))
    if state == "fenced-always" or (state == "fenced" and now.stage == _COPYING):
        return None
    always = now.stage != _COPYING
    shut = fence.close_sql([table], always=always)
    if state == "missing":
        what = f"{table} at the {side} has no fence, so it takes writes though the {primary} is the writable side"
        return Wrong(table, side, state, what, "")
    if state == "fenced":
        return Wrong(table, side, state, f"the fence of {table} at the {side} lets sessions in replica mode pass", shut)
    if state == "altered":
        shut = fence.create_sql(pair.service, table, closed=True, always=always)
    what = f"the fence of {table} at the {side} is {state}, so both sides take writes; somebody has changed it"
    return Wrong(table, side, state, what, f"Shut it: {shut} — then {_look_for_rows(pair)}")


def _look_for_rows(pair: Pair) -> str:
    return f"look for rows written there: cutover reconcile {pair.migration} --service {pair.service} --now"


async def _mend(pair: Pair, now: Still, wrong: Wrong, seen: epoch.Epoch | None) -> Wrong:
    """Gives the table the fence that it never had, unless a switch has moved on or a lock is not to be had."""
    if seen is None or not _agrees(seen, now):
        return wrong
    closed = wrong.side != now.primary_side
    async with pair.at(wrong.side).session("cutover-fence") as connection:
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config('lock_timeout', $1, true)", LOCK_WAIT)
                if not await epoch.hold_unchanged(connection, seen):
                    return wrong
                if (await fence.states_of(connection, [wrong.table]))[wrong.table] != "missing":
                    return wrong  # another worker was a moment earlier
                always = now.stage != _COPYING
                await connection.execute(fence.create_sql(pair.service, wrong.table, closed=closed, always=always))
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.UndefinedTableError):
            return wrong  # busy, or gone again; the next look sees
    cure = _look_for_rows(pair) if closed else ""
    return replace(wrong, what=f"{wrong.what}; it has one now", cure=cure, mended=True)
