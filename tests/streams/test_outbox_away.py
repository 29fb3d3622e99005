"""A relay whose database says nothing, or cannot be reached: it goes on elsewhere, and does not wait for ever."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from cutover.errors import Unreachable
from cutover.postgres import outbox_lease
from cutover.streams.outbox import Relay, relay
from tests.relay import Relay as Network
from tests.streams.outbox_world import World
from tests.waiting import until


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """A server process that answers nothing, and whose connection stays open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("session", ["cutover-relay0/{}", "cutover-relay/{}/forward"])
async def test_a_session_that_gets_no_answer_is_broken_off_and_another_one_goes_on(
    flowing: World, monkeypatch: pytest.MonkeyPatch, session: str
) -> None:
    monkeypatch.setattr(relay, "ROUND_SECONDS", 1.0)
    find = "SELECT min(pid) FROM pg_stat_activity WHERE application_name = $1"
    async with flowing.relay(lease_seconds=1.0):
        await flowing.drained()
        pid = await flowing.service.fetchval(find, session.format(flowing.pair.service))
        async with stopped(pid):
            # the lease of its shards runs out, where it is the session that keeps them
            await until(lambda: no_lease(flowing, session), "the leases that it kept have run out")
            await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
            await flowing.drained()
    await flowing.require_equal()


async def no_lease(world: World, session: str) -> bool:
    relays = await outbox_lease.relays(world.service, world.pair.service, "forward")
    return not session.endswith("forward") or relays.shards == 0


@pytest.mark.parametrize("away", ["monolith", "service"])
async def test_a_relay_that_does_not_reach_a_database_gives_up_and_its_leases_back(flowing: World, away: str) -> None:
    """Another worker may reach it."""
    async with Network(flowing.pair.monolith if away == "monolith" else flowing.pair.target) as network:
        through = {"monolith": replace(flowing.pair, monolith=network.database)}
        through["service"] = replace(flowing.pair, target=network.database)
        alone = Relay(through[away], "forward", unreachable_after=0.5)
        running = asyncio.create_task(alone.run())
        await flowing.drained()
        await network.cut()
        async with asyncio.timeout(30):
            with pytest.raises(Unreachable, match="reach"):
                await running
    if away == "monolith":
        relays = await outbox_lease.relays(flowing.service, flowing.pair.service, "forward")
        assert relays.shards == 0


async def test_a_relay_that_waits_for_a_stream_to_be_started_does_not_give_up(world: World) -> None:
    alone = Relay(world.pair, "forward", unreachable_after=0.2)
    running = asyncio.create_task(alone.run())
    try:
        done, _ = await asyncio.wait([running], timeout=1.0)
        assert not done
        await world.stream().start(copy=False)
        await world.drained()
    finally:
        running.cancel()
        await asyncio.wait([running])
