"""A pass that reads from a replica: nothing is missed that was there, and nothing is decided by it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from cutover.control import reports
from cutover.errors import ConfigError
from cutover.postgres.databases import Database
from cutover.reconcile.changed import ChangedKeys
from tests.reconcile.conftest import World
from tests.servers import Clusters, standby_of


@pytest_asyncio.fixture
async def mirrored(world: World, clusters: Clusters) -> AsyncIterator[World]:
    """The monolith has a replica, which the pass may read from."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.both("INSERT INTO t SELECT n, 0 FROM generate_series(1, 1000) AS n")
    with standby_of(clusters.monolith) as standby:
        name = world.pair.monolith.dsn.rpartition("/")[2]
        replica = Database("monolith_ro", standby.dsn(name))
        world.pair = replace(world.pair, replicas={world.pair.monolith.name: replica})
        yield world


async def test_what_was_there_before_the_pass_is_seen_on_a_replica_that_lags(mirrored: World) -> None:
    world = mirrored
    async with world.pair.replicas["monolith"].session("test") as replica:
        await replica.execute("SELECT pg_wal_replay_pause()")
        await world.left.execute("UPDATE t SET v = 1 WHERE id = 7")
        running = asyncio.create_task(world.compare("t", replicas=True))
        done, _ = await asyncio.wait({running}, timeout=0.5)
        assert not done
        await replica.execute("SELECT pg_wal_replay_resume()")
    report = await running
    assert await world.found(report) == {"7": "mismatched"}
    assert (report.replica, report.rows_source) == (True, 1000)


async def test_what_differs_on_the_replica_alone_is_no_difference(mirrored: World) -> None:
    world = mirrored

    async def catches_up() -> None:
        await world.left.execute("UPDATE t SET v = 2 WHERE id = 9")

    await world.right.execute("UPDATE t SET v = 2 WHERE id = 9")
    report = await world.compare("t", replicas=True, settle=catches_up)
    assert report.differences == 0


async def test_no_switch_is_decided_by_a_report_from_a_replica(mirrored: World) -> None:
    world = mirrored
    report = await world.compare("t", replicas=True)
    assert await reports.latest(world.control, "m", "svc", "t", decisive=True) is None
    assert not await ChangedKeys(world.pair, "forward", world.control).verified(report)
    primary = await world.compare("t")
    found = await reports.latest(world.control, "m", "svc", "t", decisive=True)
    assert found is not None
    assert (found.id, found.replica) == (primary.id, False)


async def test_a_replica_of_another_server_or_one_that_was_promoted_is_refused(mirrored: World) -> None:
    world = mirrored
    replica = world.pair.replicas["monolith"]
    world.pair = replace(world.pair, replicas={"monolith": replace(world.pair.target, name="wrong")})
    with pytest.raises(ConfigError, match="'wrong' is no replica"):
        await world.compare("t", replicas=True)
    world.pair = replace(world.pair, replicas={"monolith": replica})
    async with replica.session("test") as connection:
        await connection.execute("SELECT pg_promote()")
    with pytest.raises(ConfigError, match="not in recovery"):
        await world.compare("t", replicas=True)
