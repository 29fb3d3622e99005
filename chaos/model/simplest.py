"""Fewer states with the same behaviour: what nobody will ever ask for again is forgotten.

A test explores small bounds with and without it, and compares what the databases, the flags and the control row show.
"""

from chaos.model.program import BEGIN, END, IDLE, SEIZE, Program
from chaos.model.state import SETTLED, Attempt, Row, State

CONTROL, OLD, NEW, EITHER, PASSES = "control", "old", "new", "either", "passes"

#: Whose token each part asks for. PASSES: it has no effect, so what counts is the part after it. Parts that have an
#: effect and ask for no token are not here: an attempt that was overtaken is still to be reckoned with there.
ASKS = {
    SEIZE: EITHER,
    BEGIN: CONTROL,
    "announce-pause (announce)": CONTROL,
    "announce-pause (acknowledged)": PASSES,
    "fence (fence)": OLD,
    "fence (note_fenced)": CONTROL,
    "marker (await_marker)": PASSES,
    "sequences": NEW,
    "compare": PASSES,
    "unfence": NEW,
    "journal": CONTROL,
    END: CONTROL,
    "note that it is undone": CONTROL,
    "open the old primary": OLD,
    "shut the other side": NEW,
    "end as undone": CONTROL,
    "await the marker again": PASSES,
    "open the new primary": NEW,
    "shut the old primary": OLD,
    "end as done": CONTROL,
}


def simplest(state: State, program: Program) -> State:
    """The state that stands for this one. Without tokens nothing can be left out."""
    if not program.rules.tokens:
        return state
    if state.attempts:
        if len(state.attempts) > 1:
            alive = tuple(one for one in state.attempts if not stopped(state, one, program))
            if len(alive) != len(state.attempts):
                state = state._replace(attempts=alive)
        return state
    row, now = state.row, state.run
    if row.token or state.token != (0, 0):
        # the next attempt's token is above all of them, whatever they are
        state = state._replace(token=(0, 0), row=row._replace(token=0))
    if now.pc == IDLE and row.state in SETTLED:
        state = state._replace(row=Row("idle", 0, row.switch, 0, 0, row.new), run=now._replace(to=0), seen=(0, 0))
    return state


def stopped(state: State, attempt: Attempt, program: Program) -> bool:
    """Whether the next thing that this attempt does is to find a newer token, with no effect before it."""
    if attempt.unfencing:
        return False  # it keeps locks until it ends
    pc = attempt.pc
    while (asks := ASKS.get(pc)) == PASSES:
        pc = program.after[pc]
    match asks:
        case "control":
            return state.row.token > attempt.token
        case "either":
            return max(state.token) > attempt.token
        case "old":
            return state.token[1 - attempt.to] > attempt.token
        case "new":
            return state.token[attempt.to] > attempt.token
        case _:
            return False
