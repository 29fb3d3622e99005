"""From whatever a switch has left to a good state: what `cutover doctor --mend` does, without Temporal or a worker.

Everything here is what a worker would do with its next attempt, under a token of its own: one that sleeps somewhere is
overtaken, and one that runs is told so and has nothing left to do. It may be called again at any time.
"""

import asyncio
import time
from collections.abc import Callable

from cutover import faults
from cutover.control import rebuilds, stages, switches
from cutover.errors import NotYet, StaleAttempt
from cutover.flags import store as flags
from cutover.monitor import fences
from cutover.monitor.catalogs import TAKEN_OVER
from cutover.postgres import epoch
from cutover.postgres.databases import SIDES, direction_from, other
from cutover.switch import servers
from cutover.switch.attempt import Attempt, open_attempt, require_not_ahead, under_token
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.rebuild import follow_anew, rebuild
from cutover.switch.recovery import complete, set_fence, undo

#: For the worker of a stream that goes on to show itself; whether it did, the doctor tells.
_RUNS_SECONDS = 5.0


async def mend(env: SwitchEnvironment, say: Callable[[str], None]) -> list[str]:
    """Ends a switch that stopped, lifts a pause, sets the fences by the route, mends the stream of now.

    A stream that was stopped is started, a lost one is built anew; not so on a server that nobody has accepted
    (`servers`): that makes the other side's rows like the primary's, and a person looks first who has lost commits.
    What was done, in words; empty where all was in order. Raises GateClosed where only a person can tell which side is
    right, NotYet where another attempt or somebody's lock is in the way, Unreachable.
    """
    stage = (await stages.get_stages(env.control, env.pair.migration)).get(env.pair.service)
    if stage is not None and stage.stage in TAKEN_OVER:
        return []
    done: list[str] = []

    def tell(text: str) -> None:
        done.append(text)
        say(text)

    if await _stands_wrong(env):
        try:
            async with open_attempt(env) as attempt:
                await _end_switch(env, attempt, tell)
                await _lift_pause(env, tell)
                await _set_fences(env, attempt, tell, copied=stage is not None)
        except StaleAttempt as error:
            raise NotYet(f"{error}: it is at work, look again in a moment") from None
    if not await servers.strange(env):
        await _build_stream(env, tell, streaming=stage is not None)
    return done


async def _stands_wrong(env: SwitchEnvironment) -> bool:
    """Whether there is anything to do at the sides; a token that nobody needs would only disturb."""
    if await switches.under_way(env.control, env.pair.migration, env.pair.service):
        return True
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    return bool(route.pause_id or (await fences.look(env.control, env.pair, mend=False)).problems)


async def _end_switch(env: SwitchEnvironment, attempt: Attempt, tell: Callable[[str], None]) -> None:
    row = attempt.row
    if row.state in switches.SETTLED:
        return
    if row.state == "journaled":
        await complete(env, attempt)
        tell(f"the switch to the {row.to_side}, which was past the point of no return, is finished")
    else:
        await undo(env, attempt, "it had stopped, and was ended by cutover doctor --mend")
        tell(f"the switch to the {row.to_side} is undone: writes go on at the {row.from_side}")


async def _lift_pause(env: SwitchEnvironment, tell: Callable[[str], None]) -> None:
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    if route.pause_id:
        async with faults.step("mend.lift"):
            await flags.lift_pause(env.control, env.pair.migration, env.pair.service, route.pause_id, actor="doctor")
        tell(f"pause {route.pause_id!r}, whose switch has ended, is lifted")


async def _set_fences(env: SwitchEnvironment, attempt: Attempt, tell: Callable[[str], None], *, copied: bool) -> None:
    """Shut first and open then, so that at no instant both sides take writes. A shut one lets a first copy pass."""
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    for side in SIDES:
        known = await epoch.read(await attempt.session(side), env.pair.service)
        if known is None:
            return  # there is nothing of ours yet: preparation makes it
        require_not_ahead(side, known.epoch, route)
    for side in (other(route.primary_side), route.primary_side):
        closed = side != route.primary_side
        async with faults.step("mend.fences"):
            session = await attempt.session(side)
            if not await epoch.refuses(session):
                await epoch.install(session, env.pair.service, side)
                tell(f"the function behind the fences at the {side} is this version's again")
            changed = await set_fence(
                env, attempt, side, closed=closed, primary=route.primary_side, number=route.epoch, always=copied
            )
        if changed:
            tell(f"the fence at the {side} is {'shut' if closed else 'open'} again")


async def _build_stream(env: SwitchEnvironment, tell: Callable[[str], None], *, streaming: bool) -> None:
    """`streaming`: the first copy is done, so that a stream has to be there."""
    route = await flags.get(env.control, env.pair.migration, env.pair.service)
    stream = env.stream(direction_from(route.primary_side))
    gone = (streaming or route.epoch > 0) and not await stream.exists()
    half = await rebuilds.unfinished(env.control, env.pair.migration, env.pair.service, stream.direction)
    health = await stream.health()
    if gone or half or health.lost:
        tell(f"the {stream.direction} stream was lost, and is built anew")
        await rebuild(env, tell)
        return
    if health.stopped:
        async with faults.step("ready.start"):
            await stream.start(copy=False, through=under_token(env, route.primary_side))
        deadline = time.monotonic() + _RUNS_SECONDS
        while not (await stream.health()).ok and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        tell(f"the {stream.direction} stream is started again")
    # without a stream there is nothing to record yet
    if await stream.exists() and await env.changed(stream.direction).lost():
        tell(f"the record of keys changed in the {stream.direction} direction was lost, and is made anew")
        await follow_anew(env, tell)
