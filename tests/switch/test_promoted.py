"""A standby is promoted in the middle of a switch, at the address of the server that it stands in for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from cutover import doctor
from cutover.control import identity
from cutover.devstack.cluster import Cluster
from cutover.errors import GateClosed
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.plan.models import Plan
from cutover.postgres.databases import Side, direction_from
from cutover.switch import forward, mending, reverse, section, servers
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome
from tests.servers import Clusters, standby_of
from tests.switch.conftest import drop_streams, order, verify
from tests.switch.test_section import same_rows, switch, writable
from tests.waiting import until

#: How a standby names itself that `pg_basebackup -R` has made.
STANDBY = "walreceiver"
Promote = Callable[[], Awaitable[None]]


@asynccontextmanager
async def standing_by(primary: Cluster) -> AsyncIterator[Promote]:
    """A standby that follows; to be promoted once its primary is dead. The old server is back at the end."""
    with standby_of(primary) as standby:
        promoted = replace(standby, port=primary.port)

        async def follows() -> bool:
            connection = await asyncpg.connect(primary.superuser_dsn("postgres"))
            try:
                behind = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_insert_lsn()"
                return bool(await connection.fetchval(behind))
            finally:
                await connection.close()

        async def promote() -> None:
            await until(follows, "the standby has it all")
            primary.kill9()
            standby.stop()
            promoted.start()
            connection = await asyncpg.connect(promoted.superuser_dsn("postgres"))
            try:
                assert await connection.fetchval("SELECT pg_promote()")
            finally:
                await connection.close()

        try:
            yield promote
        finally:
            promoted.kill9()
            primary.start()


def then_promote(patch: pytest.MonkeyPatch, step: str, promote: Promote) -> None:
    """Right behind that step the server dies and its standby takes over; the attempt has lost its connections."""
    original = getattr(forward.Forward, step)

    async def fail_over(self: forward.Forward) -> None:
        await original(self)
        await promote()
        raise ConnectionResetError("failover")

    patch.setattr(forward.Forward, step, fail_over)


async def led_back(env: SwitchEnvironment, to_side: Side) -> None:
    """What a person does, and in what order: accept the server, the doctor's remedy, new passes; then a switch."""
    with pytest.raises(GateClosed, match="timeline"):
        await switch(env, to_side)
    found = await doctor.examine(env.plan, env.pair, env.control)
    assert found.remedy == identity.remedy(env.pair), found
    await servers.accept(env, "alice", "the standby was promoted by plan")
    assert await mending.mend(env, lambda _: None) != []
    assert (await doctor.examine(env.plan, env.pair, env.control)).problems == []
    route = await flags.get(env.control, "test", env.pair.service)
    await verify(env, direction_from(route.primary_side))
    await reverse.make_ready(env, to_side)
    assert (await switch(env, to_side)).result == "done"
    stream = env.stream(direction_from(to_side))
    await stream.await_marker(await stream.put_marker(), 20)
    assert await same_rows(env)


@asynccontextmanager
async def failed_over(
    env: SwitchEnvironment, cluster: Cluster, step: str, guarded: SwitchEnvironment | None = None
) -> AsyncIterator[SwitchOutcome]:
    """A switch to the service in which that server fails over behind that step; the old server is back at the end."""
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    await reverse.make_ready(env, "service")
    async with standing_by(cluster) as promote:
        with pytest.MonkeyPatch.context() as patch:
            then_promote(patch, step, promote)
            outcome = await section.run(guarded or env, order(env, "service"), lambda _: None)
        yield outcome
        await drop_streams(env)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_raise_sequences", "_unfence"])
async def test_the_old_primarys_standby_promoted_behind_the_fence_goes_on_and_the_switch_is_undone(
    env: SwitchEnvironment, clusters: Clusters, step: str
) -> None:
    async with failed_over(env, clusters.monolith, step) as outcome:
        assert outcome.result == "undone"
        assert await writable(env, "monolith")
        assert not await writable(env, "service")
        await led_back(env, "service")


@pytest.mark.slow
async def test_the_new_primarys_standby_promoted_behind_the_journal_has_all_and_the_switch_is_finished(
    env: SwitchEnvironment, clusters: Clusters
) -> None:
    """The control database stands on the same server and fails over with it."""
    values = env.plan.model_dump(mode="json")
    values["services"][env.pair.service]["standbys"] = [STANDBY]
    guarded = replace(env, plan=Plan.model_validate(values))
    async with failed_over(env, clusters.services, "_journal", guarded) as outcome:
        assert outcome.result == "done"
        assert await writable(env, "service")
        assert not await writable(env, "monolith")
        # the promoted server has no standby of its own yet: a person adopts a plan that names none
        await led_back(env, "monolith")
