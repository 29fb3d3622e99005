"""The cells of the crash matrix: a fault point, what happens there, once or again on recovery, a stream, a direction.

`chosen` draws cells from a seed so that every reachable pair (point, fault), (point, stream) and (point, direction)
occurs; `every` lists them all. What cannot be reached is in `unreachable`, with the reason.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chaos.injection import KINDS, Kind
from cutover import faults

Level = Literal["logical", "strong", "eventual", "best_effort"]
Direction = Literal["switch", "rollback", "second switch"]
LEVELS: tuple[Level, ...] = ("logical", "strong", "eventual", "best_effort")
#: Groups of points that are passed once a service has been switched for good: after any switch to it.
AT_THE_END = ("archive", "retire", "cleanup")
DIRECTIONS: tuple[Direction, ...] = ("switch", "rollback", "second switch")


@dataclass(frozen=True, order=True)
class Cell:
    """One fault in one switch. `again`: another one of the same kind hits the recovery."""

    point: str
    kind: Kind
    again: bool
    level: Level
    direction: Direction

    def __str__(self) -> str:
        return f"{self.kind}{' twice' if self.again else ''} at {self.point}, {self.level}, {self.direction}"

    @property
    def group(self) -> str:
        return self.point.partition(".")[0]

    @property
    def step(self) -> str:
        return self.point.rpartition(".")[0]

    @property
    def pairs(self) -> set[tuple[str, str]]:
        return {(self.point, self.kind), (self.point, self.level), (self.point, self.direction)}


#: Points behind which the process that passes them commits nothing any more.
LAST = frozenset(
    f"{step}.after"
    for step in (
        "ready.prove", "finish.stream", "take-back.stream", "rebuild.stand", "switch.done", "recovery.done",
        "undo.reopen", "cleanup.last",
    )
)  # fmt: skip


#: Why cells of a group (or of one step) do not exist; asked in this order, the first answer counts.
def unreachable(cell: Cell) -> str:
    """In words why there is no such cell; "" where there is."""
    if cell.group in ("relay", "backfill", "janitor", "strong") and cell.level == "logical":
        return "a logical stream has no outbox, so no relay, copy, branch or janitor of ours"
    if cell.group in ("strong", "janitor") and cell.level != "strong":
        return "only strong writes prepare branches"
    if cell.group == "backfill" and cell.direction != "switch":
        return "the first copy is made before the first switch, and never again"
    if cell.group in AT_THE_END and cell.direction == "rollback":
        return "cleanup comes once the service has been switched for good"
    if cell.group == "keys":
        return "no table of the matrix has a key that crosses services; tests/switch/test_crossing.py strikes there"
    if cell.group == "turn" or cell.step in ("ready.arm", "undo.halt", "undo.resume-stream"):
        return "directions take turns only with a server below 16; tests/switch/test_turn_kills.py strikes there"
    if cell.step in ("strong.commit", "strong.end") and cell.kind == "error":
        return "an error of COMMIT is a lost connection, which is `reset`"
    if cell.kind == "reset" and cell.point in LAST:
        return "nothing is committed any more by the process that passes it"
    return ""


def every() -> Iterator[Cell]:
    """All cells that can be reached."""
    for point in faults.points():
        for level in LEVELS:
            for direction in DIRECTIONS:
                for kind in KINDS:
                    for again in (False, True):
                        cell = Cell(point, kind, again, level, direction)
                        if not unreachable(cell):
                            yield cell


def left_out() -> dict[str, int]:
    """Reasons why cells cannot be reached, with how many each takes away."""
    found: dict[str, int] = {}
    for point in faults.points():
        for level in LEVELS:
            for direction in DIRECTIONS:
                for kind in KINDS:
                    if reason := unreachable(Cell(point, kind, False, level, direction)):
                        found[reason] = found.get(reason, 0) + 2
    return found


def pairs() -> set[tuple[str, str]]:
    """Every reachable pair of a point and a fault, a stream or a direction."""
    return {pair for cell in every() for pair in cell.pairs}


def chosen(seed: str, least: int) -> list[Cell]:
    """At least so many cells, every pair among them; the same for the same seed."""
    rng = random.Random(seed)
    by_point: dict[str, list[Cell]] = {}
    for cell in every():
        by_point.setdefault(cell.point, []).append(cell)
    found: list[Cell] = []
    for cells in by_point.values():
        missing = {pair for cell in cells for pair in cell.pairs}
        rng.shuffle(cells)
        while missing:
            best = max(cells, key=lambda cell: len(cell.pairs & missing))
            missing -= best.pairs
            cells.remove(best)
            found.append(best)
    rest = [cell for cells in by_point.values() for cell in cells]
    rng.shuffle(rest)
    return found + rest[: max(0, least - len(found))]


#: The turns of a run, in their order.
TURNS: tuple[Direction, ...] = ("switch", "rollback", "second switch", "rollback", "second switch")


Where = Literal["attempt", "relay", "writer", "copy", "repair", "mending", "end"]


def where(cell: Cell) -> Where:
    """Which process passes the cell's point."""
    match cell.group:
        case "relay" | "janitor":
            return "relay"
        case "strong":
            return "writer"
        case "backfill":
            return "copy"
        case "repair":
            return "repair"
        case "rebuild" | "mend":
            return "mending"
        case group if group in AT_THE_END:
            return "end"
        case _:
            return "attempt"


def slot(cell: Cell) -> str:
    """A turn has one cell of each of these at the most: processes, and the activities of an attempt."""
    match where(cell):
        case "attempt":
            return cell.group if cell.group in ("ready", "finish") else "section"
        case "relay" | "writer":
            return "beside"
        case other:
            return other


@dataclass(frozen=True)
class Plan:
    """One run: a service of its own from its first copy on. A turn without a cell is made without a fault."""

    number: int
    level: Level
    #: Cells of each turn.
    turns: tuple[tuple[Cell, ...], ...]
    #: What its details are drawn from.
    seed: str
    #: Turns before which the slot of the stream of now is dropped by mistake.
    slots_lost: frozenset[int] = frozenset()

    @property
    def cells(self) -> list[Cell]:
        return [cell for turn in self.turns for cell in turn]

    def as_json(self) -> dict[str, Any]:
        turns = [[asdict(cell) for cell in turn] for turn in self.turns]
        return {"run": self.number, "level": self.level, "seed": self.seed, "cells": turns,
                "slots_lost": sorted(self.slots_lost)}  # fmt: skip

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Plan":
        turns = tuple(tuple(Cell(**cell) for cell in turn) for turn in found["cells"])
        return cls(found["run"], found["level"], turns, found["seed"], frozenset(found["slots_lost"]))

    def __str__(self) -> str:
        turns = [" and ".join(map(str, turn)) or "no fault" for turn in self.turns]
        return f"run {self.number} ({self.level}): " + "; ".join(turns)


def runs(cells: Sequence[Cell], seed: str, first: int = 0) -> list[Plan]:
    """The cells in runs, as full as they can be, numbered from `first` on; the same for the same seed."""
    rng = random.Random(seed)
    found: list[tuple[Level, list[tuple[Cell, ...]]]] = []
    for level in LEVELS:
        waiting: dict[Direction, dict[str, list[Cell]]] = {direction: {} for direction in DIRECTIONS}
        for cell in rng.sample(cells, len(cells)):
            if cell.level == level:
                waiting[cell.direction].setdefault(slot(cell), []).append(cell)
        while any(any(slots.values()) for slots in waiting.values()):
            turns: list[tuple[Cell, ...]] = []
            for direction in TURNS:
                turns.append(_drawn(waiting[direction], rng))
                if any(cell.group in AT_THE_END for cell in turns[-1]):
                    break
            while not turns[-1]:
                turns.pop()
            found.append((level, turns))
    rng.shuffle(found)
    return [Plan(n, level, tuple(turns), f"{seed}/{n}") for n, (level, turns) in enumerate(found, first)]


def _drawn(slots: dict[str, list[Cell]], rng: random.Random) -> tuple[Cell, ...]:
    """The cells of the next turn, so that those of all slots come to their end together."""
    most = max(map(len, slots.values()), default=0)
    return tuple(left.pop() for left in slots.values() if rng.random() * most < len(left))
