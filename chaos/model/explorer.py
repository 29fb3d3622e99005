"""Breadth first over every state that can be reached: the first violation found is one of the shortest there are."""

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chaos.model import actors, invariants
from chaos.model.actors import Move
from chaos.model.program import Program
from chaos.model.simplest import simplest
from chaos.model.state import SIDES, Broken, Label, Left, State, start

Check = Callable[[State], None]
_FAULT = 1 << 31


@dataclass(frozen=True)
class Violation:
    """What does not hold, and the shortest way there, one line a move."""

    text: str
    trace: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """`transitions` and `depth` in moves; `violation` is None where everything holds."""

    states: int
    transitions: int
    depth: int
    good: int
    seconds: float
    violation: Violation | None


def moves(state: State, program: Program, writes: int) -> Iterator[Move]:
    """All that can happen next. Raises Broken inside, where a move itself breaks an invariant."""
    yield from actors.attempts(state, program)
    yield from actors.run(state, program)
    yield from actors.library(state, writes)
    yield from actors.bypass(state, writes)
    yield from actors.streams(state, program)
    yield from actors.servers(state)


def explore(
    program: Program, left: Left, check: Check = invariants.check, *, liveness: bool = True, reduced: bool = True
) -> Result:
    """Every state within these bounds; ends at the first violation.

    `liveness`: from each state a good one can be reached without another fault, looked for backwards at the end.
    `reduced`: by `simplest`.
    """
    begun = time.process_time()
    first = start(left)
    number = {first: 0}
    states = [first]
    parents = array("q", [-1])
    edges, offsets = array("I"), array("Q", [0])
    level_end, depth = 1, 0

    def result(violation: Violation | None, good: int = 0) -> Result:
        return Result(len(states), len(edges), depth, good, time.process_time() - begun, violation)

    at = 0
    while at < len(states):
        if at == level_end:
            level_end, depth = len(states), depth + 1
        state = states[at]
        try:
            check(state)
        except Broken as broken:
            return result(Violation(str(broken), trace(states, parents, at, program, left)))
        try:
            for _, fault, then in moves(state, program, left.writes):
                if reduced:
                    then = simplest(then, program)
                known = number.get(then)
                if known is None:
                    known = number[then] = len(states)
                    states.append(then)
                    parents.append(at)
                edges.append(known | _FAULT if fault else known)
        except Broken as broken:
            lines = trace(states, parents, at, program, left)
            return result(Violation(str(broken), (*lines, _words(broken.during))))
        offsets.append(len(edges))
        at += 1
    if not liveness:
        return result(None)
    reaches = backwards([invariants.good(state) for state in states], edges, offsets)
    good = sum(map(invariants.good, states))
    if (stuck := reaches.find(0)) >= 0:
        text = "liveness: from here no good state can be reached any more, even if nothing else fails"
        return result(Violation(text, trace(states, parents, stuck, program, left)), good)
    return result(None, good)


def backwards(good: list[bool], edges: "array[int]", offsets: "array[int]") -> bytearray:
    """Which states reach a good one by moves that are no faults: 1 or 0 for each."""
    reaches = bytearray(good)
    changed = True
    while changed:
        changed = False
        for at in range(len(reaches) - 1, -1, -1):
            if not reaches[at]:
                for edge in edges[offsets[at] : offsets[at + 1]]:
                    if edge < _FAULT and reaches[edge]:
                        reaches[at] = 1
                        changed = True
                        break
    return reaches


def trace(states: list[State], parents: "array[int]", at: int, program: Program, left: Left) -> tuple[str, ...]:
    """The moves from the first state to that one, in words."""
    lines: list[str] = []
    while (parent := parents[at]) >= 0:
        lines.append(_words(_between(states[parent], states[at], program, left)))
        at = parent
    return tuple(reversed(lines))


def _between(state: State, then: State, program: Program, left: Left) -> Label:
    for label, _, found in moves(state, program, left.writes):
        if found == then or simplest(found, program) == then:
            return label
    raise LookupError("no move leads from a state to the one that it led to")


def _words(label: Label) -> str:
    """Numbers after "at" and "to" are sides."""
    words: list[str] = []
    for word in label:
        side = isinstance(word, int) and words and words[-1].split()[-1] in ("at", "to")
        words.append(f"the {SIDES[word]}" if side and isinstance(word, int) else str(word))
    return " ".join(words)
