"""Step 8: the stream turns round inside the fence, where its two directions must never run at once.

Nothing to do for streams whose directions may (outbox; `logical` between servers from 16 on). Each effect is one that
an undo takes back: the stream that ran is disabled and its slot stays, so when it is resumed there is no gap. Nothing
of this is noted: an undo looks at the servers, and leaves alone what is as it has to be.
"""

import time

from cutover import faults
from cutover.postgres import epoch
from cutover.postgres.databases import Direction, Side, direction_from, other
from cutover.streams.turns import TURN_MARKER, Turns
from cutover.switch.attempt import Attempt
from cutover.switch.environment import SwitchEnvironment

#: For a worker to end in an undo; the application goes on already.
_GONE_SECONDS = 10.0


async def turns_of(env: SwitchEnvironment, direction: Direction) -> Turns | None:
    """How that direction takes its turns; None where both may run at once."""
    async with env.pair.monolith.session("cutover-switch") as one, env.pair.target.session("cutover-switch") as two:
        return env.stream(direction).turns(one, two)


async def renew_slot(attempt: Attempt, to_side: Side, turns: Turns) -> None:
    """Before the pause: the slot of the armed stream anew, so that there is little to read inside the fence.

    The old one goes under the token: to an attempt that slept it would be the slot of a stream in use. Raises NotYet
    while old transactions at that side hold the new one off.
    """
    async with faults.step("turn.renew"):
        async with attempt.effect(to_side) as connection:
            await turns.drop_slot_on(connection)
        await turns.create_slot_on(await attempt.session(to_side))


async def turn(attempt: Attempt, to_side: Side, seconds: float) -> None:
    """Halts the stream from the fenced side and begins the one to it, proved by a marker of its own.

    All that the halted one had to carry has arrived (step 5). Raises NotYet where it takes longer than so many seconds.
    """
    deadline = time.monotonic() + seconds
    from_side = other(to_side)
    old_source, new_source = await attempt.session(from_side), await attempt.session(to_side)
    old = attempt.env.stream(direction_from(from_side)).turns(old_source, new_source)
    stream = attempt.env.stream(direction_from(to_side))
    new = stream.turns(old_source, new_source)
    if old is None or new is None:
        return
    async with faults.step("turn.halt"):
        async with attempt.effect(to_side) as connection:
            await old.disable_on(connection)
        await old.await_gone_on(new_source, deadline - time.monotonic())
    async with faults.step("turn.begin"):
        # what the halted stream has brought is flushed: a slot moves no further than that
        await epoch.make_durable(new_source)
        async with attempt.effect(to_side) as connection:
            await new.move_to_now_on(connection)
        async with attempt.effect(from_side) as connection:
            await new.enable_on(connection)
    async with faults.step("turn.prove"):
        marker = await stream.put_marker_on(new_source, kind=TURN_MARKER)
        await stream.await_marker_on(old_source, marker, deadline - time.monotonic())


async def turn_back(attempt: Attempt) -> None:
    """Undoes `turn`, however far it came: the stream from the old primary runs again, the other one does not.

    First the other one's worker is seen gone, then its proof is forgotten: the stream that is resumed brings it back as
    a new row, and would stumble over it for ever.
    """
    env, row = attempt.env, attempt.row
    opened, shut = await attempt.session(row.from_side), await attempt.session(row.to_side)
    old = env.stream(direction_from(row.from_side)).turns(opened, shut)
    new = env.stream(direction_from(row.to_side)).turns(opened, shut)
    if old is None or new is None:
        return
    async with faults.step("undo.halt"):
        async with attempt.effect(row.from_side) as connection:
            await new.disable_on(connection)
        await new.await_gone_on(opened, _GONE_SECONDS)
    async with faults.step("undo.resume-stream"), attempt.effect(row.to_side) as connection:
        await new.forget_proof_on(connection)
        await old.enable_on(connection)
