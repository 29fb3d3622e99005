"""Blocks of `acquire`, whose statements are committed one by one, when a switch comes between them."""

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from cutover.dualwrite import Fenced, PartlyDone, ServicePool
from tests.dualwrite.conftest import SERVICE, World, in_transaction
from tests.dualwrite.waiting import until
from tests.relay import Relay

Work = Callable[[asyncpg.pool.PoolConnectionProxy], Awaitable[object]]


async def by_itself(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    await connection.execute("INSERT INTO trades (id) VALUES (1)")


async def returning(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    assert await connection.fetchval("INSERT INTO trades (id) VALUES ($1) RETURNING id", 1) == 1


async def by_executemany(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    await connection.executemany("INSERT INTO trades (id) VALUES ($1)", [(1,)])


async def by_copy(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    await connection.copy_records_to_table("trades", records=[(1,)], columns=["id"])


async def prepared(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    await (await connection.prepare("INSERT INTO trades (id) VALUES ($1)")).fetch(1)


async def in_one(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    async with connection.transaction():
        await in_transaction(connection, 1)


async def not_at_all(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    assert await connection.fetchval("SELECT count(*) FROM trades") == 0


async def rolled_back(connection: asyncpg.pool.PoolConnectionProxy) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await in_transaction(connection, 1)
    await transaction.rollback()


async def fenced_after(world: World, trading: ServicePool, work: Work) -> None:
    """A block that does the work, and is refused by the fence then."""
    async with trading.acquire() as connection:
        await work(connection)
        await world.switch_databases("service", 1)
        await connection.execute("INSERT INTO trades (id) VALUES (2)")


@pytest.mark.parametrize("work", [by_itself, returning, by_executemany, by_copy, prepared, in_one])
async def test_a_block_that_meets_the_fence_says_that_its_earlier_statements_stand(
    world: World, trading: ServicePool, work: Work
) -> None:
    with pytest.raises(PartlyDone, match="earlier statements committed stands") as caught:
        await fenced_after(world, trading, work)
    assert not caught.value.retryable
    assert await world.ids("monolith") == [1]
    assert trading.gate.counters.fenced == 1


@pytest.mark.parametrize("work", [not_at_all, rolled_back])
async def test_a_block_of_which_nothing_stands_may_be_run_again(world: World, trading: ServicePool, work: Work) -> None:
    with pytest.raises(Fenced, match="nothing was done"):
        await fenced_after(world, trading, work)
    assert await world.ids("monolith") == []


async def test_what_an_earlier_block_did_does_not_count(world: World, trading: ServicePool) -> None:
    async with trading.acquire() as connection:
        await by_copy(connection)
    with pytest.raises(Fenced, match="nothing was done"):
        await fenced_after(world, trading, lambda c: c.fetchval("SELECT 1"))


@pytest.mark.parametrize("moves", [True, False])
async def test_a_block_that_outlives_its_lease_is_told_if_its_side_was_left(world: World, moves: bool) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)

        async def block() -> int:
            async with trading.acquire() as connection:
                await relay.cut()
                await until(lambda: not trading.gate.lease.valid)
                if moves:
                    await world.switch_databases("service", 1)
                    await world.on("service", "INSERT INTO trades (id) VALUES (1)")
                count: int = await connection.fetchval("SELECT count(*) FROM trades")
                return count

        if moves:
            with pytest.raises(PartlyDone, match="may be out of date"):
                await block()
        else:
            assert await block() == 0
