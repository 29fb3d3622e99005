"""What holds in every state (section 4 of the design, as far as the model can see it)."""

from chaos.model.program import IDLE
from chaos.model.state import SETTLED, SIDES, Broken, State, shown


def check(state: State) -> None:
    """Raises Broken with the invariant that does not hold."""
    primary, epoch = state.truth
    if not state.closed[1 - primary]:
        what = "both sides are writable" if not state.closed[primary] else f"the {SIDES[1 - primary]} is writable"
        raise Broken(f"one writable side: {what}, the newest journal names the {SIDES[primary]}")
    if not state.closed[primary]:
        if shown(state, primary) != state.acked:
            raise Broken(
                f"no acknowledged write is lost: the {SIDES[primary]} is writable with {shown(state, primary)}, "
                f"acknowledged are {state.acked}"
            )
        if state.epoch[primary] != (epoch, primary):
            raise Broken(f"epochs: the {SIDES[primary]} is writable and says {state.epoch[primary]}, not {state.truth}")
        if state.queue[primary] is None:
            raise Broken("the way back exists: the writable side has no stream to the other one")
    if state.row.state in SETTLED:
        settled(state)


def settled(state: State) -> None:
    """No switch is under way: exactly one side is writable, the flags lead there, and nobody is held."""
    primary = state.truth[0]
    if state.closed != (primary != 0, primary != 1):
        raise Broken(f"settled: no switch is under way, and the fences are {state.closed}")
    if (state.route.side, state.route.epoch) != state.truth:
        raise Broken(f"settled: no switch is under way, and the flags lead to {state.route[:2]}, not {state.truth}")
    if state.route.pause:
        raise Broken("settled: no switch is under way, and a pause stands")


def good(state: State) -> bool:
    """A quiet end: nothing is under way or on its way, both sides are equal, and everybody knows the route."""
    return (
        state.row.state in SETTLED
        and state.run.pc == IDLE
        and not state.attempts
        and state.bypass is None
        and state.library == ("live", state.truth[0], None)
        and all(not queue for queue in state.queue)
        and state.rows == (state.acked, state.acked)
    )
