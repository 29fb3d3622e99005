"""Connections that die, databases that are away, a control database that does not answer."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from cutover.dualwrite import Fenced, RoutedPool, ServicePool, UnknownOutcome
from cutover.errors import Unreachable
from cutover.flags import instances, store
from cutover.postgres.databases import Side
from tests.dualwrite.conftest import MIGRATION, SERVICE, World, in_transaction, insert
from tests.dualwrite.waiting import until
from tests.relay import Relay

SLOW = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$"
SLOW_COMMIT = """
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON trades DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()
"""
ASLEEP = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = 'test' AND datname = current_database() AND pid <> pg_backend_pid()"
)


async def end_all(world: World, side: Side) -> None:
    async with world.databases[side].session("killer") as connection:
        await connection.fetch(END)


async def cut_control(pool_side: ServicePool) -> None:
    """As if the control database had gone: the lease is not renewed any more."""
    await until(lambda: not pool_side.gate.lease.valid)


async def test_a_connection_that_dies_in_commit_leaves_an_unknown_outcome(world: World, trading: ServicePool) -> None:
    await world.on("monolith", SLOW)
    await world.on("monolith", SLOW_COMMIT)
    runs: list[int] = []

    async def work(connection: asyncpg.pool.PoolConnectionProxy) -> None:
        runs.append(1)
        await in_transaction(connection, 1)

    running = asyncio.create_task(trading.run_in_transaction(work))
    await until(lambda: world.on("monolith", ASLEEP))
    await end_all(world, "monolith")
    with pytest.raises(UnknownOutcome, match="COMMIT at monolith"):
        await running
    assert runs == [1], "what may have been done is not done again"
    assert trading.gate.counters.unknown == 1


async def test_a_single_write_whose_answer_is_lost_is_unknown_and_not_repeated(
    world: World, trading: ServicePool
) -> None:
    await world.on("monolith", SLOW)
    await world.on("monolith", SLOW_COMMIT)
    running = asyncio.create_task(insert(trading, 1))
    await until(lambda: world.on("monolith", ASLEEP))
    await end_all(world, "monolith")
    with pytest.raises(UnknownOutcome, match="INSERT at monolith") as caught:
        await running
    assert "terminating" not in str(caught.value)


async def test_a_transaction_that_loses_its_connection_before_commit_is_run_again(
    world: World, trading: ServicePool
) -> None:
    runs: list[int] = []

    async def work(connection: asyncpg.pool.PoolConnectionProxy) -> None:
        runs.append(1)
        await in_transaction(connection, 1)
        if len(runs) == 1:
            await end_all(world, "monolith")
        await in_transaction(connection, 2)

    await trading.run_in_transaction(work)
    assert len(runs) == 2
    assert await world.ids("monolith") == [1, 2]


async def test_a_single_write_that_loses_a_deadlock_is_sent_again(
    world: World, pool: RoutedPool, trading: ServicePool
) -> None:
    async with world.databases["monolith"].session("rival") as rival:
        rolled_back = rival.transaction()
        await rolled_back.start()
        await rival.execute("INSERT INTO trades (id) VALUES (2)")
        write = asyncio.create_task(trading.execute("INSERT INTO trades (id) VALUES (1), (2)", table="trades"))

        async def waits() -> bool:
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            return await world.on("monolith", waiting) is not None

        await until(waits)
        # The pool's session waits the longer of the two, so it is the one that finds the deadlock, and gives way.
        await rival.execute("INSERT INTO trades (id) VALUES (1)")
        await rolled_back.rollback()
        await write
    assert await world.ids("monolith") == [1, 2]
    assert pool.stats()[SERVICE].retried >= 1


async def test_a_read_whose_connection_dies_is_read_again(world: World, trading: ServicePool) -> None:
    reading = asyncio.create_task(trading.fetchval("SELECT count(*) FROM trades, pg_sleep(0.5)"))
    await until(lambda: world.on("monolith", ASLEEP))
    await end_all(world, "monolith")
    assert await reading == 0
    assert trading.gate.counters.retried >= 1


async def test_a_database_that_is_away_is_waited_for_and_then_named(world: World) -> None:
    async with Relay(world.databases["monolith"]) as relay:
        world.databases["monolith"] = relay.database
        trading = (await world.open(patience=5.0)).service(SERVICE)
        await insert(trading, 1)
        await relay.cut()
        waiting = asyncio.create_task(trading.fetchval("SELECT count(*) FROM trades"))
        await until(lambda: trading.gate.counters.retried >= 2)
        writing = asyncio.create_task(insert(trading, 2))
        await relay.mend()
        assert await waiting in (1, 2)
        await writing

        short = (await world.open(patience=0.3)).service(SERVICE)
        assert await short.fetchval("SELECT count(*) FROM trades") == 2
        await relay.cut()
        with pytest.raises(Unreachable):
            await short.fetchval("SELECT 1")
        with pytest.raises(Unreachable, match="'monolith' gave no connection") as caught:
            await insert(short, 3)
        assert str(relay.port) not in str(caught.value)
        await relay.mend()
        assert await world.ids("monolith") == [1, 2]


async def test_the_callers_own_errors_pass_unchanged(trading: ServicePool) -> None:
    await insert(trading, 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(trading, 1)
    with pytest.raises(asyncpg.DataError):
        await trading.fetchval("SELECT $1::int", "no number")
    assert trading.gate.counters.failed == 1, "a wrong argument never reaches the database"


async def test_without_the_control_database_the_last_route_stays_and_reads_look_at_the_epoch_row(
    world: World,
) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        await relay.cut()
        await cut_control(trading)
        await insert(trading, 1)
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1
        assert (
            await trading.run_in_transaction(lambda c: c.fetchval("SELECT count(*) FROM trades"), read_only=True) == 1
        )

        # nobody could tell this instance of the switch: the databases do
        await world.switch_databases("service", 1)
        await world.flip("service", 1, pause=None)
        await world.on("service", "INSERT INTO trades (id) VALUES (10), (11)")
        assert await trading.fetchval("SELECT count(*) FROM trades") == 2
        assert trading.gate.route.primary_side == "service"
        await insert(trading, 12)
        assert await world.ids("service") == [10, 11, 12]

        # and back, met by a transaction
        await world.switch_databases("monolith", 2)
        await world.flip("monolith", 2, pause=None)
        await trading.run_in_transaction(lambda c: in_transaction(c, 13))
        assert await world.ids("monolith") == [1, 13]

        await relay.mend()
        await until(lambda: trading.gate.lease.valid)
        await insert(trading, 14)
        assert trading.gate.route.epoch == 2


async def test_a_read_that_outlives_its_lease_is_not_answered_by_the_side_that_was_left(world: World) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        await insert(trading, 1)
        reading = asyncio.create_task(trading.fetchval("SELECT count(*) FROM trades, pg_sleep(3)"))
        transaction = asyncio.Event()

        async def long_read() -> None:
            async with trading.transaction(readonly=True) as connection:
                await connection.fetchval("SELECT count(*) FROM trades")
                await transaction.wait()
                await connection.fetchval("SELECT count(*) FROM trades")

        long = asyncio.create_task(long_read())
        await until(lambda: world.on("monolith", ASLEEP))
        await relay.cut()
        await cut_control(trading)
        await world.switch_databases("service", 1)
        await world.flip("service", 1, pause=None)
        transaction.set()
        with pytest.raises(Fenced):
            await long
        assert await reading == 0, "the service side has no rows"


async def test_a_lost_control_database_stops_nothing_of_a_service_that_was_cleaned_up(world: World) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        await world.clean_up()
        await until(lambda: trading.gate.route.epoch == 1)
        await relay.cut()
        await cut_control(trading)
        await insert(trading, 1)
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1
        assert await world.ids("service") == [1]


async def test_a_pause_that_nobody_can_lift_any_more_ends_at_its_limit(world: World) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        await world.announce(limit=3.0)
        await until(lambda: trading.gate.holding)
        await relay.cut()
        await insert(trading, 1)
        assert await world.ids("monolith") == [1]


async def test_a_lapsed_instance_is_not_waited_for_and_comes_back_with_the_route_of_now(world: World) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        await relay.cut()
        await world.announce()
        acks = await instances.await_acknowledged(
            world.control, MIGRATION, SERVICE, pause_id="p1", timeout=timedelta(seconds=5)
        )
        assert acks.acked == 0
        assert not trading.gate.lease.valid, "its own clock must not give it longer than control does"
        await relay.mend()
        await until(lambda: trading.gate.lease.valid)
        assert trading.gate.holding, "a lease is believed only with the route read after it"
        await store.lift_pause(world.control, MIGRATION, SERVICE, "p1")
        await insert(trading, 1)


async def test_opening_waits_for_the_control_database_and_then_names_it(world: World) -> None:
    async with Relay(world.control_db) as relay:
        await relay.cut()
        with pytest.raises(Unreachable, match="'control'"):
            await world.open(control=relay.database, open_timeout=0.3)
        opening = asyncio.create_task(world.open(control=relay.database))
        await asyncio.sleep(0)
        await relay.mend()
        await opening


async def test_the_close_of_a_pool_without_its_control_database_is_quiet(world: World) -> None:
    async with Relay(world.control_db) as relay:
        pool = await world.open(control=relay.database)
        await insert(pool.service(SERVICE), 1)
        await relay.cut()
        await pool.close()
