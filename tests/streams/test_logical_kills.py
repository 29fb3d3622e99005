"""What a marker of the logical stream promises when the target dies right after it."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from cutover.postgres import epoch
from cutover.postgres.databases import Pair
from tests.servers import Clusters
from tests.streams.test_logical import dropped, pair, started

__all__ = ["pair"]


@pytest.fixture
async def lazy_writer(clusters: Clusters) -> AsyncIterator[None]:
    """The target's WAL writer sleeps for long, as it may: what is committed asynchronously is not on disk meanwhile."""
    connection = await asyncpg.connect(clusters.services.superuser_dsn("postgres"))
    await connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    yield
    connection = await asyncpg.connect(clusters.services.superuser_dsn("postgres"))
    await connection.execute("ALTER SYSTEM RESET wal_writer_delay")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def test_what_a_marker_has_told_outlives_the_targets_death_with_the_source_gone(
    pair: Pair, clusters: Clusters, lazy_writer: None
) -> None:
    """As after the journal of a switch: the new primary is killed, and the old one has nothing left to send."""
    stream = await started(pair, rows=1)
    async with pair.monolith.session() as source, pair.target.session() as sink:
        # some rounds, so that the writer that has been told to sleep longer is asleep
        for number in range(2, 5):
            await source.execute('INSERT INTO "Order" VALUES ($1, $2)', number, "acknowledged")
            marker = await stream.put_marker_on(source)
            await stream.await_marker_on(sink, marker, 20)
        await asyncio.to_thread(clusters.services.kill9)
        await asyncio.to_thread(clusters.monolith.kill9)
    await asyncio.to_thread(clusters.services.start)
    try:
        async with pair.target.session() as sink:
            assert await epoch.marker_seen(sink, pair.service, marker.id), "a marker that had been awaited is gone"
            assert await sink.fetchval('SELECT count(*) FROM "Order"') == 4
    finally:
        await asyncio.to_thread(clusters.monolith.start)
    await dropped(pair)
