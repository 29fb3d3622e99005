"""Another server or timeline than the one that the evidence came from."""

import asyncio
from dataclasses import dataclass

import pytest

from activities.models import SampleRequest
from activities.monitoring import MonitoringActivities
from cutover.control import reports
from cutover.control.database import Control
from cutover.errors import GateClosed
from cutover.flags import store as flags
from cutover.postgres import epoch, fence
from cutover.switch import gates, reverse, servers
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import TABLES, Work, verify
from tests.switch.test_section import switch, writable


async def promoted(env: SwitchEnvironment) -> None:
    """As after a failover of the monolith: what was noted is an earlier timeline, and the last commits are gone."""
    assert await servers.changed(env) == []
    await env.control.execute(
        "UPDATE control.server_identity SET timeline = timeline - 1 WHERE migration = 'test' AND database = $1",
        env.pair.monolith.name,
    )


async def test_a_new_timeline_puts_the_fence_back_and_closes_the_gate(env: SwitchEnvironment) -> None:
    await promoted(env)
    async with env.pair.target.session() as connection:
        await connection.execute(fence.open_sql(TABLES))
    found = await gates.measure(env, "service")
    assert any("timeline" in problem and "--accept-server" in problem for problem in found.problems)
    assert any("was put back" in problem for problem in found.problems)
    async with env.pair.target.session() as connection:
        assert set((await fence.states_of(connection, TABLES)).values()) == {"fenced-always"}
    assert await writable(env, "monolith")


@dataclass
class Sleeper:
    """A look at the servers that sleeps once it has read the route."""

    task: asyncio.Task[list[str]]
    awake: asyncio.Event

    async def wake(self) -> list[str]:
        self.awake.set()
        return await self.task


async def sleeper(env: SwitchEnvironment, patch: pytest.MonkeyPatch) -> Sleeper:
    asleep, awake = asyncio.Event(), asyncio.Event()
    original = flags.get

    async def get(control: Control, migration: str, service: str) -> flags.Route:
        route = await original(control, migration, service)
        if asyncio.current_task() is task and not asleep.is_set():
            asleep.set()
            await awake.wait()
        return route

    patch.setattr(flags, "get", get)
    task = asyncio.create_task(servers.changed(env))
    await asyncio.wait_for(asleep.wait(), 30)
    return Sleeper(task, awake)


async def overtaken(env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    """A look that sleeps since before the server was accepted and a switch to the service was done."""
    await reverse.make_ready(env, "service")
    await promoted(env)
    late = await sleeper(env, monkeypatch)
    await servers.accept(env, "alice", "the standby was promoted by plan")
    await verify(env)
    assert (await switch(env, "service")).result == "done"
    return late


async def test_a_look_that_slept_does_not_shut_the_side_that_a_switch_has_opened_since(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = await overtaken(env, monkeypatch)
    (problem,) = await late.wake()
    assert "timeline" in problem
    assert await writable(env, "service")
    assert not await writable(env, "monolith")


async def test_a_look_that_slept_while_writes_went_there_and_back_writes_no_old_epoch(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = await overtaken(env, monkeypatch)
    assert (await switch(env, "monolith")).result == "done"
    await late.wake()
    route = await flags.get(env.control, "test", env.pair.service)
    async with env.pair.target.session() as connection:
        known = await epoch.read(connection, env.pair.service)
    assert known is not None
    assert (known.primary_side, known.epoch) == (route.primary_side, route.epoch)


async def test_no_switch_and_no_rollback_begins_on_a_server_that_nobody_has_accepted(env: SwitchEnvironment) -> None:
    await reverse.make_ready(env, "service")
    await promoted(env)
    with pytest.raises(GateClosed, match="timeline"):
        await switch(env, "service")


async def test_accepting_the_server_voids_the_evidence_and_new_passes_open_the_gate(env: SwitchEnvironment) -> None:
    await reverse.make_ready(env, "service")
    await promoted(env)
    assert await servers.accept(env, "alice", "the standby was promoted by plan") == [env.pair.monolith.name]
    assert await servers.accept(env, "alice", "again") == []
    assert await reports.latest(env.control, "test", env.pair.service, "trades") is None
    with pytest.raises(GateClosed, match="no full pass"):
        await switch(env, "service")
    await verify(env)
    assert (await switch(env, "service")).result == "done"
    audited = await env.control.fetchrow("SELECT actor, detail FROM control.audit WHERE action = 'server.accepted'")
    assert audited is not None
    assert audited["actor"] == "alice"


async def test_a_watching_worker_tells_of_a_failover(env: SwitchEnvironment, work: Work) -> None:
    await promoted(env)
    readings = await work.run(MonitoringActivities(work.context).sample, SampleRequest(ref=work.ref))
    (servers_now,) = [one for one in readings.readings if one.name == "servers"]
    assert servers_now.breached
    (alert,) = await work.alerts("failover")
    assert alert.severity == "critical"
    assert "--accept-server" in alert.text
