"""Switches under traffic in which something happens at one certain moment; what the naive variants do not survive.

Each of them passes as the product is. `make chaos-mutants` takes a remedy out and requires one of them to fail.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chaos import scene
from chaos.cells import Level
from chaos.injection import Fault, Holds
from chaos.scene import Scene, hold
from chaos.turns import HEARTBEAT_TIMEOUT
from cutover.postgres.databases import Database

Play = Callable[[Level], Awaitable[Scene]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Seconds for which a stream stands still. Whoever waits for a marker has got no further by then.
STALLED = 1.5


@pytest.fixture
async def play(
    monolith_db: Database, service_db: Database, control_db: Database, tmp_path: Path
) -> AsyncIterator[Play]:
    """Begins a scene of one level, which ends with the test."""
    async with AsyncExitStack() as stack:

        async def begin(level: Level) -> Scene:
            place = scene.place(level, control_db, monolith_db, service_db, tmp_path)
            env = await stack.enter_async_context(place.opened())
            return await stack.enter_async_context(Scene(level, place, tmp_path, env))

        yield begin


async def judged(played: Scene) -> None:
    """Nothing may have been wrong."""
    found = await played.verdict()
    assert not found, "; ".join(found)


@pytest.mark.parametrize("level", ["logical", "eventual"])
async def test_writes_at_the_new_side_come_back_and_the_old_side_takes_none(play: Play, level: Level) -> None:
    played = await play(level)

    async def beside(holds: Holds) -> None:
        await holds.reached("switch.done.before")
        assert await played.hand.add("service") == "ok"
        await played.hand.add("monolith")
        holds.go("switch.done.before")

    await played.switch("service", hold("switch.done.before"), beside)
    await played.hand.add("service")
    await played.hand.add("monolith")
    await judged(played)


@pytest.mark.parametrize("level", ["logical", "eventual"])
async def test_a_write_before_the_fence_is_at_the_new_side_however_slow_the_stream(play: Play, level: Level) -> None:
    """A transaction is open across the beginning of the fence, and what it wrote comes late to the other side."""
    played = await play(level)

    async def beside(holds: Holds) -> None:
        await holds.reached("switch.fence.before")

        async def go_on() -> None:
            await played.stall()
            holds.go("switch.fence.before")
            await asyncio.sleep(0.1)  # less than one try at the lock

        assert await played.hand.add("monolith", inside=go_on) == "ok"
        try:
            await holds.reached("switch.compare.before", STALLED)
        except TimeoutError:
            await played.flow()
        # else nobody has waited for the stream, and it stands still until the end of the switch
        holds.go("switch.compare.before")

    await played.switch("service", hold("switch.fence.before", "switch.compare.before"), beside)
    await played.flow()
    await judged(played)


async def test_ids_given_until_the_fence_are_not_given_again(play: Play) -> None:
    played = await play("eventual")

    async def beside(holds: Holds) -> None:
        await holds.reached("switch.fence.before")
        assert await played.hand.add("monolith", 4 * scene.MARGIN) == "ok"
        holds.go("switch.fence.before")

    await played.switch("service", hold("switch.fence.before"), beside)
    for _ in range(4 * scene.MARGIN):
        await played.hand.add("service")
    await judged(played)


async def test_ids_that_somebody_has_drawn_at_the_new_side_stay_his(play: Play) -> None:
    played = await play("eventual")
    drawn = await played.first_id("service", ahead=2000)
    await played.switch("service")
    assert await played.hand.add("service") == "ok"
    await played.hand.add("service", id=min(drawn, played.hand.last_id))
    await judged(played)


async def test_an_undo_that_is_killed_is_done_by_the_next_attempt(play: Play) -> None:
    played = await play("eventual")
    sequence = (Fault("switch.fence.after", "error"), Fault("undo.decide.after", "kill"))
    await played.switch("service", sequence, expected="undone")
    assert await played.hand.add("monolith") == "ok"
    await played.switch("service")
    await judged(played)


async def test_an_attempt_stopped_past_its_heartbeat_does_nothing_when_it_goes_on(play: Play) -> None:
    played = await play("eventual")
    sleepers: list[Holds] = []

    async def beside(holds: Holds) -> None:
        sleepers.append(holds)

    asleep = hold("switch.fence.before", hard=True)
    await played.switch("service", asleep, beside, expected="undone", silence=2 * HEARTBEAT_TIMEOUT)
    sleepers[0].go("switch.fence.before")
    await played.driver.awake()
    await played.in_order("monolith")
    await played.hand.add("monolith")
    await played.switch("service")
    await judged(played)
