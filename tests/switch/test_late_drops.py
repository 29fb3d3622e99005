"""Whoever is about to drop a stream and sleeps must not drop the one that a later switch needs."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import asyncpg
import pytest

from cutover import faults
from cutover.control import switches
from cutover.errors import NotYet, Refused, Unreachable
from cutover.flags import store as flags
from cutover.postgres.databases import Side, direction_from
from cutover.switch import finish, rebuild, reverse
from cutover.switch.attempt import Attempt
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.section import run
from tests.switch.conftest import order

#: Of the six effects of the two drops: the slot of the changed keys, the subscription, its slot.
EFFECTS = (1, 4, 5)


class Sleeper:
    """Stops the first one that reaches its n-th effect, before it begins or while it holds its locks."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, *, inside: bool) -> None:
        self.asleep, self.awake = asyncio.Event(), asyncio.Event()
        self._left = number
        original = Attempt.at_leisure

        @asynccontextmanager
        async def at_leisure(attempt: Attempt, side: Side) -> AsyncIterator[asyncpg.Connection]:
            self._left -= 1
            mine = self._left == 0
            if mine and not inside:
                await self._sleep()
            async with original(attempt, side) as connection:
                if mine and inside:
                    await self._sleep()
                yield connection

        patch.setattr(Attempt, "at_leisure", at_leisure)

    async def _sleep(self) -> None:
        self.asleep.set()
        await self.awake.wait()

    async def begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        await asyncio.wait_for(self.asleep.wait(), 30)
        return task


async def move(env: SwitchEnvironment, to_side: Side) -> None:
    await reverse.make_ready(env, to_side)
    assert (await run(env, order(env, to_side), lambda _: None)).result == "done"


async def require_a_way_back(env: SwitchEnvironment) -> None:
    """The stream from the side of now, and the record of its changes, whole and at work."""
    route = await flags.get(env.control, "test", env.pair.service)
    stream = env.stream(direction_from(route.primary_side))
    assert (await stream.health()).detail == ""
    assert await env.changed(stream.direction).whole()
    await stream.await_marker(await stream.put_marker(), 10)


@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
@pytest.mark.parametrize("number", EFFECTS)
async def test_a_finish_that_slept_leaves_the_next_switchs_stream_alone(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, number: int, inside: bool
) -> None:
    await move(env, "service")
    sleeper = Sleeper(monkeypatch, number, inside=inside)
    first = await sleeper.begin(finish.finish(env, order(env, "service")))
    await finish.finish(env, order(env, "service"))  # the second attempt does it all
    await move(env, "monolith")
    sleeper.awake.set()
    with pytest.raises((NotYet, Refused, Unreachable)):
        await first
    await require_a_way_back(env)


async def test_a_finish_that_slept_in_its_proof_leaves_the_next_switchs_way_back_alone(env: SwitchEnvironment) -> None:
    await move(env, "service")
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def sleep(point: str) -> None:
        if point == "finish.prove.before" and not asleep.is_set():
            asleep.set()
            await awake.wait()

    with faults.armed(sleep):
        first = asyncio.create_task(finish.finish(env, order(env, "service")))
        await asyncio.wait_for(asleep.wait(), 30)
        await finish.finish(env, order(env, "service"))
        await reverse.make_ready(env, "monolith")
        awake.set()
        with pytest.raises(NotYet):
            await first
    assert (await run(env, order(env, "monolith"), lambda _: None)).result == "done"
    await require_a_way_back(env)


@pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
async def test_a_taking_back_that_slept_leaves_the_next_switchs_stream_alone(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    await reverse.make_ready(env, "service")
    sleeper = Sleeper(monkeypatch, 1, inside=inside)
    first = await sleeper.begin(reverse.take_back(env, "service"))
    await reverse.take_back(env, "service")
    await move(env, "service")
    sleeper.awake.set()
    with pytest.raises((NotYet, Refused, Unreachable)):
        await first
    await require_a_way_back(env)


async def test_while_a_switch_is_under_way_nobody_drops_a_stream(env: SwitchEnvironment) -> None:
    """It is not even overtaken: no token is drawn."""
    await reverse.make_ready(env, "service")
    row = await switches.raise_token(env.control, "test", env.pair.service)
    assert row is not None
    begun = await switches.begin(
        env.control, row, switch_id="one", to_side="service", from_side="monolith", from_epoch=0,
        plan_hash=env.plan.hash,
    )  # fmt: skip
    for drop in (reverse.take_back(env, "service"), rebuild.rebuild(env, lambda _: None)):
        with pytest.raises(Refused):
            await drop
    assert await switches.find(env.control, "test", env.pair.service) == begun
    assert (await env.stream("reverse").health()).ok
