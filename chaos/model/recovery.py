"""What ends a switch that stopped, part by part as in `cutover.switch.recovery`; a test reads the order there."""

from collections.abc import Mapping

from chaos.model.effects import Rules, advance, flip, lift_pause, set_fence
from chaos.model.section import Part, await_marker
from chaos.model.state import Attempt, State


def note_undoing(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """From here on nobody can journal."""
    if state.row.state not in ("fencing", "fenced"):
        return state
    return advance(state, attempt, "undoing", only_from=("fencing", "fenced"), rules=rules)


def open_old(state: State, attempt: Attempt, rules: Rules) -> State | None:
    old = 1 - attempt.to
    return set_fence(state, attempt, old, closed=False, primary=old, number=attempt.old, rules=rules)


def end_pause(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return lift_pause(state, attempt.switch)


def shut_new(state: State, attempt: Attempt, rules: Rules) -> State | None:
    old = 1 - attempt.to
    return set_fence(state, attempt, attempt.to, closed=True, primary=old, number=attempt.old, rules=rules)


def note_undone(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return advance(state, attempt, "undone", only_from=("undoing",), rules=rules)


def open_new(state: State, attempt: Attempt, rules: Rules) -> State | None:
    to = attempt.to
    return set_fence(state, attempt, to, closed=False, primary=to, number=attempt.new, rules=rules)


def flip_new(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return flip(state, attempt, rules)


def shut_old(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return set_fence(
        state, attempt, 1 - attempt.to, closed=True, primary=attempt.to, number=attempt.new, rules=rules
    )  # fmt: skip


def note_done(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return advance(state, attempt, "done", only_from=("journaled",), rules=rules)


UNDO: Mapping[str, Part] = {
    "note that it is undone": note_undoing,
    "open the old primary": open_old,
    "lift the pause": end_pause,
    "shut the other side": shut_new,
    "end as undone": note_undone,
}
COMPLETE: Mapping[str, Part] = {
    "await the marker again": await_marker,
    "open the new primary": open_new,
    "flip the flags": flip_new,
    "shut the old primary": shut_old,
    "end as done": note_done,
}
