"""Switches under traffic in which something happens at one certain moment; what the naive variants do not survive.

Each of them passes as the product is. `make chaos-mutants` takes a remedy out and requires one of them to fail.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from chaos import scene
from chaos.cells import Level
from chaos.client import Client
from chaos.hand import KEYS
from chaos.injection import Fault, Holds
from chaos.oplog import Log
from chaos.scene import Scene, hold
from chaos.tables import at_side
from chaos.turns import HEARTBEAT_TIMEOUT
from cutover.dualwrite.routed_pool import RoutedPool
from cutover.postgres.databases import SIDES, Database
from tests.relay import Relay

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
        await holds.reached("switch.fence.after")
        for side in SIDES:
            if await played.hand.add(side) == "ok":
                played.wrong(f"the {side} took a write while both sides had to refuse")
        holds.go("switch.fence.after")
        await holds.reached("switch.done.before")
        assert await played.hand.add("service") == "ok"
        holds.go("switch.done.before")

    await played.switch("service", hold("switch.fence.after", "switch.done.before"), beside)
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

    await played.switch("service", hold("switch.fence.before", "switch.compare.before"), beside, order=False)
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
    if await played.hand.add("monolith") != "ok":
        played.wrong("the old primary takes no writes after an undo")
    await played.switch("service")
    await judged(played)


async def test_an_attempt_stopped_past_its_heartbeat_does_nothing_when_it_goes_on(play: Play) -> None:
    played = await play("eventual")
    sleepers: list[Holds] = []

    async def beside(holds: Holds) -> None:
        sleepers.append(holds)

    asleep = hold("switch.fence.before", hard=True)
    await played.switch("service", asleep, beside, expected="undone", silence=2 * HEARTBEAT_TIMEOUT, order=False)
    sleepers[0].go("switch.fence.before")
    await played.driver.awake()
    await played.in_order("monolith")
    await played.hand.add("monolith")
    await played.switch("service")
    await judged(played)


@asynccontextmanager
async def an_instance(played: Scene, control: Database) -> AsyncIterator[Client]:
    """A client over the library in this very process, which the test tells when to read."""
    place = played.place
    log = Log(played.folder / "instance.jsonl", run="i")
    pool = await RoutedPool.open(
        migration=place.migration,
        services=[place.service],
        control=control,
        database=lambda service, side: at_side(place.database(service, side), side),
        appliers=place.database,
        application="chaos-instance",
    )
    async with pool:
        yield Client(pool, log, place.service)
    await log.close()


async def test_a_read_in_the_pause_waits_for_its_end(play: Play, control_db: Database) -> None:
    """The new side takes a write before the flags are flipped, and it is not back at the old side yet."""
    played = await play("logical")
    back = played.env.stream("reverse")
    await played.hand.put("monolith", 1, 1)
    async with an_instance(played, control_db) as instance:
        assert await instance.look([KEYS + 1])

        async def beside(holds: Holds) -> None:
            await holds.reached("switch.commit.after")
            await back.stop()
            assert await played.hand.put("service", 1, 2) == "ok"
            looking = asyncio.create_task(instance.look([KEYS + 1]))
            await asyncio.wait({looking}, timeout=0.5)
            holds.go("switch.commit.after")
            await looking
            await back.start(copy=False)

        await played.switch("service", hold("switch.commit.after"), beside)
    await judged(played)


async def test_an_instance_that_was_cut_off_reads_nothing_stale_after_a_switch(
    play: Play, control_db: Database
) -> None:
    """The switch did not wait for it, as its lease had run out; so it must not believe its own route any more."""
    played = await play("logical")
    back = played.env.stream("reverse")
    await played.hand.put("monolith", 1, 1)
    async with Relay(control_db) as relay, an_instance(played, relay.database) as instance:
        assert await instance.look([KEYS + 1])
        await relay.cut()
        await played.switch("service")
        await back.stop()
        assert await played.hand.put("service", 1, 2) == "ok"
        assert await instance.look([KEYS + 1])
        await back.start(copy=False)
        await relay.mend()
    await judged(played)
