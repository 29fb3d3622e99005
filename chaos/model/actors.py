"""Who acts: attempts, the run, the writers, the streams, and what crashes. Each function yields what can happen next.

A move is what happened in words, whether it is a fault (liveness has to do without), and the state afterwards. An
attempt that may go on at any later moment is an attempt that sleeps; a change that may be applied at any later moment
is a slow stream.
"""

from collections.abc import Iterator

from chaos.model.effects import advance, seize, set_fence
from chaos.model.program import BEGIN, END, IDLE, SECTION, SEIZE, Program
from chaos.model.state import (
    SETTLED,
    Attempt,
    Broken,
    Failed,
    Label,
    Library,
    Row,
    Run,
    Stale,
    State,
    Transaction,
    applied,
    flushed,
    locked,
    put,
    shown,
)

Move = tuple[Label, bool, State]
MOST_ATTEMPTS = 2


def attempts(state: State, program: Program) -> Iterator[Move]:
    """Each attempt does its next part, gives up, or is killed."""
    for place, attempt in enumerate(state.attempts):
        who = ("attempt", attempt.token)
        if (then := _step(state, place, program)) is not None:
            yield (*who, attempt.pc), False, then
        if attempt.pc in program.undoable:
            given_up = _recover(state, place, program)
            yield (*who, "gives up at", attempt.pc), False, given_up
        overtaken = program.rules.tokens and state.row.token != attempt.token
        if state.left.crashes and not (overtaken and attempt.pc in program.undoable):
            # (one that was overtaken may as well give up)
            fewer = state._replace(left=state.left._replace(crashes=state.left.crashes - 1))
            yield (*who, "is killed before", attempt.pc), True, _settle_crashes(_without(fewer, place))
            if attempt.pc in program.undoable and (opened := _reopen(fewer, place, program)) is not None:
                yield (*who, "opens the old primary without the control database"), True, _settle_crashes(opened)


def _step(state: State, place: int, program: Program) -> State | None:
    attempt = state.attempts[place]
    try:
        if attempt.pc == SEIZE:
            return _clear_the_way(state, place, program)
        if attempt.pc == BEGIN:
            return _begin(state, place, program)
        if attempt.pc == END:
            return _without(advance(state, attempt, "done", only_from=("journaled",), rules=program.rules), place)
        then = program.parts[attempt.pc](state, attempt, program.rules)
    except Broken as broken:
        raise broken.by(("attempt", attempt.token, attempt.pc)) from None
    except (Stale, Failed):
        return _recover(state, place, program)
    if then is None:
        return None
    attempt = then.attempts[place]
    if not (following := program.after[attempt.pc]):
        return _without(then, place)
    if attempt.pc == program.unfences:
        attempt = attempt._replace(unfencing=True)
    elif attempt.pc == "commit":
        attempt = attempt._replace(unfencing=False)
    return _with(then, place, attempt._replace(pc=following))


def _with(state: State, place: int, attempt: Attempt) -> State:
    return state._replace(attempts=(*state.attempts[:place], attempt, *state.attempts[place + 1 :]))


def _without(state: State, place: int) -> State:
    return state._replace(attempts=state.attempts[:place] + state.attempts[place + 1 :])


def _clear_the_way(state: State, place: int, program: Program) -> State:
    """The token is raised on both sides; then both streams are there, else nothing begins."""
    attempt = state.attempts[place]
    for side in (0, 1):
        state = seize(state, attempt, side, program.rules)
    if program.rules.drop_token:
        state = state._replace(late_drop=(False, False))  # its sessions have ended, and its token is an old one
    if None in state.queue and program.rules.way_back:
        state, heard = _without(state, place), state.run
        if heard.pc == SECTION and attempt.token == state.row.token:
            state = state._replace(run=heard._replace(pc=IDLE))
        return state
    return _with(state, place, attempt._replace(pc=program.after[SEIZE]))


def _begin(state: State, place: int, program: Program) -> State:
    attempt, row = state.attempts[place], state.row
    if row.state not in SETTLED or (program.rules.tokens and row.token != attempt.token):
        raise Stale
    epoch = max(row.new, state.route.epoch) + 1
    if epoch <= state.truth[1]:
        raise Broken(f"epochs are monotone: epoch {epoch} is drawn after {state.truth[1]}")
    attempt = attempt._replace(pc=program.after[BEGIN], old=state.route.epoch, new=epoch)
    row = Row("fencing", row.token, attempt.switch, attempt.to, attempt.old, attempt.new)
    return _with(state._replace(row=row), place, attempt)


def _recover(state: State, place: int, program: Program) -> State:
    """Rolls the unfence back, then decides by the row: undo, complete, or nothing that is this attempt's to do."""
    attempt, row = state.attempts[place], state.row
    overtaken = program.rules.tokens and row.token != attempt.token
    if overtaken or row.switch != attempt.switch or row.state in SETTLED:
        return _without(state, place)
    if attempt.pc not in program.section:
        return _without(state, place)  # recovery itself was refused; the next attempt looks
    return _with(state, place, attempt._replace(pc=_way_out(row, program), unfencing=False))


def _way_out(row: Row, program: Program) -> str:
    return program.first_complete if row.state == "journaled" or not program.rules.decides else program.first_undo


def _reopen(state: State, place: int, program: Program) -> State | None:
    """Without the control database: the old primary opens under the attempt's own token, the notes follow later."""
    attempt = state.attempts[place]
    old = 1 - attempt.to
    if not state.closed[old]:
        return None
    state = _with(state, place, attempt._replace(unfencing=False))
    try:
        opened = set_fence(state, attempt, old, closed=False, primary=old, number=attempt.old, rules=program.rules)
    except Stale:
        return None
    return None if opened is None else _without(opened, place)


def run(state: State, program: Program) -> Iterator[Move]:
    """The workflow: steps before, one attempt after the other until there is an outcome, steps after."""
    now, row, left = state.run, state.row, state.left
    yield from _late_drops(state, program)
    if now.pc == IDLE:
        if left.switches:
            begun = Run(program.first_before, now.switch + 1, 1 - state.route.side)
            fewer = left._replace(switches=left.switches - 1)
            yield ("run", "begins a switch to", begun.to), False, state._replace(run=begun, left=fewer)
        return
    if now.pc != SECTION:
        pretended = Attempt(0, now.pc, now.switch, now.to, 0, 0)
        try:
            then = program.parts[now.pc](state, pretended, program.rules)
        except Broken as broken:
            raise broken.by(("run", now.pc)) from None
        if then is not None:
            yield ("run", now.pc), False, then._replace(run=now._replace(pc=program.after[now.pc]))
        return
    if row.switch == now.switch and row.state in SETTLED:
        if row.state == "done":
            yield ("run", "hears that it is done"), False, state._replace(run=now._replace(pc=program.first_after))
            return
        idle = state._replace(run=now._replace(pc=IDLE))
        yield ("run", "hears that it is undone"), False, idle
        yield (
            ("run", "takes the unused stream down"),
            False,
            idle._replace(queue=put(idle.queue, now.to, None), visible=put(idle.visible, now.to, 0)),
        )
        return
    if len(state.attempts) < MOST_ATTEMPTS:
        asleep = any(attempt.token == row.token for attempt in state.attempts)
        if not asleep:
            yield ("run", "starts an attempt"), False, _opened(state, program)
        elif left.sleeps:
            later = state._replace(left=left._replace(sleeps=left.sleeps - 1))
            yield ("run", "starts another attempt while one sleeps"), True, _opened(later, program)


def _late_drops(state: State, program: Program) -> Iterator[Move]:
    """An activity that has looked whether a stream may be dropped sleeps, and drops it when it wakes up."""
    now, left = state.run, state.left
    going = 1 - now.to if now.pc.startswith("finish") else now.to
    undone = now.pc == SECTION and (state.row.switch, state.row.state) == (now.switch, "undone")
    if left.sleeps and (now.pc == "finish (drop_old)" or undone):
        fewer = left._replace(sleeps=left.sleeps - 1)
        asleep = state._replace(late_drop=put(state.late_drop, going, True), left=fewer)
        yield ("run", "is about to drop the stream from what is written at", going, "and sleeps"), True, asleep
    for source in (0, 1):
        if state.late_drop[source]:
            yield (
                ("sleeper", "drops the stream from what is written at", source),
                False,
                state._replace(
                    late_drop=put(state.late_drop, source, False),
                    queue=put(state.queue, source, None),
                    visible=put(state.visible, source, 0),
                ),
            )


def _opened(state: State, program: Program) -> State:
    """The token is raised in the control database; a switch that was begun is recovered."""
    row = state.row._replace(token=state.row.token + 1)
    if row.switch == state.run.switch:
        attempt = Attempt(row.token, _way_out(row, program), row.switch, row.to, row.old, row.new)
    else:
        attempt = Attempt(row.token, SEIZE, state.run.switch, state.run.to, 0, 0)
    return state._replace(row=row, attempts=(*state.attempts, attempt))


def library(state: State, writes: int) -> Iterator[Move]:
    """A writer through the library; late, it goes on by the route that it knew."""
    who, paused = state.library, state.route.pause
    if who.open is not None:
        yield (
            ("library", "commits"),
            False,
            _committed(state, "library", who.open)._replace(library=who._replace(open=None)),
        )
    elif who.mode != "held":
        for label, tx, then in _begun(state, "library", who.knows, writes):
            yield label, False, then._replace(library=who._replace(open=tx))
    if who.mode == "live" and paused:
        if who.open is None:
            yield ("library", "acknowledges"), False, state._replace(library=who._replace(mode="held"))
        yield ("library", "loses its lease"), False, state._replace(library=who._replace(mode="late"))
    if who.mode == "held" and paused:
        yield ("library", "waits no longer"), False, state._replace(library=who._replace(mode="late"))
    if who.mode == "late" and not paused:
        live = Library("live", state.route.side, who.open)
        yield ("library", "has a lease again"), False, state._replace(library=live)


def bypass(state: State, writes: int) -> Iterator[Move]:
    """A writer that knows no route: it tries either side at any time."""
    if state.bypass is not None:
        yield ("bypass", "commits"), False, _committed(state, "bypass", state.bypass)._replace(bypass=None)
        return
    for side in (0, 1):
        for label, tx, then in _begun(state, "bypass", side, writes):
            yield label, False, then._replace(bypass=tx)


def _begun(state: State, who: str, side: int, writes: int) -> Iterator[tuple[Label, Transaction, State]]:
    """The fence decides with the statement; an unfence that is not committed makes it wait.

    The keys are alike, so the first write of all is always to the first of them.
    """
    left = state.left
    if not left.writes or state.closed[side] or locked(state, side):
        return
    fewer = state._replace(left=left._replace(writes=left.writes - 1))
    for key in (0,) if left.writes == writes else (0, 1):
        yield (who, "begins at", side, "key", key), (side, key), fewer


def _committed(state: State, who: str, open_: Transaction) -> State:
    """The write is acknowledged: from now on it must not be lost."""
    side, key = open_
    during = (who, "commits at", side, "key", key)
    version = state.sequence[side] + 1
    queue = state.queue[side]
    if side != state.truth[0]:
        raise Broken("one writable side: a write was accepted by a side that no journal names").by(during)
    if version <= max(state.acked):
        raise Broken(f"no acknowledged write is lost: the sequence gives number {version} a second time").by(during)
    if queue is None:
        raise Broken("the way back exists: a write was accepted that no stream carries to the other side").by(during)
    state = flushed(state, side)
    return state._replace(
        sequence=put(state.sequence, side, version),
        rows=put(state.rows, side, put(state.rows[side], key, version)),
        queue=put(state.queue, side, (*queue, version * 2 + key)),
        acked=put(state.acked, key, version),
    )


def streams(state: State, program: Program) -> Iterator[Move]:
    """Each stream applies its next change, visible first and on disk later. An open unfence keeps it out."""
    for source in (0, 1):
        queue, count, sink = state.queue[source], state.visible[source], 1 - source
        if queue is not None and count < len(queue):
            change = queue[count]
            if change > 0 and locked(state, sink):
                continue
            label: Label = ("stream", "applies at", sink)
            try:
                applied(shown(state, sink), (change,), sink)
            except Broken as broken:
                raise broken.by(label) from None
            then = state._replace(visible=put(state.visible, source, count + 1))
            back = then.queue[sink]
            if not program.rules.origin_none and change > 0 and back is not None:
                then = then._replace(queue=put(then.queue, sink, (*back, change)))
            yield label, False, _settle_crashes(then)
        if count:
            yield ("server", "writes to disk at", sink), False, flushed(state, sink)


def _settle_crashes(state: State) -> State:
    """Where no crash is left, visible and on disk are one."""
    if state.left.crashes or state.visible == (0, 0):
        return state
    return flushed(flushed(state, 0), 1)


def servers(state: State) -> Iterator[Move]:
    """A database is killed: what is open there ends, what is not on its disk is gone, and the streams send it again."""
    left = state.left
    if not left.crashes:
        return
    for side in (0, 1):
        writer, other = state.library, state.bypass
        here = writer.open is not None and writer.open[0] == side
        if not (here or (other is not None and other[0] == side) or locked(state, side) or state.visible[1 - side]):
            continue
        then = state._replace(
            left=left._replace(crashes=left.crashes - 1),
            library=writer._replace(open=None) if here else writer,
            bypass=None if other is not None and other[0] == side else other,
            attempts=tuple(a._replace(unfencing=False) if a.to == side else a for a in state.attempts),
            visible=put(state.visible, 1 - side, 0),
        )
        yield ("server", "is killed at", side), True, _settle_crashes(then)
