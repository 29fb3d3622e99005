"""Where reads and writes go, by the flags."""

import asyncio

import pytest

from cutover.dualwrite import PoolClosed, RoutedPool, ServicePool, SpansServices, TransactionAborted, WriteInRead
from cutover.dualwrite.statements import writes
from cutover.errors import ConfigError
from cutover.flags import instances, store
from cutover.flags.share import bucket
from tests.dualwrite.conftest import MIGRATION, SERVICE, World, in_transaction, insert
from tests.dualwrite.waiting import until


@pytest.mark.parametrize(
    ("sql", "writing"),
    [
        ("SELECT 1", False),
        ("  -- why\n /* UPDATE */ (SELECT updated FROM t)", False),
        ("SELECT 1 FOR UPDATE", False),
        ("INSERT INTO t VALUES (1) RETURNING id", True),
        ("\n update t SET a = 1", True),
        ("WITH a AS (SELECT 1 FROM t FOR UPDATE) SELECT * FROM a", False),
        ("WITH a AS (DELETE FROM t RETURNING id) SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", True),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", True),
        ("VALUES (1)", False),
        ("WITH a AS ( /* why */ DELETE FROM t RETURNING id) SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) -- why\n -- more\n INSERT INTO t SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) /* a /* nested */ one */ UPDATE/**/t SET a = 1", True),
        ("WITH a AS (SELECT 1) DELETE /* all */ FROM t", True),
        ("/* a /* nested */ one */ (DELETE FROM t RETURNING id)", True),
        ("/* unended DELETE FROM t", False),
        ("WITH a AS (SELECT '--', \"/*\", $a$ /* $a$, date'1-1-1', E'\\'--') DELETE FROM t", True),
        ("WITH a AS (SELECT date'x\\', '/*', $$--$$) DELETE FROM t", True),
        ("WITH a AS (SELECT 'it\\'s', '--') DELETE FROM t", True),
        ("-- WITH\nSELECT '(delete from' -- (delete from t)", False),
        ("SELECT 1 /* ; (DELETE FROM t) */", False),
    ],
)
def test_a_statement_that_writes_is_told_from_one_that_reads(sql: str, writing: bool) -> None:
    assert writes(sql) is writing


async def test_writes_and_their_reads_go_to_the_primary_and_stale_reads_by_their_flag(
    world: World, trading: ServicePool
) -> None:
    await insert(trading, 1)
    assert await world.ids("monolith") == [1]
    assert await world.ids("service") == []
    assert await trading.fetchval("SELECT count(*) FROM trades", read="stale_ok") == 1

    route = await store.set_read_from_new(world.control, MIGRATION, SERVICE, True, actor="test")
    await until(lambda: trading.gate.revision_seen >= route.revision)
    assert await trading.fetchval("SELECT count(*) FROM trades", read="stale_ok") == 0
    assert await trading.fetchval("SELECT count(*) FROM trades") == 1
    assert len(await trading.fetch("SELECT * FROM trades")) == 1
    row = await trading.fetchrow("SELECT id FROM trades")
    assert row is not None
    assert row["id"] == 1


async def test_insert_returning_through_fetchval_goes_where_writes_go(world: World, trading: ServicePool) -> None:
    assert await trading.fetchval("INSERT INTO trades (id) VALUES (7) RETURNING id") == 7
    with pytest.raises(WriteInRead, match="stale_ok"):
        await trading.fetchval("DELETE FROM trades RETURNING id", read="stale_ok")
    assert await world.ids("monolith") == [7]


async def test_many_rows_by_executemany_and_copy_and_a_session(world: World, trading: ServicePool) -> None:
    await trading.executemany("INSERT INTO trades (id) VALUES ($1)", [(1,), (2,)], table="trades")
    assert await trading.copy_records_to_table("trades", records=[(3,), (4,)], columns=["id"]) == "COPY 2"
    async with trading.acquire() as connection:
        await connection.execute("INSERT INTO trades (id) VALUES (5)")
    async with trading.acquire(write=False) as connection:
        assert await connection.fetchval("SELECT count(*) FROM trades") == 5
        assert await connection.fetchval("SHOW transaction_read_only") == "on"
    assert await world.ids("monolith") == [1, 2, 3, 4, 5]


async def test_a_transaction_is_committed_or_rolled_back_whole(world: World, trading: ServicePool) -> None:
    async with trading.transaction(table="trades") as connection:
        await in_transaction(connection, 1)
        async with connection.transaction():
            await in_transaction(connection, 2)

    class OwnError(Exception):
        pass

    async def fails() -> None:
        async with trading.transaction() as connection:
            await in_transaction(connection, 3)
            raise OwnError from ValueError("why")

    with pytest.raises(OwnError) as caught:
        await fails()
    assert isinstance(caught.value.__cause__, ValueError)
    assert await world.ids("monolith") == [1, 2]


async def test_a_commit_that_the_server_turned_into_a_rollback_is_an_error(world: World, trading: ServicePool) -> None:
    async def swallows(connection: object) -> None:
        await in_transaction(connection, 1)  # type: ignore[arg-type]
        with pytest.raises(Exception, match="does not exist"):
            await connection.execute("SELECT nothing FROM nowhere")  # type: ignore[attr-defined]

    with pytest.raises(TransactionAborted, match="nothing was committed"):
        await trading.run_in_transaction(swallows)
    assert await world.ids("monolith") == []


async def test_a_transaction_over_two_services_is_refused_by_name(world: World) -> None:
    two = await RoutedPool.open(
        migration=MIGRATION,
        services=[SERVICE, "analytics"],
        control=world.control_db,
        database=lambda service, side: world.databases[side],
        tables={"trades": SERVICE, "reports": "analytics"},
        application="two",
    )
    async with two:
        trading, analytics = two.service(SERVICE), two.service("analytics")
        assert two.owner("reports") is analytics
        async with trading.transaction():
            assert await analytics.fetchval("SELECT 1") == 1
            with pytest.raises(SpansServices, match="trading_engine is open, and analytics"):
                await analytics.execute("SELECT 1")
            with pytest.raises(SpansServices):
                async with analytics.transaction():
                    pass
        await analytics.execute("SELECT 1")
        with pytest.raises(SpansServices, match="table reports belongs to analytics"):
            await trading.execute("SELECT 1", table="reports")


async def test_the_instance_is_listed_while_open_and_gone_after_close(world: World) -> None:
    pool = await world.open()
    live = await instances.live(world.control, MIGRATION, SERVICE)
    assert [one.instance.id for one in live] == [pool.instance]
    route = await store.get(world.control, MIGRATION, SERVICE)
    assert live[0].revision_acked == route.revision
    await pool.close()
    await pool.close()
    assert await instances.live(world.control, MIGRATION, SERVICE) == []
    with pytest.raises(PoolClosed):
        pool.service(SERVICE)


async def test_a_service_that_was_not_opened_is_named(pool: RoutedPool) -> None:
    with pytest.raises(ConfigError, match="'nobody' was not opened"):
        pool.service("nobody")


async def test_many_callers_share_few_connections(world: World, trading: ServicePool) -> None:
    await asyncio.gather(*(insert(trading, number) for number in range(50)))
    assert await world.ids("monolith") == list(range(50))


async def test_pools_stay_at_the_service_when_cleanup_has_removed_the_flags(
    world: World, pool: RoutedPool, trading: ServicePool
) -> None:
    await insert(trading, 1)
    await world.clean_up()
    await insert(trading, 2)
    async with await world.open() as later:
        await insert(later.service(SERVICE), 3)
    assert await world.ids("service") == [2, 3]


async def test_a_share_of_the_stale_reads_moves_key_by_key_and_keys_that_moved_stay(
    world: World, trading: ServicePool
) -> None:
    keys = [f"user-{number}" for number in range(60)]

    async def at_the_service(percentage: int) -> set[str]:
        route = await store.set_percentage(world.control, MIGRATION, SERVICE, percentage, actor="test")
        await until(lambda: trading.gate.revision_seen >= route.revision)
        here = {key: await trading.fetchval("SELECT current_database()", read="stale_ok", key=key) for key in keys}
        again = await trading.fetchval("SELECT current_database()", read="stale_ok", key=keys[0])
        assert again == here[keys[0]]
        return {key for key, name in here.items() if name == service}

    service = await world.on("service", "SELECT current_database()")
    some, more = await at_the_service(30), await at_the_service(60)
    assert 5 < len(some) < len(more) < 55
    assert some < more
    assert some == {key for key in keys if bucket(SERVICE, key) < 30}
    key = min(some)
    assert await trading.fetchval("SELECT current_database()", key=key) != service, "its other reads stay"
    async with trading.transaction(readonly=True, read="stale_ok", key=key) as connection:
        assert await connection.fetchval("SELECT current_database()") == service
    async with trading.acquire(write=False, read="stale_ok", key=key) as connection:
        assert await connection.fetchval("SELECT current_database()") == service
    assert await at_the_service(100) == set(keys)
    assert await at_the_service(0) == set()


def test_a_keys_bucket_is_what_the_page_says_and_reads_without_a_key_are_spread() -> None:
    assert [bucket("trading_engine", key) for key in ("user-1", 42)] == [81, 35]
    drawn = [bucket("trading_engine") for _ in range(2000)]
    assert 400 < sum(number < 30 for number in drawn) < 800
    assert 0 <= min(drawn) < max(drawn) <= 99
