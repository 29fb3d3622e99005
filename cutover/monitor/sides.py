"""Exactly one writable side for each table (invariant 1): route, epoch rows and fences have to tell the same."""

from cutover.control import switches
from cutover.monitor import fences
from cutover.monitor.fences import Look
from cutover.monitor.findings import Finding
from cutover.monitor.place import Place
from cutover.postgres import epoch, fence
from cutover.postgres.databases import SIDES, Side
from cutover.postgres.identifiers import TableName

#: Seconds beyond the plan's longest pause after which a switch that has not ended counts as left lying.
LEFT_LYING = 5.0
_SHOWN = 5


async def watch_sides(at: Place) -> list[Finding]:
    """Fences and epoch rows of both sides. Nothing is said where a switch came in between."""
    seen = await fences.look(at.control, at.pair, mend=at.mend)
    if not seen.settled or seen.primary != at.primary:
        return []
    return [*_epochs(at, seen), *_both_or_none(at, seen), *_fences(at, seen), *_functions(at, seen)]


def _epochs(at: Place, seen: Look) -> list[Finding]:
    found = []
    for side in SIDES:
        row, name = seen.epochs[side], at.pair.at(side).name
        truth = f"{at.primary}, epoch {at.now.epoch}"
        if row is None:
            text = f"database {name!r} does not know which side is writable: its epoch row is gone"
            remedy = _row_again(at, side)
        elif (row.side, row.primary_side, row.epoch) == (side, at.primary, at.now.epoch):
            continue
        elif row.side != side:
            text = f"database {name!r} takes itself for the {row.side}'s, and is the {side}'s"
            remedy = f"look whether it was restored from another one's dump: {at.doctor}"
        else:
            text = (
                f"database {name!r} says that the {row.primary_side} is writable at epoch {row.epoch}, the route says "
                f"{truth}, and no switch is under way"
            )
            remedy = (
                f"find out whether the control database lost commits ({at.doctor}); where the route is right, at "
                f"{name!r}: {epoch.set_sql(at.service, at.primary, at.now.epoch)}"
            )
        found.append(at.finding("writable-side", "critical", f"epoch at the {side}", text, remedy))
    return found


def _row_again(at: Place, side: Side) -> str:
    """Preparation knows the beginning only."""
    if not at.now.epoch:
        return f"cutover start preparation {at.pair.migration}"
    return (
        f"find out what became of that database ({at.doctor}); where it holds the rows that it should, there: "
        f"{epoch.row_sql(at.service, side, at.primary, at.now.epoch)}"
    )


def _both_or_none(at: Place, seen: Look) -> list[Finding]:
    """Tables that take writes at both sides, and those that take none."""
    writable: dict[TableName, list[Side]] = {}
    for side in SIDES:
        for table, state in seen.states[side].items():
            writable.setdefault(table, []).extend([] if state in fence.SHUT else [side])
    found = []
    for wanted, subject, what, remedy in (
        (2, "both", "take writes at both sides", "stop the writers of the {shut}, shut its fence, then compare"),
        (0, "none", "take writes at no side though no switch is under way", "open the fence of the {primary}"),
    ):
        tables = [table for table in _at_both(seen) if len(writable[table]) == wanted]
        if tables:
            deed = seen.disagree or (
                remedy.format(shut=at.shut, primary=at.primary) + f" (the statements: {at.doctor})"
            )
            found.append(at.finding("writable-side", "critical", subject, f"{_names(tables)} {what}", deed))
    return found


def _at_both(seen: Look) -> list[TableName]:
    """A table of one side alone (a partition that came late) is the fences' business."""
    return [table for table in seen.states["monolith"] if table in seen.states["service"]]


def _fences(at: Place, seen: Look) -> list[Finding]:
    made = f"a worker makes it, or: cutover start preparation {at.pair.migration}"
    found = []
    for one in seen.wrong:
        remedy = made if one.state == "missing" and not one.mended and not seen.disagree else one.cure
        subject = f"{one.table} at the {one.side}"
        severity = "warning" if one.mended and one.side == at.primary else "critical"
        found.append(at.finding("fence", severity, subject, one.what, remedy))  # type: ignore[arg-type]
    return found


def _functions(at: Place, seen: Look) -> list[Finding]:
    """A trigger is worth what its function does."""
    return [
        at.finding("fence", "critical", f"cutover.refuse at the {side}", fences.replaced(side), f"{at.doctor} --mend")
        for side in seen.replaced
    ]


async def watch_switch(at: Place) -> list[Finding]:
    """A switch that neither ends nor is undone: both sides may refuse for as long."""
    limit = at.plan.switchover.max_write_pause.total_seconds() + LEFT_LYING
    age = await switches.unsettled_seconds(at.control, at.pair.migration, at.service)
    if age is None or age <= limit:
        return []
    text = f"a switch is {at.now.state} for {age:.0f} s, so no side may be writable"
    remedy = (
        f"a worker ends it or takes it back while its run lives: cutover worker; where none does: {at.doctor} --mend"
    )
    return [at.finding("writable-side", "critical", "switch", text, remedy)]


def _names(tables: list[TableName]) -> str:
    more = f" and {len(tables) - _SHOWN} more" if len(tables) > _SHOWN else ""
    return ", ".join(map(str, sorted(tables)[:_SHOWN])) + more
