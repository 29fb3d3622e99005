"""Wrong variants of the switch. Each has to be caught with a counterexample; what survives alone is a second layer.

They are tried without the comparison inside the fence: it looks at every key that changed, so it would call most of
them off before they do harm. The right order is clean without it as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from chaos.model import invariants
from chaos.model.effects import Rules
from chaos.model.explorer import Check, Result, explore
from chaos.model.program import Program, build
from chaos.model.recovery import COMPLETE, UNDO
from chaos.model.section import ACTIONS, Part, note_fenced
from chaos.model.state import SETTLED, Attempt, Left, State, flushed, put
from cutover.switch.steps import STEPS, Step

_BLIND = Rules(compare=False)
_ONE = Left(writes=1, crashes=0, sleeps=0, switches=1)


def moved(steps: tuple[Step, ...], name: str, before: str) -> tuple[Step, ...]:
    """The list with that step right before the other one, in its phase."""
    place = next(step for step in steps if step.name == before)
    step = replace(next(step for step in steps if step.name == name), phase=place.phase)
    rest = [one for one in steps if one.name != name]
    at = rest.index(place)
    return (*rest[:at], step, *rest[at:])


def without(parts: Mapping[str, Part], name: str) -> dict[str, Part]:
    """The parts but that one."""
    assert name in parts
    return {label: part for label, part in parts.items() if label != name}


def flag_only(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """A pause that only the flags know of."""
    return state


def undrained(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """A fence that does not wait for who writes."""
    old = 1 - attempt.to
    state = flushed(state, old)
    epoch = put(state.epoch, old, (attempt.new, attempt.to))
    return state._replace(closed=put(state.closed, old, True), epoch=epoch)


def only_settled(state: State) -> None:
    """What has to hold once no switch is under way; what happens meanwhile is not looked at."""
    if state.row.state in SETTLED:
        invariants.settled(state)


@dataclass(frozen=True)
class Mutant:
    """`make` builds the wrong program; `left` is enough of everything to see it fail."""

    name: str
    make: Callable[[], Program]
    left: Left = _ONE
    check: Check = invariants.check

    def run(self) -> Result:
        return explore(self.make(), self.left, self.check)


def _order(name: str, before: str, rules: Rules = _BLIND) -> Callable[[], Program]:
    return lambda: build(moved(STEPS, name, before), rules=rules)


def _rules(**changes: bool) -> Callable[[], Program]:
    return lambda: build(rules=replace(_BLIND, **changes))


_HARM = replace(_BLIND, at_journal=False)
_SLEEPER = Left(writes=1, crashes=0, sleeps=1, switches=2)
_CRASH = Left(writes=1, crashes=1, sleeps=0, switches=1)
_NO_AWAIT = without(COMPLETE, "await the marker again")

MUTANTS: tuple[Mutant, ...] = (
    Mutant("the marker before the fence", _order("marker", "fence", _HARM)),
    Mutant("the fence after the comparison", _order("fence", "unfence", Rules(at_journal=False))),
    Mutant("the journal before the marker", _order("journal", "marker")),
    Mutant("the unfence committed before the journal", _order("commit", "journal")),
    Mutant("the sequences before the fence", _order("sequences", "fence"), Left(2, 0, 0, 1)),
    Mutant("no fence, flags only", lambda: build(actions={**ACTIONS, "fence": (flag_only, note_fenced)}, rules=_HARM)),
    Mutant(
        "a fence that does not wait for open writers",
        lambda: build(actions={**ACTIONS, "fence": (undrained, note_fenced)}, rules=_HARM),
    ),
    Mutant("no token is asked for", _rules(tokens=False), _SLEEPER),
    Mutant("a stream dropped without the token", _rules(drop_token=False), Left(0, 0, 1, 2)),
    Mutant("a flip that does not ask for the epoch", _rules(epochs=False), _SLEEPER),
    Mutant(
        "no stream of the way back",
        lambda: build(actions={**ACTIONS, "make-ready": ()}, rules=replace(_HARM, way_back=False)),
    ),
    Mutant(
        "the stream of the way back made after the unfence",
        _order("make-ready", "flip", replace(_HARM, way_back=False)),
    ),
    Mutant("streams that send back what they applied", _rules(origin_none=False), Left(2, 0, 0, 1)),
    Mutant("the marker taken when it is visible", _rules(durable_marker=False, at_journal=False), _CRASH),
    Mutant(
        "the marker taken when it is visible, the comparison in place",
        lambda: build(rules=Rules(durable_marker=False, at_journal=False)),
        Left(1, 2, 0, 1),
    ),
    Mutant("recovery that completes what was not journaled", _rules(decides=False), _CRASH),
    Mutant(
        "undo that leaves the pause standing", lambda: build(undo=without(UNDO, "lift the pause"), rules=_BLIND), _CRASH
    ),
    Mutant("undo that does not note its end", lambda: build(undo=without(UNDO, "end as undone"), rules=_BLIND)),
    Mutant(
        "undo that leaves the old primary shut",
        lambda: build(undo=without(UNDO, "open the old primary"), rules=_BLIND),
        _CRASH,
    ),
    Mutant(
        "undo that does not shut the other side, the unfence committed before the journal",
        lambda: build(moved(STEPS, "commit", "journal"), undo=without(UNDO, "shut the other side"), rules=_BLIND),
        Left(0, 1, 0, 1),
        only_settled,
    ),
)

#: Taken away alone, none of these does harm within the bounds: another layer holds. Together with that one they do.
LAYERS: tuple[Mutant, ...] = (
    Mutant("the comparison", lambda: build(rules=_BLIND), Left(2, 1, 0, 1)),
    Mutant(
        "the durability of the marker, with the comparison in place and one kill",
        lambda: build(rules=Rules(durable_marker=False, at_journal=False)),
        Left(2, 1, 0, 1),
    ),
    Mutant("the flush of the sequences", _rules(durable_sequences=False), Left(2, 2, 0, 1)),
    Mutant(
        "the second await of the marker in recovery", lambda: build(complete=_NO_AWAIT, rules=_BLIND), Left(2, 2, 0, 1)
    ),
    Mutant(
        "the fence that undo puts back at the other side",
        lambda: build(undo=without(UNDO, "shut the other side"), rules=_BLIND),
        Left(1, 1, 1, 1),
    ),
    Mutant(
        "the fence that recovery puts back at the old primary",
        lambda: build(complete=without(COMPLETE, "shut the old primary"), rules=_BLIND),
        Left(1, 1, 1, 1),
    ),
    Mutant(
        "that fence of undo, where the unfence is committed before the journal, by its end",
        lambda: build(moved(STEPS, "commit", "journal"), rules=_BLIND),
        Left(0, 1, 0, 1),
        only_settled,
    ),
)
