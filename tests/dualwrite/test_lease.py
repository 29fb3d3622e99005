"""The lease by its own clock, and what an instance does with its writes once it has run out."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cutover.dualwrite import HeldTooLong, routed_pool
from cutover.dualwrite.gate import Gate, Lease
from cutover.dualwrite.routing import WRITE, before_preparation
from cutover.dualwrite.watcher import DRIFT, Watcher
from cutover.errors import NotYet
from cutover.flags import fleet, instances, store
from cutover.flags.instances import Instance
from tests.dualwrite.conftest import MIGRATION, SERVICE, World, in_transaction, insert
from tests.dualwrite.waiting import until
from tests.relay import Relay

LEASE = instances.LEASE.total_seconds()


class Clock:
    """A process's own clock: `speed` says how many of its seconds go by in one true second."""

    def __init__(self, speed: float = 1.0) -> None:
        self.now = 100.0
        self.speed = speed

    def __call__(self) -> float:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += seconds * self.speed


def gate_in_a_pause(clock: Clock, lease: Lease, limit: float) -> Gate:
    gate = Gate(before_preparation(MIGRATION, SERVICE), lease)
    paused = replace(
        gate.route, pause_id="p1", pause_started_at=datetime.now(UTC), pause_limit_ms=int(limit * 1000), revision=1
    )
    assert gate.apply(paused)
    return gate


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
async def test_a_lease_ends_for_its_holder_before_it_ends_for_control_whatever_its_clock_does(
    world: World, monkeypatch: pytest.MonkeyPatch, speed: float
) -> None:
    clock = Clock(speed)
    lease = Lease(clock)
    gate = Gate(before_preparation(MIGRATION, SERVICE), lease)
    watcher = Watcher(world.control, world.control_db, MIGRATION, Instance("i"), {SERVICE: gate}, lease)
    renew = instances.renew

    async def slow(*arguments: object, **named: object) -> object:
        answer = await renew(*arguments, **named)  # type: ignore[arg-type]
        clock.go(1.0)  # the answer is on its way for a second: control's lease has run all that time
        return answer

    monkeypatch.setattr(instances, "renew", slow)
    await watcher.beat()
    assert lease.until == pytest.approx(100.0 + LEASE - DRIFT)
    assert lease.valid
    clock.go(LEASE - 1.0)
    assert not lease.valid, "control waits for it until this moment and no longer"


def test_in_an_announced_pause_writes_are_refused_without_a_lease_until_the_limit_has_passed() -> None:
    clock = Clock()
    lease = Lease(clock)
    lease.extend(clock.now + LEASE - DRIFT)
    gate = gate_in_a_pause(clock, lease, limit=5.0)
    for seconds in (0.0, LEASE - DRIFT - 0.01, DRIFT, 2.9):
        clock.go(seconds)
        assert gate.holding, "it lets writes pass in a pause and without a lease, before the limit"
        assert gate.take(WRITE, "monolith", transaction=False, inside=None) is None
    assert not lease.valid
    clock.go(5.0)
    # whoever announced it may be gone: from here on the fences and the epoch rows decide
    assert not gate.holding
    assert gate.take(WRITE, "monolith", transaction=False, inside=None) is not None


def test_with_a_lease_a_pause_holds_until_it_is_lifted() -> None:
    clock = Clock()
    lease = Lease(clock)
    gate = gate_in_a_pause(clock, lease, limit=5.0)
    clock.go(60.0)
    lease.extend(clock.now + 1)
    assert gate.holding
    assert gate.apply(replace(gate.route, pause_id=None, pause_started_at=None, pause_limit_ms=None, revision=2))
    assert not gate.holding


async def test_an_instance_that_is_cut_off_in_a_pause_sends_no_write_by_itself(world: World) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        await world.announce(limit=60)
        await until(lambda: trading.gate.holding)
        await relay.cut()
        before = asyncio.create_task(insert(trading, 1))
        await until(lambda: not trading.gate.lease.valid)
        after = asyncio.create_task(insert(trading, 2))
        await until(lambda: trading.gate.counters.held == 2)
        assert await world.ids("monolith") == []
        assert not before.done()
        assert not after.done()
        for task in (before, after):
            task.cancel()
        await asyncio.gather(before, after, return_exceptions=True)


async def test_a_write_held_for_the_pauses_limit_gets_its_error_without_control_too(world: World) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database, patience=0.5)).service(SERVICE)
        await world.announce(limit=60)
        await until(lambda: trading.gate.holding)
        await relay.cut()
        await until(lambda: not trading.gate.lease.valid)
        # the route that it holds by, with a limit that this test can wait for
        trading.gate.route = replace(trading.gate.route, pause_limit_ms=200)
        trading.gate._pause_seen = trading.gate.lease.clock() + 60
        with pytest.raises(HeldTooLong):
            await insert(trading, 1)
        assert await world.ids("monolith") == []


async def test_an_instance_that_does_not_come_to_its_transactions_end_holds_the_switch_by_its_name(
    world: World,
) -> None:
    pool = await world.open()
    trading = pool.service(SERVICE)
    async with trading.transaction() as connection:
        await in_transaction(connection, 1)
        await world.announce()
        await until(lambda: trading.gate.holding)
        with pytest.raises(NotYet, match=f"have not acknowledged pause 'p1' within 0.2 s: {pool.instance}"):
            await instances.await_acknowledged(
                world.control, MIGRATION, SERVICE, pause_id="p1", timeout=timedelta(seconds=0.2)
            )
    acks = await instances.await_acknowledged(
        world.control, MIGRATION, SERVICE, pause_id="p1", timeout=timedelta(seconds=10)
    )
    assert acks == instances.Acks(acked=1, lapsed=0)


async def test_the_fleet_shows_version_and_epoch_of_an_open_pool_until_it_closes(world: World) -> None:
    pool = await world.open(version="2.3.1")

    async def one() -> fleet.Member:
        (member,) = await fleet.members(world.control, MIGRATION, SERVICE)
        return member

    first = await one()
    assert (first.instance.id, first.instance.application, first.instance.version) == (pool.instance, "test", "2.3.1")
    assert (first.epoch, first.live) == (0, True)
    await world.switch_databases("service", 1)
    await world.flip("service", 1, pause=None)

    async def followed() -> bool:
        member = await one()
        return member.epoch == 1 and not member.behind

    await until(followed)
    await pool.close()
    assert await fleet.members(world.control, MIGRATION) == []


async def test_instances_that_are_gone_for_long_are_forgotten_by_those_that_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed_pool, "PRUNE_EVERY", 0.01)
    await instances.renew(world.control, Instance("gone"), MIGRATION, SERVICE, 0)
    await world.control.execute("UPDATE control.instance SET lease_until = lease_until - interval '2 h'")
    pool = await world.open()

    async def forgotten() -> bool:
        return [one.instance.id for one in await fleet.members(world.control, MIGRATION)] == [pool.instance]

    await until(forgotten)
    assert await store.left(world.control, MIGRATION) == [SERVICE]
