"""Whoever is about to clear a leftover away for a new stream and sleeps must not take the slot of the stream in use."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from cutover.errors import NotYet, Refused, Unreachable
from cutover.postgres import replication
from cutover.postgres.databases import Side
from cutover.streams.logical import LogicalStream
from cutover.switch import finish, reverse
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.section import run
from tests.switch.conftest import order
from tests.switch.test_late_drops import require_a_way_back
from tests.waiting import until


async def leftover(env: SwitchEnvironment, side: Side) -> LogicalStream:
    """A slot without a subscription, as a start leaves it that was killed."""
    stream = env.stream("reverse" if side == "service" else "forward")
    assert isinstance(stream, LogicalStream)
    async with env.pair.at(side).session() as source:
        await replication.create_slot(source, stream.subscription)
    return stream


class Sleeper:
    """Stops the first call of a function of `replication` for the stream's slot: before it begins, or at its end."""

    def __init__(self, patch: pytest.MonkeyPatch, function: str, *, at_its_end: bool) -> None:
        self.asleep, self.awake = asyncio.Event(), asyncio.Event()
        original: Callable[[asyncpg.Connection, str], Awaitable[object]] = getattr(replication, function)

        async def sleep_once(connection: asyncpg.Connection, name: str) -> object:
            mine = name.endswith("_sub") and not self.asleep.is_set()
            if mine and not at_its_end:
                await self._sleep()
            found = await original(connection, name)
            if mine and at_its_end:
                await self._sleep()
            return found

        patch.setattr(replication, function, sleep_once)

    async def _sleep(self) -> None:
        self.asleep.set()
        await self.awake.wait()


async def test_a_leftover_slot_is_cleared_away_before_the_way_back_is_made(env: SwitchEnvironment) -> None:
    stream = await leftover(env, "service")
    assert not await stream.exists()
    await reverse.make_ready(env, "service")
    assert (await run(env, order(env, "service"), lambda _: None)).result == "done"
    await require_a_way_back(env)


@pytest.mark.parametrize(
    ("function", "at_its_end"), [("has_slot", True), ("drop_slot", False)], ids=["before the token", "under the token"]
)
async def test_a_making_ready_that_slept_before_it_dropped_a_leftover_leaves_the_stream_in_use_alone(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, function: str, at_its_end: bool
) -> None:
    stream = await leftover(env, "service")
    sleeper = Sleeper(monkeypatch, function, at_its_end=at_its_end)
    first = asyncio.create_task(reverse.make_ready(env, "service"))
    await asyncio.wait_for(sleeper.asleep.wait(), 30)
    await reverse.make_ready(env, "service")
    assert (await run(env, order(env, "service"), lambda _: None)).result == "done"
    await finish.finish(env, order(env, "service"))

    async def idle() -> bool:
        """Between two connections of its reader nobody holds the slot, and anybody may drop it."""
        async with env.pair.target.session() as connection:
            return not (await replication.slot_health(connection, stream.subscription)).active

    await stream.stop()
    await until(idle, "the walsender has ended")
    async with env.pair.target.session() as connection:
        await connection.execute("INSERT INTO trades (price, note) VALUES (1, 'not to be missed')")
        sleeper.awake.set()
        with pytest.raises((NotYet, Refused, Unreachable)):
            await first
        assert await replication.has_slot(connection, stream.subscription)
    await stream.start(copy=False)
    await require_a_way_back(env)
    async with env.pair.monolith.session() as connection:
        assert await connection.fetchval("SELECT count(*) FROM trades WHERE note = 'not to be missed'") == 1


async def test_of_two_makings_ready_at_once_the_later_one_drops_nothing(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await leftover(env, "service")
    sleeper = Sleeper(monkeypatch, "has_slot", at_its_end=True)
    first = asyncio.create_task(reverse.make_ready(env, "service"))
    await asyncio.wait_for(sleeper.asleep.wait(), 30)
    await reverse.make_ready(env, "service")
    drops: list[str] = []
    original = replication.drop_slot

    async def noted(connection: asyncpg.Connection, name: str) -> None:
        drops.append(name)
        await original(connection, name)

    monkeypatch.setattr(replication, "drop_slot", noted)
    sleeper.awake.set()
    await first
    assert drops == []
    assert (await stream.health()).ok
    await stream.await_marker(await stream.put_marker(), 10)
