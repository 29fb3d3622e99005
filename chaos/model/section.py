"""The steps of `cutover.switch.steps`, by name: what each does in the model, in parts that a crash may separate.

The order is not here. It is the list's: `Program` takes it from there, and refuses a name that only one of both knows.
"""

from collections.abc import Callable, Iterable, Mapping

from chaos.model.effects import Rules, advance, flip, seize, set_fence
from chaos.model.state import Attempt, Broken, Failed, Stale, State, flushed, marker_shown, put, shown, written

Part = Callable[[State, Attempt, Rules], State | None]


def gates(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """The fences are as they have to be; lag, differences and approvals are no matter of order."""
    right = state.closed[attempt.to] and not state.closed[1 - attempt.to]
    return state if right and state.queue[1 - attempt.to] is not None else None


def make_ready(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """The stream of the other direction, from now on; nothing has gone through it, so its proof is its existence."""
    if state.queue[attempt.to] is not None:
        return state
    return state._replace(queue=put(state.queue, attempt.to, ()))


def announce(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """Under the row's lock: an attempt that was overtaken announces nothing."""
    row = state.row
    if row.switch != attempt.switch or row.state != "fencing" or (rules.tokens and row.token != attempt.token):
        raise Stale
    if state.route.pause not in (0, attempt.switch):
        raise Failed
    return state._replace(route=state.route._replace(pause=attempt.switch))


def acknowledged(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """Every instance holds, or its lease has run out."""
    return None if state.library.mode == "live" else state


def fence(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """The lock conflicts with every open writer, so the commit is the end of the drain."""
    return set_fence(
        state, attempt, 1 - attempt.to, closed=True, primary=attempt.to, number=attempt.new, rules=rules
    )  # fmt: skip


def note_fenced(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return advance(state, attempt, "fenced", only_from=("fencing",), rules=rules)


def put_marker(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """No token is asked for: a marker does no harm."""
    source = 1 - attempt.to
    state = flushed(state, source)
    queue = state.queue[source]
    if queue is None:
        return None
    return state._replace(queue=put(state.queue, source, (*queue, -attempt.switch)))


def await_marker(state: State, attempt: Attempt, rules: Rules) -> State | None:
    if not marker_shown(state, attempt.to, attempt.switch):
        return None
    return flushed(state, attempt.to) if rules.durable_marker else state


def sequences(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """Raised, never lowered. The plan's margin is left out: it would hide a sequence that was read too early."""
    state = seize(state, attempt, attempt.to, rules)
    highest = max(state.sequence)
    state = state._replace(sequence=put(state.sequence, attempt.to, highest))
    return flushed(state, attempt.to) if rules.durable_sequences else state


def compare(state: State, attempt: Attempt, rules: Rules) -> State | None:
    if rules.compare and shown(state, 0) != shown(state, 1):
        raise Failed
    return state


def unfence(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """Executed under the token, and left open: the driver notes it at the attempt."""
    if rules.tokens and state.token[attempt.to] != attempt.token:
        raise Stale
    return None if written(state, attempt.to) else state


def journal(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """The point of no return: the new side is the truth from here on, whatever crashes."""
    state = advance(state, attempt, "journaled", only_from=("fenced",), rules=rules)
    if rules.at_journal:
        require_nothing_left_to_do(state, attempt)
    return state._replace(truth=(attempt.to, attempt.new))


def require_nothing_left_to_do(state: State, attempt: Attempt) -> None:
    """Nothing slow or fallible comes after the journal (invariant 4), and the way back is there (invariant 5)."""
    source = 1 - attempt.to
    if not state.closed[source] or written(state, source):
        raise Broken("one writable side: journaled while the old primary is not fenced and drained")
    if state.seen[attempt.to] < attempt.switch:
        raise Broken("nothing slow after the journal: journaled before the marker was on the new primary's disk")
    if state.rows[attempt.to] != state.acked:
        raise Broken(
            f"no acknowledged write is lost: journaled with {state.rows[attempt.to]} on the new primary's disk, "
            f"acknowledged are {state.acked}"
        )
    if state.queue[attempt.to] is None:
        raise Broken("the way back exists: journaled without a stream from the new primary")


def commit(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """Raises Failed where the session was lost meanwhile, and with it the unfence."""
    if not attempt.unfencing:
        raise Failed
    return open_new_primary(state, attempt)


def open_new_primary(state: State, attempt: Attempt) -> State:
    """What the unfence does once it is committed; a synchronous commit."""
    state = flushed(state, attempt.to)
    return state._replace(
        closed=put(state.closed, attempt.to, False),
        epoch=put(state.epoch, attempt.to, (attempt.new, attempt.to)),
    )


def flip_route(state: State, attempt: Attempt, rules: Rules) -> State | None:
    return flip(state, attempt, rules)


def prove(state: State, attempt: Attempt, rules: Rules) -> State | None:
    """A marker through the new stream; what is written behind it has no part in what follows."""
    return state if state.queue[attempt.to] == () else None


def drop_old(state: State, attempt: Attempt, rules: Rules) -> State | None:
    source = 1 - attempt.to
    if any(change > 0 for change in state.queue[source] or ()):
        raise Broken(f"no acknowledged write is lost: the old stream is dropped with {state.queue[source]} in it")
    return state._replace(queue=put(state.queue, source, None), visible=put(state.visible, source, 0))


#: An empty tuple: the step has no effect that the model has an eye for.
ACTIONS: Mapping[str, tuple[Part, ...]] = {
    "gates": (gates,),
    "make-ready": (make_ready,),
    "announce-pause": (announce, acknowledged),
    "fence": (fence, note_fenced),
    "marker": (put_marker, await_marker),
    "sequences": (sequences,),
    "compare": (compare,),
    "turn": (),
    "standbys": (),
    "unfence": (unfence,),
    "journal": (journal,),
    "commit": (commit,),
    "flip": (flip_route,),
    "finish": (prove, drop_old),
}


def require_same_names(listed: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError where list and model do not know the same steps."""
    missing, extra = set(listed) - set(known), set(known) - set(listed)
    if missing:
        raise ValueError(f"steps that the model does not know: {', '.join(sorted(missing))}; give each an action")
    if extra:
        raise ValueError(f"steps of the model that the list does not name: {', '.join(sorted(extra))}")
