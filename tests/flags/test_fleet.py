"""The fleet: who runs which version where, and who is behind the route."""

from datetime import timedelta

import pytest

from cutover.control.database import Control
from cutover.flags import instances, store
from cutover.flags.fleet import Member, members
from cutover.flags.instances import Instance

M, S = "ai-trader", "trading_engine"
A = Instance("a", "host-a", 1, "orders-api", "2.3.1")
B = Instance("b", "host-b", 2, "cron")


async def by_id(control: Control, service: str | None = None) -> dict[str, Member]:
    return {member.instance.id: member for member in await members(control, M, service)}


async def test_an_instance_is_shown_with_version_host_epoch_lease_and_when_it_was_seen(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=4, actor="switch", pause_id=None)
    route = await store.get(control, M, S)
    await instances.renew(control, A, M, S, route.revision, "p1", epoch=4)
    await instances.renew(control, B, M, "analytics", 0)
    fleet = await by_id(control)
    one = fleet["a"]
    assert (one.instance, one.service, one.pause_acked) == (A, S, "p1")
    assert (one.epoch, one.revision, one.route_epoch, one.route_revision) == (4, route.revision, 4, route.revision)
    assert one.live
    assert 0 <= one.seen_ago < 60
    assert not one.behind
    assert not fleet["b"].behind, "a service without flags has no route to be behind"
    assert set(await by_id(control, S)) == {"a"}


@pytest.mark.parametrize("seconds", [30.0, 0.0])
async def test_an_instance_that_has_not_acknowledged_is_behind_whether_it_lives_or_not(
    control: Control, seconds: float
) -> None:
    route = await store.ensure(control, M, S)
    await instances.renew(control, A, M, S, route.revision, lease=timedelta(seconds=seconds))
    assert not (await by_id(control))["a"].behind
    await store.set_percentage(control, M, S, 30, actor="alice")
    one = (await by_id(control))["a"]
    assert (one.behind, one.live) == (True, seconds > 0)
    await instances.renew(control, A, M, S, route.revision + 1)
    one = (await by_id(control))["a"]
    assert (one.behind, one.live) == (False, True)


async def test_a_renewal_moves_when_it_was_seen_and_keeps_when_it_started(control: Control) -> None:
    await instances.renew(control, A, M, S, 0)
    await control.execute("UPDATE control.instance SET seen_at = seen_at - interval '1 h'")
    before = (await by_id(control))["a"]
    assert before.seen_ago > 3599
    await instances.renew(control, A, M, S, 0)
    after = (await by_id(control))["a"]
    assert after.seen_ago < 60
    assert after.started_at == before.started_at
