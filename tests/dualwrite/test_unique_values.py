"""Level strong where a unique value passes from one row to another: at the other side it may not be free yet."""

import asyncio

import pytest
import pytest_asyncio

from cutover.dualwrite import SecondaryAway, SecondaryRefused, ServicePool
from cutover.postgres.databases import SIDES
from tests.dualwrite.both_sides import Both, add


@pytest_asyncio.fixture
async def trading(both: Both) -> ServicePool:
    return await both.service()


async def test_a_unique_value_that_is_still_on_its_way_is_waited_for(both: Both, trading: ServicePool) -> None:
    await trading.execute("INSERT INTO trades (id, name) VALUES (1, 'x')")
    # an eventual change, which no relay has carried over yet
    await trading.execute("UPDATE trades SET name = 'y' WHERE id = 1", level="eventual")
    with pytest.raises(SecondaryAway, match="unique value"):
        await trading.run_in_transaction(lambda c: add(c, 2, "x"), attempts=1)
    assert await both.ids("monolith") == [1]
    writing = asyncio.create_task(trading.run_in_transaction(lambda c: add(c, 2, "x")))
    await both.drained()
    await writing
    await both.require_equal()


async def test_a_value_of_an_index_that_came_in_the_middle_is_waited_for_as_well(
    both: Both, trading: ServicePool
) -> None:
    await trading.execute("INSERT INTO trades (id, note) VALUES (1, 'x')")
    for side in SIDES:
        await both.on(side, "CREATE UNIQUE INDEX ON trades (note)")
    await trading.execute("UPDATE trades SET note = 'y' WHERE id = 1", level="eventual")
    for told in ("unique indexes have changed", "unique value is still in use"):
        with pytest.raises(SecondaryAway, match=told):
            await trading.run_in_transaction(
                lambda c: c.execute("INSERT INTO trades (id, note) VALUES (2, 'x')"), attempts=1
            )
    assert await both.ids("monolith") == [1]


async def test_unique_values_change_places_in_one_transaction(both: Both, trading: ServicePool) -> None:
    await trading.execute("INSERT INTO trades (id, name) VALUES (1, 'x'), (2, 'y')")
    async with trading.transaction() as connection:
        await connection.execute("UPDATE trades SET name = NULL WHERE id = 1")
        await connection.execute("UPDATE trades SET name = 'x' WHERE id = 2")
        await connection.execute("UPDATE trades SET name = 'y' WHERE id = 1")
    await both.require_equal()


async def test_a_row_that_only_the_other_side_has_and_that_is_in_the_way_is_a_refusal(
    both: Both, trading: ServicePool
) -> None:
    await both.put_behind_the_fence("INSERT INTO trades (id, name) VALUES (900, 'taken')")
    with pytest.raises(SecondaryRefused, match="trades_name_key"):
        await trading.execute("INSERT INTO trades (id, name) VALUES (1, 'taken')")
    assert await both.ids("monolith") == []
