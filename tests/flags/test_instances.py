"""Instances: leases by the clock of whoever waits, and acknowledgements that arrive within milliseconds."""

import asyncio
from datetime import timedelta

import pytest

from cutover.control.database import Control
from cutover.errors import NotYet
from cutover.flags import instances, store
from cutover.flags.instances import Instance

M, S = "ai-trader", "trading_engine"
A, B = Instance("a", "host-a", 1, "traffic-1"), Instance("b", "host-b", 2, "traffic-2")
SECONDS = timedelta(seconds=1)


async def lapse(control: Control, instance: Instance) -> None:
    """As if the instance had not renewed for a while."""
    await control.execute(
        "UPDATE control.instance SET lease_until = clock_timestamp() - interval '1 ms' WHERE id = $1", instance.id
    )


async def set_clock(control: Control, ahead: timedelta) -> None:
    """As if the control database's clock had been set since all have renewed."""
    await control.execute(
        "UPDATE control.instance SET lease_until = lease_until - $1::interval, seen_at = seen_at - $1::interval", ahead
    )


async def test_a_renewal_returns_the_route_of_now(control: Control) -> None:
    assert await instances.renew(control, A, M, S, 0) is None
    route = await store.ensure(control, M, S)
    assert await instances.renew(control, A, M, S, route.revision) == route
    (only,) = await instances.live(control, M, S)
    assert (only.instance, only.revision_acked, only.pause_acked) == (A, route.revision, None)


async def test_an_instance_is_unacknowledged_until_it_names_the_revision_or_the_pause(control: Control) -> None:
    await instances.renew(control, A, M, S, 3)
    await instances.renew(control, B, M, S, 4, "p1")
    assert await instances.unacknowledged(control, M, S, revision=3) == []
    assert await instances.unacknowledged(control, M, S, revision=4) == ["a"]
    assert await instances.unacknowledged(control, M, S, pause_id="p1") == ["a"]
    assert await instances.unacknowledged(control, M, S, pause_id="p2") == ["a", "b"]
    assert await instances.unacknowledged(control, M, "analytics", revision=9) == []


async def test_an_instance_whose_lease_ran_out_is_not_waited_for(control: Control) -> None:
    await instances.renew(control, A, M, S, 1)
    await lapse(control, A)
    assert await instances.live(control, M, S) == []
    assert await instances.unacknowledged(control, M, S, pause_id="p1") == []


async def test_a_wait_counts_acknowledged_and_lapsed_instances(control: Control) -> None:
    await instances.renew(control, A, M, S, 1)
    await instances.renew(control, B, M, S, 1, lease=timedelta(milliseconds=150))
    waiting = asyncio.create_task(
        instances.await_acknowledged(control, M, S, pause_id="p1", timeout=timedelta(seconds=10))
    )
    await instances.renew(control, A, M, S, 2, "p1", lease=timedelta(seconds=30))
    assert await waiting == instances.Acks(acked=1, lapsed=1)


async def test_an_instance_is_waited_for_though_the_clock_was_set_ahead(control: Control) -> None:
    await instances.renew(control, A, M, S, 1)
    await set_clock(control, timedelta(hours=1))
    leases = instances.Leases()
    settling = asyncio.create_task(leases.settle(control, M, S))
    await asyncio.sleep(0.05)
    assert not settling.done()
    await instances.renew(control, A, M, S, 1)
    await settling
    await set_clock(control, timedelta(hours=1))
    for known in (leases, None):
        with pytest.raises(NotYet, match=r"'p1' within 0\.05 s: a"):
            await instances.await_acknowledged(
                control, M, S, pause_id="p1", timeout=timedelta(seconds=0.05), leases=known
            )


async def test_an_instance_that_is_gone_is_not_waited_for_though_the_clock_was_set_back(control: Control) -> None:
    await instances.renew(control, A, M, S, 1, lease=timedelta(milliseconds=150))
    await set_clock(control, timedelta(hours=-1))
    acks = await instances.await_acknowledged(control, M, S, pause_id="p1", timeout=timedelta(seconds=10))
    assert acks == instances.Acks(acked=0, lapsed=1)


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), timedelta(minutes=-5)])
async def test_who_is_known_to_be_gone_costs_a_pause_nothing(control: Control, ahead: timedelta) -> None:
    await instances.renew(control, A, M, S, 1, lease=timedelta(milliseconds=150))
    await set_clock(control, ahead)
    leases = instances.Leases()
    await leases.settle(control, M, S)
    none = timedelta(0)
    with pytest.raises(NotYet):
        await instances.await_acknowledged(control, M, S, pause_id="p1", timeout=none)
    acks = await instances.await_acknowledged(control, M, S, pause_id="p1", timeout=none, leases=leases)
    assert acks == instances.Acks(acked=0, lapsed=0)


async def test_a_notification_ends_a_wait_without_the_next_look(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "POLL", 60.0)
    await instances.renew(control, A, M, S, 1, lease=timedelta(seconds=60))
    async with asyncio.timeout(10):
        for n in range(10):
            waiting = asyncio.create_task(
                instances.await_acknowledged(control, M, S, pause_id=f"p{n}", timeout=timedelta(seconds=50))
            )
            await asyncio.sleep(0.02)
            assert not waiting.done()
            await instances.renew(control, A, M, S, 1, f"p{n}", lease=timedelta(seconds=60))
            assert await waiting == instances.Acks(acked=1, lapsed=0)


async def test_a_wait_that_ends_too_late_names_who_is_missing(control: Control) -> None:
    await instances.renew(control, A, M, S, 1, lease=timedelta(seconds=30))
    with pytest.raises(NotYet, match=r"have not acknowledged pause 'p1' within 0\.05 s: a"):
        await instances.await_acknowledged(control, M, S, pause_id="p1", timeout=timedelta(milliseconds=50))


async def test_a_wait_without_any_instance_ends_at_once(control: Control) -> None:
    acks = await instances.await_acknowledged(control, M, S, revision=7, timeout=SECONDS)
    assert acks == instances.Acks(acked=0, lapsed=0)


async def test_an_instance_that_left_is_not_waited_for(control: Control) -> None:
    await instances.renew(control, A, M, S, 1)
    await instances.renew(control, B, M, S, 1)
    await instances.leave(control, A, M, S)
    await instances.leave(control, A, M, S)
    assert await instances.unacknowledged(control, M, S, revision=2) == ["b"]


async def test_who_lapsed_long_ago_is_forgotten_unless_it_has_renewed_since(control: Control) -> None:
    for instance in (A, B):
        await instances.renew(control, instance, M, S, 1)
    assert await instances.long_lapsed(control, M) == []
    assert await instances.forget(control, M, []) == 0
    await set_clock(control, timedelta(hours=2))
    lapsed = await instances.long_lapsed(control, M)
    assert [one[:2] for one in lapsed] == [(S, "a"), (S, "b")]
    await instances.renew(control, A, M, S, 1)
    assert await instances.forget(control, M, lapsed) == 1
    assert [one.instance.id for one in await instances.live(control, M, S)] == ["a"]


async def test_either_a_revision_or_a_pause_has_to_be_named(control: Control) -> None:
    with pytest.raises(ValueError, match="either"):
        await instances.unacknowledged(control, M, S)
