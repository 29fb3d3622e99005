"""Connections that are opened ahead at the other side: nobody who wants one meanwhile waits for that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from cutover.dualwrite.connections import Pools
from cutover.postgres.databases import Side
from tests.dualwrite.black_hole import BlackHole
from tests.dualwrite.conftest import SERVICE, World
from tests.dualwrite.waiting import until


async def with_connections(world: World, *, max_size: int, monolith: int, service: int) -> Pools:
    """The pools of a process that has opened so many connections at each side; none is in use."""
    pools = (await world.open(max_size=max_size)).service(SERVICE)._around.pools
    for side, count in (("monolith", monolith), ("service", service)):
        lent = [await pools.acquire(world.databases[side], 5.0) for _ in range(count)]  # type: ignore[index]
        for connection in lent:
            await pools.release(world.databases[side], connection)  # type: ignore[index]
    return pools


def size(pools: Pools, world: World, side: Side) -> int:
    return pools._pools[world.databases[side]].get_size()


@asynccontextmanager
async def lent(pools: Pools, world: World, within: float) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
    connection = await pools.acquire(world.databases["service"], within)
    try:
        yield connection
    finally:
        await pools.release(world.databases["service"], connection)


async def test_as_many_are_opened_as_the_primary_has(world: World) -> None:
    pools = await with_connections(world, max_size=5, monolith=4, service=2)
    await pools.warm(world.databases["service"], world.databases["monolith"])
    assert size(pools, world, "service") == 4


async def test_a_busy_connection_is_not_waited_for(world: World) -> None:
    pools = await with_connections(world, max_size=3, monolith=3, service=3)
    async with lent(pools, world, 5.0), asyncio.timeout(4.0):
        warming = asyncio.create_task(pools.warm(world.databases["service"], world.databases["monolith"]))
        await asyncio.sleep(0)
        async with lent(pools, world, 1.0), lent(pools, world, 1.0):
            await warming


async def test_a_connection_that_does_not_open_keeps_nobody_from_those_that_are_open(world: World) -> None:
    relay = BlackHole(world.databases["service"])
    async with relay:
        world.databases["service"] = relay.database
        pools = await with_connections(world, max_size=4, monolith=4, service=2)
        relay.answering.clear()
        warming = asyncio.create_task(pools.warm(world.databases["service"], world.databases["monolith"]))
        await until(lambda: relay.accepted == 4 or warming.done())
        async with lent(pools, world, 1.0), lent(pools, world, 1.0) as connection:
            assert await connection.fetchval("SELECT 1") == 1
            assert not warming.done()
        relay.answering.set()
        await warming
        assert size(pools, world, "service") == 4
