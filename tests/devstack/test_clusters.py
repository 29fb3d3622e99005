"""The clusters that tests and the development stack run on."""

import asyncio

from cutover.postgres.databases import Database
from tests.servers import Clusters, create_database, drop_database


async def test_rows_replicate_between_the_two_clusters(monolith_db: Database, service_db: Database) -> None:
    async with monolith_db.session() as source, service_db.session() as target:
        for connection in (source, target):
            await connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        await source.execute("INSERT INTO t VALUES (1)")
        await source.execute("CREATE PUBLICATION p FOR TABLE t")
        await target.execute(f"CREATE SUBSCRIPTION s CONNECTION '{monolith_db.conninfo}' PUBLICATION p")
        async with asyncio.timeout(15):
            while await target.fetchval("SELECT count(*) FROM t") != 1:
                await asyncio.sleep(0.02)


async def test_a_killed_cluster_comes_back_with_what_was_committed(clusters: Clusters, monolith_db: Database) -> None:
    async with monolith_db.session() as connection:
        await connection.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (7)")
    clusters.monolith.kill9()
    assert clusters.monolith.pid is None
    clusters.monolith.start()
    async with monolith_db.session() as connection:
        assert await connection.fetchval("SELECT id FROM t") == 7


async def test_a_database_is_dropped_with_its_slots_and_prepared_transactions(clusters: Clusters) -> None:
    database = await create_database(clusters.services, "held")
    async with database.session() as connection:
        await connection.execute("CREATE TABLE t (id int)")
        await connection.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
        await connection.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'left behind'")
    await drop_database(clusters.services, database)
    assert not any(name.startswith("held_") for name in clusters.services.databases())
