"""What an attempt does to the databases in one transaction; the section, recovery and the mutants share it.

The names are those of the code: `seize` is `Attempt.seize`, `advance` is `switches.advance`, `set_fence` is
`recovery.set_fence`. None says that the attempt waits: for a lock, for a marker, for acknowledgements.
"""

from dataclasses import dataclass

from chaos.model.state import Attempt, Broken, Failed, Library, Route, Stale, State, flushed, locked, put, written


@dataclass(frozen=True)
class Rules:
    """What every effect keeps to; the mutants take one away."""

    #: Effects ask whether a newer attempt has raised the token.
    tokens: bool = True
    #: A flip to an epoch of the past is refused.
    epochs: bool = True
    #: The streams carry `origin = none`: what was applied is not sent back.
    origin_none: bool = True
    #: A marker that is seen is made durable before it counts.
    durable_marker: bool = True
    #: The transaction that raises the sequences is flushed, and with it all that was visible before.
    durable_sequences: bool = True
    #: The comparison inside the fence looks. The mutants are tried without it, or it would catch most of them.
    compare: bool = True
    #: The section does not begin without the stream of the way back.
    way_back: bool = True
    #: Recovery asks the row whether there was a journal.
    decides: bool = True
    #: Who drops a stream holds the token at both sides while it does.
    drop_token: bool = True
    #: The invariants of the journal's own moment are asserted; off, a mutant has to do real harm to be caught.
    at_journal: bool = True


def seize(state: State, attempt: Attempt, side: int, rules: Rules) -> State:
    """Ends older attempts' sessions at that side and raises the token there; a commit, so it flushes."""
    if not rules.tokens:
        return state
    if state.token[side] > attempt.token:
        raise Stale
    if state.token[side] == attempt.token:
        return state
    ended = tuple(
        other._replace(unfencing=False)
        if other.unfencing and other.to == side and other.token < attempt.token
        else other
        for other in state.attempts
    )
    return flushed(state._replace(token=put(state.token, side, attempt.token), attempts=ended), side)


def advance(state: State, attempt: Attempt, to_state: str, *, only_from: tuple[str, ...], rules: Rules) -> State:
    """The compare-and-set on the one row. Raises Stale where it lost."""
    row = state.row
    if row.switch != attempt.switch or row.state not in only_from or (rules.tokens and row.token != attempt.token):
        raise Stale
    return state._replace(row=row._replace(state=to_state))


def set_fence(
    state: State, attempt: Attempt, side: int, *, closed: bool, primary: int, number: int, rules: Rules
) -> State | None:
    """One side's fence and epoch row in one transaction under the token. It waits for who writes there."""
    state = seize(state, attempt, side, rules)
    if locked(state, side) or (state.closed[side] != closed and written(state, side)):
        return None
    state = flushed(state, side)
    return state._replace(closed=put(state.closed, side, closed), epoch=put(state.epoch, side, (number, primary)))


def flip(state: State, attempt: Attempt, rules: Rules) -> State:
    """The flags go to the new side, and the pause of this switch ends. Raises Failed for an epoch of the past."""
    route = state.route
    if attempt.new < route.epoch:
        if rules.epochs:
            raise Failed
        raise Broken(f"epochs are monotone: the route goes from epoch {route.epoch} back to {attempt.new}")
    if attempt.new == route.epoch:
        if route.side != attempt.to:
            raise Broken(f"epochs are monotone: epoch {attempt.new} belongs to two sides")
        return lift_pause(state, attempt.switch)
    return state._replace(route=Route(attempt.to, attempt.new, 0), library=_let_go(state.library, attempt.to))


def lift_pause(state: State, switch: int) -> State:
    """Ends that switch's pause; another one's is left alone."""
    if state.route.pause != switch:
        return state
    return state._replace(route=state.route._replace(pause=0), library=_let_go(state.library, state.route.side))


def _let_go(library: Library, side: int) -> Library:
    """Whoever has a lease hears of the new route, or cannot have passed the pause without an acknowledgement."""
    return library if library.mode == "late" else library._replace(mode="live", knows=side)
