"""The announced pause of a switch: held, acknowledged, released; and the fence behind it."""

import asyncio
import time
from datetime import timedelta

import pytest

from cutover.dualwrite import Fenced, HeldTooLong, ServicePool
from cutover.flags import instances, store
from tests.dualwrite.conftest import MIGRATION, SERVICE, World, in_transaction, insert
from tests.dualwrite.waiting import until


async def acknowledged(world: World, pause: str = "p1") -> bool:
    return not await instances.unacknowledged(world.control, MIGRATION, SERVICE, pause_id=pause)


async def test_held_requests_go_to_the_new_side_when_the_pause_ends_there(world: World, trading: ServicePool) -> None:
    await insert(trading, 0)
    await world.announce()
    await until(lambda: acknowledged(world))
    waiting = [asyncio.create_task(insert(trading, number)) for number in range(1, 21)]
    read = asyncio.create_task(trading.fetchval("SELECT count(*) FROM trades"))
    stale = await trading.fetchval("SELECT count(*) FROM trades", read="stale_ok")
    assert stale == 1, "a stale_ok read goes on during the pause"
    await until(lambda: trading.gate.counters.held == 21)
    await world.switch_databases("service", 1)
    assert not any(task.done() for task in [*waiting, read])

    await world.flip("service", 1)
    await asyncio.gather(*waiting)
    await read
    assert await world.ids("service") == list(range(1, 21))
    assert await world.ids("monolith") == [0]
    counters = trading.gate.counters
    assert counters.fenced == counters.failed == counters.held_too_long == 0
    assert counters.longest_wait_ms > 0
    assert counters.longest_pause_ms > 0


async def test_held_requests_go_on_at_the_old_side_when_the_pause_is_lifted(world: World, trading: ServicePool) -> None:
    await world.announce()
    await until(lambda: trading.gate.holding)
    waiting = asyncio.create_task(insert(trading, 1))
    await until(lambda: trading.gate.counters.held == 1)
    await store.lift_pause(world.control, MIGRATION, SERVICE, "p1")
    await waiting
    assert await world.ids("monolith") == [1]


async def test_the_pause_is_acknowledged_only_after_the_running_transaction_has_ended(
    world: World, trading: ServicePool
) -> None:
    inside, finish = asyncio.Event(), asyncio.Event()

    async def transact() -> None:
        async with trading.transaction() as connection:
            await in_transaction(connection, 1)
            inside.set()
            await finish.wait()
            # what the transaction itself still starts belongs to it, or it would wait for its own end
            await insert(trading, 2)

    running = asyncio.create_task(transact())
    await inside.wait()
    await world.announce()
    await until(lambda: trading.gate.holding)
    route = await store.get(world.control, MIGRATION, SERVICE)
    # the revision is acknowledged, so this instance has had the chance to acknowledge the pause as well
    await instances.await_acknowledged(
        world.control, MIGRATION, SERVICE, revision=route.revision, timeout=timedelta(seconds=5)
    )
    assert not await acknowledged(world)
    finish.set()
    await running
    acks = await instances.await_acknowledged(
        world.control, MIGRATION, SERVICE, pause_id="p1", timeout=timedelta(seconds=5)
    )
    assert (acks.acked, acks.lapsed) == (1, 0)
    assert await world.ids("monolith") == [1, 2]


async def test_a_request_held_beyond_the_limit_gets_a_retryable_error(world: World, trading: ServicePool) -> None:
    await world.announce(limit=0.3)
    await until(lambda: trading.gate.holding)
    began = time.monotonic()
    with pytest.raises(HeldTooLong, match=r"held for 0\.3 s") as caught:
        await insert(trading, 1)
    assert 0.25 < time.monotonic() - began < 2
    assert caught.value.retryable
    with pytest.raises(HeldTooLong):
        async with trading.transaction():
            pass
    assert await world.ids("monolith") == []


async def test_run_in_transaction_waits_again_after_it_was_held_too_long(world: World, trading: ServicePool) -> None:
    await world.announce(limit=0.2)
    await until(lambda: trading.gate.holding)
    running = asyncio.create_task(trading.run_in_transaction(lambda c: in_transaction(c, 1)))
    await until(lambda: trading.gate.counters.held_too_long >= 1)
    await store.lift_pause(world.control, MIGRATION, SERVICE, "p1")
    await running
    assert await world.ids("monolith") == [1]


async def test_more_than_the_queue_holds_are_refused_at_once(world: World) -> None:
    pool = await world.open(max_held=2)
    trading = pool.service(SERVICE)
    await world.announce()
    await until(lambda: trading.gate.holding)
    waiting = [asyncio.create_task(insert(trading, number)) for number in (1, 2)]
    await until(lambda: trading.gate.counters.held == 2)
    with pytest.raises(HeldTooLong, match="2 requests are held already"):
        await insert(trading, 3)
    await store.lift_pause(world.control, MIGRATION, SERVICE, "p1")
    await asyncio.gather(*waiting)
    assert pool.stats()[SERVICE].held == 2


async def test_a_statement_that_meets_the_fence_is_done_once_at_the_new_side(
    world: World, trading: ServicePool
) -> None:
    """A switch that did not wait for this instance, as after a lost lease."""
    await world.switch_databases("service", 1)
    waiting = asyncio.create_task(insert(trading, 1))
    await until(lambda: trading.gate.counters.fenced >= 1)
    await world.flip("service", 1, pause=None)
    await waiting
    assert await world.ids("service") == [1]
    assert await world.ids("monolith") == []
    assert trading.gate.counters.failed == 0


async def test_a_transaction_that_meets_the_fence_is_run_again_at_the_new_side(
    world: World, trading: ServicePool
) -> None:
    ran: list[int] = []

    async def work(connection: object) -> str:
        ran.append(1)
        if len(ran) == 1:
            await world.switch_databases("service", 1)
        await in_transaction(connection, 1)  # type: ignore[arg-type]
        await in_transaction(connection, 2)  # type: ignore[arg-type]
        return "done"

    running = asyncio.create_task(trading.run_in_transaction(work, table="trades"))
    await until(lambda: trading.gate.counters.fenced >= 1)
    await world.flip("service", 1, pause=None)
    assert await running == "done"
    assert await world.ids("service") == [1, 2]
    assert await world.ids("monolith") == []


async def test_without_another_side_the_fence_is_named_after_a_bounded_time(world: World) -> None:
    trading = (await world.open(patience=0.3)).service(SERVICE)
    await world.set_fence("monolith", closed=True, primary="service", at=1)
    with pytest.raises(Fenced, match="not the writable side"):
        await insert(trading, 1)
    with pytest.raises(Fenced, match="rolled back"):
        async with trading.transaction() as connection:
            await in_transaction(connection, 1)
    with pytest.raises(Fenced):
        await trading.run_in_transaction(lambda c: in_transaction(c, 1), attempts=2)


async def test_serialization_failures_are_run_again(world: World, trading: ServicePool) -> None:
    await insert(trading, 1)
    await world.on("monolith", "ALTER TABLE trades ADD COLUMN n int NOT NULL DEFAULT 0")

    async def count(connection: object) -> None:
        n = await connection.fetchval("SELECT n FROM trades WHERE id = 1")  # type: ignore[attr-defined]
        await connection.execute("UPDATE trades SET n = $1 WHERE id = 1", n + 1)  # type: ignore[attr-defined]

    await asyncio.gather(*(trading.run_in_transaction(count, isolation="serializable") for _ in range(5)))
    assert await world.on("monolith", "SELECT n FROM trades WHERE id = 1") == 5


async def test_there_and_back_again_under_load_loses_nothing(world: World, trading: ServicePool) -> None:
    done: list[int] = []
    stop = False

    async def write(worker: int) -> None:
        number = worker
        while not stop:
            if number % 3:
                await insert(trading, number)
            else:
                await trading.run_in_transaction(lambda c, n=number: in_transaction(c, n))  # type: ignore[misc]
            done.append(number)
            number += 8

    workers = [asyncio.create_task(write(worker)) for worker in range(8)]
    for at in range(1, 7):
        to, before = ("service" if at % 2 else "monolith"), len(done)
        await world.announce(f"p{at}")
        await instances.await_acknowledged(
            world.control, MIGRATION, SERVICE, pause_id=f"p{at}", timeout=timedelta(seconds=5)
        )
        await world.switch_databases(to, at)  # type: ignore[arg-type]
        await world.flip(to, at, pause=f"p{at}")  # type: ignore[arg-type]
        await until(lambda before=before: len(done) > before + 20)  # type: ignore[misc]
    stop = True
    await asyncio.gather(*workers)
    assert sorted([*await world.ids("monolith"), *await world.ids("service")]) == sorted(done)
    counters = trading.gate.counters
    assert (counters.failed, counters.fenced, counters.pauses) == (0, 0, 6)


async def test_a_pause_announced_between_reading_the_route_and_registering_is_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits yet for an instance that is about to register, so it has to look once more when it has."""
    renew = instances.renew

    async def announced_first(*arguments: object, **named: object) -> object:
        await world.announce()
        return await renew(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(instances, "renew", announced_first)
    trading = (await world.open()).service(SERVICE)
    assert trading.gate.lease.valid
    assert trading.gate.holding
