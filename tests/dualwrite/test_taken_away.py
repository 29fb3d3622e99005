"""A pool whose stream is dropped, as cleanup does, before the pool has looked again: its writes go on."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
import pytest

from cutover.dualwrite import SecondaryAway, ServicePool
from cutover.postgres import epoch, fence, own_schema
from cutover.postgres.databases import DIRECTIONS, SIDES, Side
from cutover.postgres.outbox_lease import stream_row
from cutover.streams.outbox import OutboxStream
from tests.dualwrite.both_sides import SERVICE, Both, add

Drop = Callable[[Both], Awaitable[None]]

INSERT = "INSERT INTO trades (id) VALUES ($1)"


async def drop_stream(both: Both) -> None:
    for direction in DIRECTIONS:
        await OutboxStream(both.pair, direction).drop()


async def drop_everything(both: Both) -> None:
    """The schema goes too, with its last service."""
    await drop_stream(both)
    for side in SIDES:
        async with both.databases[side].session("test-admin") as connection:
            await fence.remove(connection, both.pair.tables)
            await epoch.remove(connection, SERVICE)
            assert await own_schema.drop_if_unused(connection) == ""


def looks_no_more(trading: ServicePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on thinking that all is there."""

    async def look() -> None:
        pass

    monkeypatch.setattr(trading._sides, "look", look)
    assert trading._sides is not None
    assert "monolith" in trading._sides.noted


@pytest.mark.parametrize("level", ["strong", "eventual"])
@pytest.mark.parametrize("drop", [drop_stream, drop_everything])
async def test_what_is_written_after_the_stream_is_dropped_is_written_once(
    both: Both, drop: Drop, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_statement, by_transaction = await both.service(level), await both.service(level)
    await by_statement.execute(INSERT, 1)
    await by_transaction.execute(INSERT, 2)
    for trading in (by_statement, by_transaction):
        looks_no_more(trading, monkeypatch)
    await drop(both)
    await by_statement.execute(INSERT, 3)
    await by_transaction.run_in_transaction(lambda c: add(c, 4))
    assert await both.ids("monolith") == [1, 2, 3, 4]
    for trading in (by_statement, by_transaction):
        assert trading.gate.counters.failed == trading.gate.counters.unknown == 0


@pytest.mark.parametrize("level", ["strong", "eventual"])
async def test_a_transaction_that_is_open_meanwhile_says_that_it_may_be_run_again(both: Both, level: str) -> None:
    trading = await both.service(level)

    async def outlives_the_stream() -> None:
        async with trading.transaction() as connection:
            assert await connection.fetchval("SELECT 1") == 1
            await drop_everything(both)
            await add(connection, 1)

    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    try:
        with pytest.raises(SecondaryAway, match="taken away"):
            await outlives_the_stream()
    finally:
        loop.set_exception_handler(None)
    assert complaints == []  # the driver's, where a connection comes back with its transaction open
    assert await both.ids("monolith") == []
    await trading.execute(INSERT, 2)
    assert await both.ids("monolith") == [2]


async def test_a_strong_write_whose_other_side_was_dropped_first_goes_on_alone(both: Both) -> None:
    trading = await both.service("strong")
    await trading.execute(INSERT, 1)
    async with both.databases["service"].session("test-admin") as connection:
        await connection.execute("DROP SCHEMA cutover CASCADE")
    await trading.execute(INSERT, 2)
    assert await both.ids("monolith") == [1, 2]
    assert await both.ids("service") == [1]


class DroppedAfterTheFirst:
    """A connection for which everything of ours is dropped once its first statement has been answered."""

    def __init__(self, connection: asyncpg.Connection, both: Both) -> None:
        self._connection = connection
        self._both: Both | None = both

    async def fetchval(self, *args: Any) -> Any:
        answer = await self._connection.fetchval(*args)
        both, self._both = self._both, None
        if both is not None:
            await drop_everything(both)
        return answer

    async def fetchrow(self, *args: Any) -> Any:
        return await self._connection.fetchrow(*args)


@pytest.mark.parametrize("read", [epoch.read, epoch.refused, partial(stream_row, direction="forward")])
async def test_what_is_dropped_while_somebody_looks_is_not_there(both: Both, read: Callable[..., Any]) -> None:
    side: Side = "service" if isinstance(read, partial) else "monolith"  # a stream's row is at its sink
    async with both.databases[side].session("test-admin") as connection:
        assert await read(connection, SERVICE) is not None
        assert await read(DroppedAfterTheFirst(connection, both), SERVICE) is None
        assert await read(connection, SERVICE) is None
