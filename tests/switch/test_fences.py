"""The monitor of the fences: what came late gets its fence, what somebody has changed is told and closes gates."""

import asyncio
from typing import Any

import asyncpg
import pytest
from temporalio.exceptions import ApplicationError

from activities import models as m
from activities.monitoring import MonitoringActivities
from activities.replication import ReplicationActivities
from activities.switching import SwitchActivities
from cutover.control import switches
from cutover.doctor import examine
from cutover.monitor import fences
from cutover.postgres import epoch, fence
from cutover.postgres.databases import Side
from cutover.postgres.identifiers import TableName
from cutover.switch import finish, forward, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import Work, order

TRADES = TableName("public", "trades")
LATE = TableName("public", "trades_late")


async def on(env: SwitchEnvironment, side: Side, statement: str) -> None:
    async with env.pair.at(side).session() as connection:
        await connection.execute(statement)


async def state(env: SwitchEnvironment, side: Side, table: TableName) -> str:
    async with env.pair.at(side).session() as connection:
        return (await fence.states_of(connection, [table]))[table]


async def reading(work: Work) -> m.Reading:
    """The fences in one sample, as the replication and the soak take it."""
    sample = await work.run(MonitoringActivities(work.context).sample, m.SampleRequest(ref=work.ref))
    (found,) = [one for one in sample.readings if one.name == "fences"]
    return m.Reading.model_validate(found)


async def switch(env: SwitchEnvironment, to_side: Side) -> None:
    await reverse.make_ready(env, to_side)
    request = order(env, to_side)
    assert (await section.run(env, request, lambda _: None)).result == "done"
    await finish.finish(env, request)


@pytest.mark.parametrize("side", ["monolith", "service"])
async def test_a_child_that_comes_late_gets_its_fence_by_itself_and_people_are_told(
    env: SwitchEnvironment, work: Work, side: Side
) -> None:
    await on(env, side, f"CREATE TABLE {LATE.name} () INHERITS (trades)")
    assert not (await reading(work)).breached
    assert await state(env, side, LATE) == ("open" if side == "monolith" else "fenced-always")
    (alert,) = await work.alerts("fence")
    assert alert.severity == ("warning" if side == "monolith" else "critical")
    assert f"{LATE} at the {side}" in alert.text
    assert "it has one now" in alert.text
    assert not (await reading(work)).breached
    if side == "service":
        with pytest.raises(asyncpg.PostgresError) as refused:
            await on(env, side, f"INSERT INTO {LATE.name} (id) VALUES (1)")
        assert refused.value.sqlstate == epoch.FENCED_SQLSTATE


async def test_a_monitor_waits_for_no_writer(env: SwitchEnvironment, work: Work) -> None:
    await on(env, "monolith", f"CREATE TABLE {LATE.name} () INHERITS (trades)")
    async with env.pair.monolith.session() as writer, writer.transaction():
        await writer.execute(f"INSERT INTO {LATE.name} (id) VALUES (1)")
        found = await asyncio.wait_for(reading(work), 10)
        assert found.breached
        assert "has no fence" in found.detail
    assert not (await reading(work)).breached


@pytest.mark.parametrize("trigger", [fence.WRITES, fence.TRUNCATE])
async def test_a_fence_that_somebody_lifted_is_told_closes_gates_and_is_left_alone(
    env: SwitchEnvironment, work: Work, trigger: str
) -> None:
    assert not (await reading(work)).breached
    await on(env, "service", f"ALTER TABLE trades DISABLE TRIGGER {trigger}")
    found = await reading(work)
    assert found.breached
    assert found.value == 1
    (alert,) = await work.alerts("fence")
    assert alert.severity == "critical"
    assert "the fence of trades at the service is broken" in alert.text
    assert "ENABLE ALWAYS TRIGGER" in alert.text
    gates = {
        "ready": ReplicationActivities(work.context).measure_ready,
        "read": SwitchActivities(work.context).measure_read,
        "write": SwitchActivities(work.context).measure_write,
    }
    for name, activity in gates.items():
        evidence = await work.run(activity, m.GateRequest(ref=work.ref, gate=name))
        assert any("trades at the service" in one for one in evidence.problems), name
    assert any("trades at the service" in one for one in (await examine(env.plan, env.pair, env.control)).problems)
    assert await state(env, "service", TRADES) == "broken"
    cure = alert.text.partition("Shut it: ")[2].partition(" — ")[0]
    await on(env, "service", cure)
    assert not (await reading(work)).breached


async def test_a_fence_that_is_on_at_the_writable_side_without_a_switch_is_told(
    env: SwitchEnvironment, work: Work
) -> None:
    await on(env, "monolith", fence.close_sql([TRADES], always=True))
    assert (await reading(work)).breached
    (alert,) = await work.alerts("fence")
    assert "the writable side, is fenced-always and no switch is under way" in alert.text


async def test_a_way_back_is_not_begun_onto_a_side_that_somebody_has_opened(env: SwitchEnvironment, work: Work) -> None:
    await switch(env, "service")
    await reverse.make_ready(env, "monolith")
    await on(env, "monolith", fence.open_sql([TRADES]))
    back = m.SwitchOrder(ref=work.ref, switch_id="back", to_side="monolith")
    with pytest.raises(ApplicationError, match="trades at the monolith is open") as refused:
        await work.run(SwitchActivities(work.context).fenced_section, back)
    assert refused.value.type == "GateClosed"
    row = await switches.settled(env.control, "test", env.pair.service)
    assert (row.state, row.to_side) == ("done", "service")
    await on(env, "monolith", fence.close_sql([TRADES], always=True))
    assert (await work.run(SwitchActivities(work.context).fenced_section, back)).result == "done"


async def test_nothing_is_said_or_done_while_a_switch_is_under_way(
    env: SwitchEnvironment, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    reached = asyncio.Event()

    async def hang(self: forward.Forward) -> None:
        reached.set()
        await asyncio.Event().wait()

    request = order(env, "service")
    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, "_carry_marker", hang)
        sleeping = asyncio.create_task(section.run(env, request, lambda _: None))
        await asyncio.wait_for(reached.wait(), 20)
        await on(env, "monolith", f"CREATE TABLE {LATE.name} () INHERITS (trades)")
        found = await reading(work)
        assert found.not_applicable
        assert await work.alerts("fence") == []
        assert await state(env, "monolith", LATE) == "missing"
        sleeping.cancel()
        await asyncio.gather(sleeping, return_exceptions=True)


async def test_a_look_that_a_whole_switch_came_into_counts_for_nothing(
    env: SwitchEnvironment, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = switches.still
    looks = 0

    async def still(*arguments: Any) -> switches.Still | None:
        nonlocal looks
        looks += 1
        seen = await original(*arguments)
        if looks == 1:
            await switch(env, "service")
        return seen

    monkeypatch.setattr(switches, "still", still)
    assert not (await fences.look(env.control, env.pair)).settled
    assert (await fences.look(env.control, env.pair)).problems == []


async def test_a_late_fence_is_not_made_from_what_was_seen_before_a_switch(
    env: SwitchEnvironment, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is seen at the writable monolith; by the time it is to get an open fence, the service is writable."""
    await on(env, "monolith", f"CREATE TABLE {LATE.name} () INHERITS (trades)")
    original = epoch.hold_unchanged

    async def late(connection: asyncpg.Connection, seen: epoch.Epoch) -> bool:
        async with env.pair.monolith.session() as other:
            await epoch.set_epoch(other, env.pair.service, "service", 1)
        return await original(connection, seen)

    monkeypatch.setattr(epoch, "hold_unchanged", late)
    (wrong,) = (await fences.look(env.control, env.pair)).wrong
    assert not wrong.mended
    assert await state(env, "monolith", LATE) == "missing"
