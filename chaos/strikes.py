"""What is to happen in one turn because of one cell: its faults in their order, drawn where the cell leaves it open."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.cells import LAST, Cell
from chaos.ground import MAX_PAUSE
from chaos.injection import Fault, Injector, Kind

_PLACES = (".before", ".after")
#: Points behind which the next commit is the journal's: who has lost its answer looks, and goes on.
JOURNALS = (
    "switch.compare.after",
    *(f"switch.{step}.{place}" for step in ("turn", "standbys", "unfence") for place in ("before", "after")),
    "switch.journal.before",
)
BEFORE_JOURNAL = ("fence", "marker", "sequences", "compare", "unfence")
AFTER_JOURNAL = ("switch.journal.after", "switch.commit.before", "switch.commit.after", "switch.flip.before")
#: Steps in which nothing has begun that would be undone.
UNBEGUN = ("switch.token", "switch.seize", "switch.clear", "switch.begin")
UNDO = ("undo.decide", "undo.open", "undo.resume", "undo.shut", "recovery.done")
COMPLETE = ("complete.marker", "complete.open", "complete.flip", "complete.shut", "recovery.done")
FINISH = ("finish.prove", "finish.changed", "finish.stream")
#: Groups of points whose processes have deadlines of their own: the pause, a lease, a janitor's patience.
_TIMED = ("switch", "undo", "complete", "recovery", "relay", "janitor", "strong")
#: Where a second fault meets what follows a point that is not passed twice.
NEXT = {
    "switch.done.after": FINISH,
    "undo.decide.after": UNDO[1:],
    # the control database is back when it is called again
    "undo.reopen.before": UNDO[1:],
    "undo.reopen.after": UNDO[1:],
    "ready.drop.after": ("ready.prepare",),
    "relay.hold.after": ("relay.apply",),
    "archive.prove.after": ("retire.rename",),
    "mend.lift.after": ("mend.fences",),
}
#: Points whose commit is looked up by the same process where it was cut, which then goes on.
LOOKED_UP = ("undo.shut.after", "complete.shut.after", "recovery.done.before", "archive.prove.before")
#: Points whose commit is not made again where it was done and only its answer was lost.
DONE_ONCE = ("undo.decide.before", "relay.hold.before", "mend.lift.before")


@dataclass
class Strike:
    """The faults of one cell, or some of no cell, as they are to happen in a turn."""

    cell: Cell | None
    injector: Injector
    #: Faults of the sequence that have happened.
    happened: int = 0
    #: The statements in which a connection was lost.
    cut: list[str] = field(default_factory=list)

    @property
    def sequence(self) -> Sequence[Fault]:
        return self.injector.sequence

    @property
    def reached(self) -> bool:
        """Whether all has happened that its cell is."""
        return self.cell is not None and self.happened == len(self.sequence)

    @property
    def harm(self) -> int:
        """Faults that have happened, but for one that only lets the next one wait for its moment."""
        return sum(one.kind != "delay" or one.seconds > 0 for one in self.sequence[: self.happened])

    def count(self) -> None:
        """Notes how many of its faults have happened, which come in their order, and the statements they have cut."""
        self.happened = self.injector.happened()
        files = [self.injector.folder / str(number) for number in range(self.happened)]
        self.cut = [sql for file in files if (sql := file.read_text())]

    @property
    def sleeps(self) -> list[Path]:
        """A file for each fault that lets a process sleep as a whole, which is there once that has begun."""
        folder = self.injector.folder
        return [folder / str(n) for n, one in enumerate(self.sequence) if one.kind == "delay" and one.hard]


def fault(point: str, kind: Kind, rng: random.Random, hard: bool | None = None) -> Fault:
    """One of that kind, with what is left open drawn."""
    seconds = round(rng.uniform(MAX_PAUSE + 0.5, MAX_PAUSE + 2.0), 2) if kind == "delay" else 0.0
    drawn = rng.random() < 0.5
    return Fault(point, kind, seconds, hard=drawn if hard is None else hard)


def sequence(cell: Cell, rng: random.Random) -> tuple[Fault, ...]:
    """The faults of a cell: what has to happen first, its own, and another one on recovery."""
    found: list[Fault] = []
    done = False
    if cell.group == "undo" or (cell.group == "recovery" and rng.random() < 0.5):
        lead = f"switch.{rng.choice(BEFORE_JOURNAL)}.after"
        found.append(fault(lead, "error" if cell.step == "undo.reopen" else rng.choice(("error", "kill")), rng))
    elif cell.group in ("complete", "recovery"):
        found.append(fault(rng.choice(AFTER_JOURNAL), "kill", rng))
        done = True
    elif cell.group == "take-back":
        found.append(fault("switch.fence.after", "error", rng))
    if cell.step == "undo.reopen":  # the control database is away where the switch is to be undone
        found.append(fault("undo.decide.before", "error", rng, hard=False))
    # of a server that refuses there is no doubt; a process that sleeps as a whole is overtaken, which of the others
    # only one with a deadline for its heartbeats would be
    refuses = cell.group == "strong" and cell.kind == "error"
    hard = True if refuses or (cell.kind == "delay" and (cell.again or cell.group not in _TIMED)) else None
    found.append(fault(cell.point, cell.kind, rng, hard))
    if cell.again:
        found.append(fault(_again(cell, found[-1], done, rng), cell.kind, rng))
    return tuple(found)


def _again(cell: Cell, first: Fault, done: bool, rng: random.Random) -> str:
    """Where the second fault happens: at the same point, or at one that what follows the first one passes."""
    # a commit that was cut is looked up or made again, so what comes before it is not passed twice
    unanswered = cell.kind == "reset" and not first.hard
    cut = (cell.kind == "reset" and cell.point in LOOKED_UP) or (unanswered and cell.point in DONE_ONCE)
    steps = NEXT.get(cell.step + ".after" if cut else cell.point)
    if cell.point == "recovery.done.after" or (cut and cell.point in LOOKED_UP and cell.group != "archive"):
        steps = FINISH if done else ("switch.token", "switch.fence", "switch.marker")
    elif unanswered and cell.point in JOURNALS:
        steps = ("switch.commit", "switch.flip", *FINISH)
    elif cell.point in (*AFTER_JOURNAL, "switch.flip.after", "switch.done.before"):
        # the same, and then the switch goes on
        steps = FINISH if cell.kind == "reset" else COMPLETE
    elif steps is None and cell.group == "switch" and cell.step not in UNBEGUN and rng.random() < 0.5:
        steps = UNDO
    if steps is None:
        return cell.point
    points = [step + place for step in steps for place in _PLACES]
    return rng.choice([point for point in points if cell.kind != "reset" or point not in LAST])
