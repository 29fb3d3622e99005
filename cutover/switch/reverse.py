"""Step 2: the stream of the other direction exists, enabled and proved, before anything is fenced.

Slot creation waits for every transaction that is open in its cluster; none of ours is open here. Both
directions run at once, kept apart by `origin = none` where that can be (both servers 16 or newer). Else the
new one is only armed: it exists at both ends, and the section lets it begin (`turn`).
"""

import asyncio
import time

from cutover import faults
from cutover.errors import Conflict, NotYet
from cutover.flags import store as flags
from cutover.postgres.databases import Side, direction_from, other
from cutover.switch.attempt import between_switches, under_token
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.turn import turns_of

_READY_SECONDS = 30.0


async def make_ready(env: SwitchEnvironment, to_side: Side) -> float:
    """Makes ready what rows will flow through once `to_side` is writable; returns the proof's (or arming's) seconds.

    Raises NotYet where the stream does not come up or carry its marker in time, Conflict where `to_side` is the
    primary already: a stream that its writes depend on is mended by `rebuild`, never made anew with a gap.
    """
    direction = direction_from(to_side)
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    if route.primary_side == to_side:
        raise Conflict(f"{env.pair.service} is writable at the {to_side} already; its {direction} stream is left alone")
    # what a marker of the way forward tells has to be all that was written
    async with faults.step("ready.keep"):
        await env.stream(direction_from(route.primary_side)).give_up_nothing()
    stream = env.stream(direction)
    changed = env.changed(direction)
    if (await stream.health()).lost or await changed.lost():
        # its source has taken no write of an application since it was made, so nothing of it is missed
        async with faults.step("ready.drop"), between_switches(env, other(to_side)) as attempt:
            # another attempt may have made it anew meanwhile
            lost = (await stream.health()).lost
            if lost or await changed.lost():
                # with the stream goes the publication, without which the record cannot be read (before 18; from then
                # on it says nothing of that time)
                await changed.drop(attempt.at_leisure, attempt.row)
            if lost:
                await stream.drop(attempt.at_leisure)
    async with faults.step("ready.prepare"):
        await stream.prepare()
    # it begins before the first write on the new side can happen
    async with faults.step("ready.changed"):
        await changed.prepare()
    if turns := await turns_of(env, direction):
        begun = time.monotonic()
        async with faults.step("ready.arm"):
            await turns.arm()
        return time.monotonic() - begun
    async with faults.step("ready.start"):
        await stream.start(copy=False, through=under_token(env, other(to_side)))
    deadline = time.monotonic() + _READY_SECONDS
    # both, as the switch will ask for both: a stream may be ready and still tell of what went wrong a moment ago
    while not (await stream.ready() and (await stream.health()).ok):
        if time.monotonic() > deadline:
            health = await stream.health()
            why = health.detail or "no reason known"
            raise NotYet(f"{env.pair.service}: the {direction} stream is not ready: {why}")
        await asyncio.sleep(0.05)
    async with faults.step("ready.prove"):
        return await stream.await_marker(await stream.put_marker(), _READY_SECONDS)


async def take_back(env: SwitchEnvironment, to_side: Side) -> None:
    """The compensation of `make_ready` where no switch followed; nothing where `to_side` is the primary.

    What is left standing would hold back the other server's log: nobody reads the slot of its changed keys.
    """
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    if route.primary_side == to_side:
        return
    direction = direction_from(to_side)
    async with between_switches(env, other(to_side)) as attempt:
        async with faults.step("take-back.changed"):
            await env.changed(direction).drop(attempt.at_leisure, attempt.row)
        async with faults.step("take-back.stream"):
            await env.stream(direction).drop(attempt.at_leisure)
