"""A relay that slept between the sink's refusal and the quarantine: what was carried meanwhile is not held."""

import pytest

from cutover import faults
from tests.streams.outbox_world import Hands, World


async def refused(flowing: World, hands: Hands) -> None:
    """One key that the sink refuses, carried to where it would be held."""
    await flowing.monolith.execute("INSERT INTO items (id, note) VALUES (1, 'poison'), (2, 'good')")
    await hands.relay.step(hands.applier, hands.relay.tokens)


@pytest.fixture
async def sober(flowing: World) -> World:
    await flowing.service.execute("ALTER TABLE items ADD CONSTRAINT sober CHECK (note <> 'poison')")
    return flowing


async def test_a_key_that_another_relay_has_carried_meanwhile_is_not_held(sober: World) -> None:
    async with sober.hands() as hands, sober.hands_again(hands) as another:

        async def carried(at: str) -> None:
            if at == "relay.hold.before":
                await sober.service.execute("ALTER TABLE items DROP CONSTRAINT sober")
                await another.drain()

        with faults.armed(carried):
            await refused(sober, hands)
        assert await sober.stream().held() == []
        await sober.monolith.execute("UPDATE items SET note = 'later' WHERE id = 1")
        await hands.drain()
    await sober.require_equal()
    async with sober.relay():
        await sober.drained()


async def test_of_a_stream_that_was_dropped_and_made_anew_meanwhile_nothing_is_held(sober: World) -> None:
    stream = sober.stream()

    async def anew(at: str) -> None:
        if at == "relay.hold.before":
            await stream.drop()
            await stream.start(copy=False)

    async with sober.hands() as hands:
        with faults.armed(anew):
            await refused(sober, hands)
    assert await stream.held() == []
    async with sober.relay():
        await sober.drained()


async def test_a_key_that_still_waits_is_held_once_whatever_comes_behind_it(sober: World) -> None:
    async with sober.hands() as hands:

        async def changed(at: str) -> None:
            if at == "relay.hold.before":
                await sober.monolith.execute("UPDATE items SET name = 'behind' WHERE id = 1")

        with faults.armed(changed):
            await refused(sober, hands)
        await hands.drain()
        assert [(one.key, one.waiting) for one in await sober.stream().held()] == [(("1",), 2)]
