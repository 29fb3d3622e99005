"""The checklist as `cutover status` shows it: what is open in the present phase, and how much after it."""

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cutover.control import checks, tasks
from cutover.control.database import Control
from cutover.plan.durations import format_duration
from cutover.plan.models import Phase

PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class OpenItem:
    """One item that is not done: a person's, or one that a check has not found in order yet (`problem`)."""

    phase: Phase
    name: str
    text: str
    owner: str
    duration: str
    service: str | None
    automatic: bool
    problem: str


@dataclass
class Checklist:
    """All open items, in the order of the phases."""

    total: int = 0
    open: list[OpenItem] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"total": self.total, "done": self.total - len(self.open), "open": [asdict(one) for one in self.open]}

    def panel(self) -> Panel:
        """The open items of the first phase that has some; the later ones as a count."""
        phase = next((one for one in PHASES if any(item.phase == one for item in self.open)), None)
        title = f"checklist · {self.total - len(self.open)} of {self.total} items done"
        if phase is None:
            return Panel(Text("nothing is open", style="dim"), title=title, title_align="left")
        table = Table("open in " + phase, "service", "owner", "duration", "answered by", box=None, expand=True)
        for item in self.open:
            if item.phase != phase:
                continue
            what = Text(item.text)
            if item.problem:
                what.append(f"\n{item.problem}", style="red")
            by = "a check" if item.automatic else f"approving gate task:{item.name}"
            table.add_row(what, item.service or "-", item.owner, item.duration, Text(by))
        later = {one: sum(item.phase == one for item in self.open) for one in PHASES[PHASES.index(phase) + 1 :]}
        words = ", ".join(f"{count} in {one}" for one, count in later.items() if count)
        return Panel(table, title=title, title_align="left", subtitle=f"later: {words}" if words else None)


async def read_checklist(opened: Control, migration: str) -> Checklist:
    """Of people's items and automatic ones; empty before Preparation has listed them."""
    people, automatic = await tasks.every(opened, migration), await checks.every(opened, migration)
    found = [
        OpenItem(
            one.phase, one.name, one.description or one.name, one.owner, format_duration(one.duration), one.service,
            False, "",
        )
        for one in people
        if one.done_at is None
    ] + [
        OpenItem(
            one.phase, one.item, one.text, one.owner, format_duration(one.duration), one.service, True, one.problem
        )
        for one in automatic
        if one.done_at is None
    ]  # fmt: skip
    found.sort(key=lambda one: PHASES.index(one.phase))
    return Checklist(len(people) + len(automatic), found)
