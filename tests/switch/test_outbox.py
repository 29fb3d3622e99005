"""The switch and the way back on `stream: outbox`, under writers that follow the route, with relays that just run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import pytest

from cutover.control.database import Control
from cutover.errors import GateClosed
from cutover.postgres import fence
from cutover.postgres.databases import Database, Direction, Pair, Side
from cutover.streams.outbox import Backfill, Relay
from cutover.switch import finish, reverse, section
from tests.switch.conftest import OUTBOX_PLAN, TABLES, drop_streams, installed, order, verify
from tests.waiting import until


@asynccontextmanager
async def relays(pair: Pair) -> AsyncIterator[None]:
    """One of each direction; a direction that is not started has nothing for it to do."""
    running = [asyncio.create_task(Relay(pair, direction).run()) for direction in ("forward", "reverse")]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        for task in running:
            with suppress(asyncio.CancelledError):
                await task


@pytest.mark.slow
async def test_a_switch_and_a_rollback_on_the_outbox_lose_nothing(
    monolith_db: Database, service_db: Database, control: Control
) -> None:
    env = await installed(monolith_db, service_db, control, OUTBOX_PLAN)
    pair = env.pair
    async with pair.target.session() as sink:
        await fence.make_always(sink, TABLES)
    async with pair.monolith.session() as source:
        await source.execute("INSERT INTO trades (price, note) SELECT i, 'row ' || i FROM generate_series(1, 200) i")
    written: list[str] = []
    ended = asyncio.Event()

    async def write(name: int) -> None:
        """To the side that takes it; what was acknowledged is noted."""
        async with AsyncExitStack() as stack:
            sides = [await stack.enter_async_context(database.session()) for database in (monolith_db, service_db)]
            number = 0
            while not ended.is_set():
                note = f"{name}/{number}"
                for connection in sides:
                    with suppress(asyncpg.PostgresError):
                        await connection.execute("INSERT INTO trades (price, note) VALUES (1, $1)", note)
                        written.append(note)
                        break
                number += 1
                await asyncio.sleep(0.005)

    forward = env.stream("forward")
    await forward.start(copy=True)
    await env.changed("forward").prepare()
    try:
        async with relays(pair):
            writers = [asyncio.create_task(write(name)) for name in range(3)]
            await Backfill(pair, "forward").run()
            await until(forward.ready, "the forward stream is ready")
            await verify(env)
            ways: list[tuple[Side, Direction]] = [
                ("service", "reverse"),
                ("monolith", "forward"),
                ("service", "reverse"),
            ]
            for to_side, direction in ways:
                await reverse.make_ready(env, to_side)
                request = order(env, to_side)
                outcome = await section.run(env, request, lambda _: None)
                assert outcome.result == "done", outcome.reason
                await finish.finish(env, request)
                enough = len(written) + 5

                async def more(enough: int = enough) -> bool:
                    return len(written) > enough

                await until(more, "writes go on")
                assert (await env.stream(direction).health()).ok
            ended.set()
            await asyncio.gather(*writers)
            stream = env.stream("reverse")
            await stream.await_marker(await stream.put_marker(), 20)
        async with monolith_db.session() as left, service_db.session() as right:
            found = [await c.fetch("SELECT id, note FROM trades ORDER BY id") for c in (left, right)]
            assert found[0] == found[1]
            assert {row["note"] for row in found[0]} == {*written, *(f"row {n}" for n in range(1, 201))}
    finally:
        ended.set()
        await drop_streams(env)


async def test_a_way_back_whose_relays_are_being_replaced_is_waited_for_and_a_lost_one_is_not(
    monolith_db: Database, service_db: Database, control: Control
) -> None:
    env = await installed(monolith_db, service_db, control, OUTBOX_PLAN)
    async with env.pair.target.session() as sink:
        await fence.make_always(sink, TABLES)
    forward, back = env.stream("forward"), env.stream("reverse")
    await forward.start(copy=True)
    await env.changed("forward").prepare()
    carrying = asyncio.create_task(Relay(env.pair, "forward").run())
    try:
        async with relays(env.pair):
            await Backfill(env.pair, "forward").run()
            await until(forward.ready, "the forward stream is ready")
            await verify(env)
            await reverse.make_ready(env, "service")

        async def alone() -> bool:
            return (await back.health()).unattended and (await forward.health()).ok

        await until(alone, "one relay carries the way forward, and none the way back")
        outcome = await section.run(env, order(env, "service"), lambda _: None)
        assert outcome.result == "undone"  # and tried again
        assert "the way back is not ready: no relay looks after" in (outcome.reason or "")
        await back.drop()
        with pytest.raises(GateClosed, match="the way back is not ready"):
            await section.run(env, order(env, "service"), lambda _: None)
    finally:
        carrying.cancel()
        with suppress(asyncio.CancelledError):
            await carrying
        await drop_streams(env)
