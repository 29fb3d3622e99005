"""What `cutover status` shows: services, what waits, and the exact commands; the most important first.

`render` is all of it, for a page of any length. `Screen` fits it into a terminal: a table that has no room is left out,
a run that has no room as a panel becomes one line, and those that have no room as a line are counted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cutover.cli.checklist import Checklist
from workflows.status import GateStatus, Status

_STYLE = {
    "RUNNING": "green",
    "WAITING": "cyan",
    "PAUSED": "yellow",
    "NEEDS_ATTENTION": "bold red",
    "ROLLED_BACK": "magenta",
    "DONE": "dim",
}
_IMPORTANCE = ("NEEDS_ATTENTION", "PAUSED", "ROLLED_BACK", "WAITING", "RUNNING", "DONE")
_REFUSED_SHOWN = 3
_FACTS_SHOWN = 6


@dataclass
class ServiceLine:
    """One service as the control database knows it; its lag as its runs measured it last."""

    service: str
    stage: str
    writable: str
    reads: str
    epoch: int
    paused: bool
    differences: int | None
    oldest_pass_seconds: float | None
    lag_seconds: float | None = None
    #: Rows that differ and wait for a person, or for the next pass to apply a decision.
    cases: int = 0
    #: Those of them that nobody has decided by their deadline.
    cases_overdue: int = 0


@dataclass
class Overview:
    """Everything `status` shows."""

    migration: str
    runs: list[Status] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    services: list[ServiceLine] = field(default_factory=list)
    checklist: Checklist = field(default_factory=Checklist)

    @property
    def cases(self) -> int:
        return sum(line.cases for line in self.services)

    @property
    def cases_overdue(self) -> int:
        return sum(line.cases_overdue for line in self.services)

    @property
    def cases_command(self) -> str:
        """What shows the open cases; "" where there is none."""
        return f"cutover conflicts list {self.migration}" if self.cases else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "migration": self.migration,
            "runs": [one.model_dump(mode="json") for one in self.runs],
            "runs_without_answer": self.silent,
            "services": [asdict(one) for one in self.services],
            "checklist": self.checklist.as_json(),
            "cases": self.cases,
            "cases_overdue": self.cases_overdue,
            "cases_command": self.cases_command,
        }


def since(moment: datetime) -> str:
    """How long ago, in one unit."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def ordered(runs: Sequence[Status]) -> list[Status]:
    """What needs a person first, then what somebody stopped, then what waits, then what is at work."""

    def importance(one: Status) -> tuple[int, int]:
        asks = any(gate.ok and gate.required for gate in one.gates)
        return (_IMPORTANCE.index(one.state), 0 if asks else 1 if one.gates else 2)

    return sorted(runs, key=importance)


def render(found: Overview) -> RenderableType:
    """All of it."""
    return Group(*_head(found), *(_panel(one) for one in ordered(found.runs)), *_rest(found))


@dataclass
class Screen:
    """The same, fitted to the terminal's height. `trouble` is shown on top: the last look failed, and this is old."""

    found: Overview | None
    trouble: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = console.size.height - 1
        parts: list[RenderableType] = []
        if self.trouble:
            parts.append(Text(self.trouble, style="bold red"))
        if self.found is not None:
            parts += [*_head(self.found), *_rest(self.found)]
        for part in parts:
            lines = console.render_lines(part, options, pad=False)
            if len(lines) <= room:
                room -= len(lines)
                yield part
        if self.found is not None:
            yield from self._runs(console, options, ordered(self.found.runs), room)

    def _runs(self, console: Console, options: ConsoleOptions, runs: list[Status], room: int) -> RenderResult:
        """Panels while each run behind them still has a line of its own; then lines; then a number."""
        assert self.found is not None
        for number, one in enumerate(runs):
            behind = len(runs) - number - 1
            panel = _panel(one)
            height = len(console.render_lines(panel, options, pad=False))
            if height + min(behind, max(room // 3, 1)) <= room:
                room -= height
                yield panel
            elif room > 1 or (room == 1 and not behind):
                room -= 1
                yield _line(one)
            else:
                if room:
                    more = f"… and {behind + 1} more; all of it: cutover status {self.found.migration}"
                    yield Text(more, style="dim", no_wrap=True, overflow="ellipsis")
                return


def _head(found: Overview) -> list[RenderableType]:
    parts: list[RenderableType] = []
    programme = next((one for one in found.runs if one.workflow_id == f"migration/{found.migration}"), None)
    if programme is not None:
        style = _STYLE.get(programme.state, "")
        parts.append(Text.assemble((found.migration, "bold"), f" · {programme.phase} · ", (programme.state, style)))
    if found.services:
        parts.append(_services(found.services))
    if found.cases:
        late = f", {found.cases_overdue} of them OVERDUE" if found.cases_overdue else ""
        text = f"cases that wait for a person or the next pass: {found.cases}{late}; see {found.cases_command}"
        parts.append(Text(text, style="bold red" if late else "bold yellow"))
    return parts


def _services(lines: Sequence[ServiceLine]) -> Table:
    titles = ("service", "stage", "writable", "reads", "epoch", "lag", "differences", "cases", "oldest pass")
    table = Table(*titles, expand=True)
    for line in lines:
        writable = Text(line.writable)
        if line.paused:
            writable.append(" PAUSED", style="bold red")
        table.add_row(
            Text(line.service),
            line.stage or "-",
            writable,
            line.reads,
            str(line.epoch),
            "-" if line.lag_seconds is None else f"{line.lag_seconds:.2f} s",
            _count(line.differences),
            _count(line.cases),
            "-" if line.oldest_pass_seconds is None else f"{line.oldest_pass_seconds:.0f} s ago",
        )
    return table


def _count(number: int | None) -> Text:
    return Text("-" if number is None else str(number), style="bold red" if number else "")


def _rest(found: Overview) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"{one}: does not answer; is a worker running? (cutover worker)", style="bold red") for one in found.silent
    ]
    if not found.runs and not found.silent:
        command = f"cutover start migration {found.migration}"
        parts.append(Text(f"no open run of {found.migration}; start it with: {command}"))
    if found.checklist.total:
        parts.append(found.checklist.panel())
    return parts


def _line(one: Status) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(one.state, style=_STYLE.get(one.state, ""))
    return text.append(f" {one.workflow_id} · {one.phase} · waits for {one.waiting_for}")


def _panel(one: Status) -> Panel:
    body = Text()
    body.append(f"waits for {one.waiting_for} (since {since(one.since)})\n")
    if one.attention:
        body.append(f"{one.attention}\n", style="bold red")
    for answer in one.commands:
        body.append(f"{answer.does}: ")
        body.append(f"{answer.cutover}\n", style="bold")
    if one.rollback:
        body.append(f"{one.rollback_note} ")
        body.append(f"{one.rollback.cutover}\n", style="bold")
    for gate in one.gates:
        _gate(body, gate)
    for name, value in one.progress.items():
        body.append(f"{name}: {value}\n", style="dim")
    for refusal in one.refused[-_REFUSED_SHOWN:]:
        body.append(f"refused: {refusal.text}\n", style="yellow")
    body.rstrip()
    title = Text.assemble(f"{one.workflow_id} · {one.phase} · ", (one.state, _STYLE.get(one.state, "")))
    return Panel(body, title=title, title_align="left")


def _gate(body: Text, gate: GateStatus) -> None:
    """Question, evidence with what was measured, problems, and who has approved."""
    body.append(f"gate {gate.name}: {gate.question}\n", style="cyan")
    if gate.evidence:
        body.append(f"  evidence {gate.evidence}", style="bold")
        body.append("\n" if gate.ok else " (does not hold)\n", style="" if gate.ok else "red")
    for problem in gate.problems:
        body.append(f"  ! {problem}\n", style="red")
    facts = [f"{name}: {value}" for name, value in gate.facts.items()]
    if facts:
        more = f"; and {len(facts) - _FACTS_SHOWN} more" if len(facts) > _FACTS_SHOWN else ""
        body.append(f"  {'; '.join(facts[:_FACTS_SHOWN])}{more}\n", style="dim")
    if gate.required:
        by = ", ".join(approval.by for approval in gate.approvals)
        body.append(f"  {len(gate.approvals)} of {gate.required} approvals{f' ({by})' if by else ''}\n")
    if gate.note:
        body.append(f"  {gate.note}\n", style="yellow")
