"""SQLAlchemy's sessions over a routed pool, on real servers."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cutover.dualwrite import Fenced, HeldTooLong, ServicePool, TransactionAborted, UnknownOutcome
from cutover.dualwrite.alchemy import routed_engine
from cutover.errors import ConfigError, Unreachable
from cutover.flags import store
from tests.dualwrite.both_sides import Both
from tests.dualwrite.conftest import MIGRATION, SERVICE, World
from tests.dualwrite.test_outcomes import ASLEEP, SLOW, SLOW_COMMIT, end_all
from tests.dualwrite.test_pause import acknowledged
from tests.dualwrite.waiting import until
from tests.relay import Relay

HERE = text("SELECT current_database()")


class Base(DeclarativeBase):
    pass


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest_asyncio.fixture
async def engine(trading: ServicePool) -> AsyncIterator[AsyncEngine]:
    opened = routed_engine(trading)
    yield opened
    await opened.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


async def add(sessions: async_sessionmaker[AsyncSession], number: int) -> None:
    async with sessions.begin() as session:
        session.add(Trade(id=number))


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(select(func.count()).select_from(Trade)) or 0)


async def move(world: World, trading: ServicePool) -> None:
    await world.switch_databases("service", 1)
    await world.flip("service", 1, pause=None)
    await until(lambda: trading.gate.route.primary_side == "service")


async def test_sessions_go_where_the_service_writes(
    world: World, trading: ServicePool, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    await add(sessions, 1)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO trades (id) VALUES (:id)"), [{"id": 2}, {"id": 3}])
    assert await count(engine) == 3
    await move(world, trading)
    await add(sessions, 4)
    assert await count(engine) == 1
    assert await world.ids("monolith") == [1, 2, 3]
    assert await world.ids("service") == [4]


async def test_reads_that_may_be_stale_go_by_their_flag(
    world: World, trading: ServicePool, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    await add(sessions, 1)
    route = await store.set_read_from_new(world.control, MIGRATION, SERVICE, True, actor="test")
    await until(lambda: trading.gate.revision_seen >= route.revision)
    stale = engine.execution_options(cutover_read="stale_ok", cutover_table="trades")
    assert await count(stale) == 0
    assert await count(engine) == 1
    async with sessions() as session:
        await session.connection(execution_options={"cutover_read": "stale_ok"})
        assert await session.get(Trade, 1) is None
        session.add(Trade(id=2))
        with pytest.raises(Exception, match="read-only transaction"):
            await session.flush()


async def test_what_begins_in_a_pause_is_held_and_goes_on_at_the_new_side(
    world: World, trading: ServicePool, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    await add(sessions, 1)
    await world.announce()
    await until(lambda: acknowledged(world))
    waiting = [asyncio.create_task(add(sessions, number)) for number in range(2, 6)]
    read = asyncio.create_task(count(engine))
    assert await count(engine.execution_options(cutover_read="stale_ok")) == 1, "these are never held"
    await until(lambda: trading.gate.counters.held == 5)
    await world.switch_databases("service", 1)
    await world.flip("service", 1)
    await asyncio.gather(*waiting, read)
    assert await world.ids("service") == [2, 3, 4, 5]
    assert trading.gate.counters.fenced == trading.gate.counters.failed == 0


async def test_a_transaction_stays_where_it_began_and_the_pause_waits_for_it(
    world: World, trading: ServicePool, sessions: async_sessionmaker[AsyncSession]
) -> None:
    async with sessions() as session:
        begun = await session.scalar(HERE)
        await world.announce()
        await until(lambda: trading.gate.holding)
        session.add(Trade(id=1))
        await session.flush()
        assert await session.scalar(HERE) == begun
        assert not await acknowledged(world)
        await session.commit()
        await until(lambda: acknowledged(world))
        # an open session between two transactions holds nothing up, and its next one is a new one
        later = asyncio.create_task(session.scalar(HERE))
        await until(lambda: trading.gate.counters.held == 1)
        await world.switch_databases("service", 1)
        await world.flip("service", 1)
        assert await later == await world.on("service", "SELECT current_database()")
    assert await world.ids("monolith") == [1]


async def test_sessions_that_are_not_nested_hold_themselves_up_in_no_pause(
    world: World, trading: ServicePool, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """One task has two, ends the first one first, and then still works in the second."""
    first, second = sessions(), sessions()
    await first.scalar(HERE)
    await second.scalar(HERE)
    await first.close()
    await world.announce()
    await until(lambda: trading.gate.holding)
    # what is begun inside an open transaction belongs to it, or it would wait for its own end
    async with trading.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert trading.gate.counters.held == 0
    await second.close()
    await until(lambda: acknowledged(world))


async def test_a_transaction_that_meets_the_fence_may_be_run_again(
    world: World, trading: ServicePool, sessions: async_sessionmaker[AsyncSession]
) -> None:
    """A switch that did not wait for this instance, as after a lost lease."""
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Trade)) == 0
        await world.switch_databases("service", 1)
        session.add(Trade(id=1))
        with pytest.raises(Fenced, match="nothing was done") as caught:
            await session.flush()
        assert caught.value.retryable
        await session.rollback()
        assert trading.gate.counters.fenced == trading.gate.counters.failed == 1
    await world.flip("service", 1, pause=None)
    await until(lambda: trading.gate.route.primary_side == "service")
    await add(sessions, 1)
    assert await world.ids("service") == [1]
    assert await world.ids("monolith") == []


async def test_one_that_is_held_for_too_long_was_not_begun(
    world: World, trading: ServicePool, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]
) -> None:
    assert await count(engine) == 0
    await world.announce(limit=0.3)
    await until(lambda: trading.gate.holding)
    with pytest.raises(HeldTooLong) as caught:
        await add(sessions, 1)
    assert caught.value.retryable
    await store.lift_pause(world.control, MIGRATION, SERVICE, "p1")
    await until(lambda: not trading.gate.holding)
    await add(sessions, 1)
    assert await world.ids("monolith") == [1]


async def test_errors_that_are_the_applications_own_are_sqlalchemys(
    world: World, trading: ServicePool, sessions: async_sessionmaker[AsyncSession]
) -> None:
    await add(sessions, 1)
    with pytest.raises(IntegrityError):
        await add(sessions, 1)
    async with sessions.begin() as session:
        session.add(Trade(id=2))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(text("INSERT INTO trades (id) VALUES (1)"))
        session.add(Trade(id=3))
    assert await world.ids("monolith") == [1, 2, 3]
    async with sessions() as session:
        with pytest.raises(Exception, match="nowhere"):
            await session.execute(text("SELECT FROM nowhere"))
        with pytest.raises(TransactionAborted):
            await session.commit()


async def test_one_connection_has_one_transaction_after_another_over_a_change_of_columns(
    world: World, engine: AsyncEngine
) -> None:
    everything = text("SELECT * FROM trades")
    async with engine.connect() as connection:
        for _ in range(2):
            await connection.execute(everything)
            await connection.rollback()
        await world.on("monolith", "ALTER TABLE trades ADD more int")
        with pytest.raises(Exception, match=r"cached statement plan is invalid|must not change result type"):
            await connection.execute(everything)
        await connection.rollback()
        assert list((await connection.execute(everything)).keys()) == ["id", "side", "more"]
        streamed = await connection.stream(text("SELECT generate_series(1, 120)"))
        assert len([row async for row in streamed]) == 120
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        assert await raw.fetchval("SELECT 7") == 7


async def test_json_is_an_object_for_the_engine_and_a_text_for_the_pool(
    trading: ServicePool, engine: AsyncEngine
) -> None:
    sql = """SELECT '{"a": 1}'::jsonb"""
    async with engine.connect() as connection:
        assert await connection.scalar(text(sql)) == {"a": 1}
        assert await trading.fetchval(sql) == '{"a": 1}'


@pytest.mark.parametrize("noticed", [False, True])
async def test_a_connection_that_dies_before_commit_has_done_nothing(
    world: World, sessions: async_sessionmaker[AsyncSession], noticed: bool
) -> None:
    async with sessions() as session:
        await session.scalar(HERE)
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
        assert driver is not None
        await end_all(world, "monolith")
        if noticed:
            await until(lambda: driver.is_closed())
        with pytest.raises(Unreachable, match="nothing was done"):
            await session.scalar(HERE)


async def test_a_connection_that_dies_in_commit_leaves_an_unknown_outcome(
    world: World, trading: ServicePool, sessions: async_sessionmaker[AsyncSession]
) -> None:
    await world.on("monolith", SLOW)
    await world.on("monolith", SLOW_COMMIT)
    running = asyncio.create_task(add(sessions, 1))
    await until(lambda: world.on("monolith", ASLEEP))
    await end_all(world, "monolith")
    with pytest.raises(UnknownOutcome, match="COMMIT at monolith"):
        await running
    assert trading.gate.counters.unknown == 1


@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
async def test_a_connection_that_nobody_gave_back_and_a_cancelled_one_hold_up_no_pause(
    world: World, trading: ServicePool, engine: AsyncEngine
) -> None:
    connection = await engine.connect()
    await connection.execute(text("INSERT INTO trades (id) VALUES (1)"))
    del connection

    async def asleep() -> None:
        async with engine.begin() as mine:
            await mine.execute(text("SELECT pg_sleep(60)"))

    sleeping = asyncio.create_task(asleep())
    await until(lambda: world.on("monolith", ASLEEP))
    sleeping.cancel()
    gc.collect()
    await world.announce()
    await until(lambda: acknowledged(world))
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert await world.ids("monolith") == []


async def test_sessions_write_at_the_services_level(both: Both) -> None:
    trading = await both.service("strong")
    engine = routed_engine(trading)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO trades (id, name) VALUES (1, 'a')"))
    assert await both.ids("service") == [1]
    async with engine.execution_options(cutover_level="eventual").begin() as connection:
        await connection.execute(text("INSERT INTO trades (id, name) VALUES (2, 'b')"))
    assert await both.ids("service") == [1]
    await both.put_behind_the_fence("INSERT INTO trades (id, name) VALUES (9, 'c')")
    with pytest.raises(Exception, match="nothing was done"):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO trades (id, name) VALUES (3, 'c')"))
    assert await both.ids("monolith") == [1, 2]
    await engine.dispose()


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("readonly", [True, False])
async def test_a_session_that_only_reads_and_is_closed_is_told_if_its_side_was_left_after_its_lease(
    world: World, readonly: bool, moves: bool
) -> None:
    async with Relay(world.control_db) as relay:
        trading = (await world.open(control=relay.database)).service(SERVICE)
        engine = routed_engine(trading)
        sessions = async_sessionmaker(engine.execution_options(postgresql_readonly=readonly))
        with pytest.raises(Fenced, match="nothing was done") if moves else nullcontext():
            async with sessions() as session:
                assert await session.scalar(select(func.count()).select_from(Trade)) == 0
                await relay.cut()
                await until(lambda: not trading.gate.lease.valid)
                if moves:
                    await world.switch_databases("service", 1)
                    await world.on("service", "INSERT INTO trades (id) VALUES (1)")
                assert await session.scalar(select(func.count()).select_from(Trade)) == 0
        async with sessions() as session:  # and its connection is there for others
            if not moves:
                assert await session.scalar(select(func.count()).select_from(Trade)) == 0
        await engine.dispose()


async def test_wrong_options_are_named(trading: ServicePool, engine: AsyncEngine) -> None:
    with pytest.raises(ConfigError, match="poolclass"):
        routed_engine(trading, poolclass=None)
    for options, message in (
        ({"cutover_reed": "stale_ok"}, "cutover_reed is unknown"),
        ({"cutover_read": "stale"}, "one of read_your_writes, stale_ok"),
        ({"isolation_level": "AUTOCOMMIT"}, "AUTOCOMMIT cannot be had"),
        ({"postgresql_deferrable": True}, "postgresql_deferrable"),
    ):
        async with engine.connect() as connection:
            await connection.execution_options(**options)
            with pytest.raises(ConfigError, match=message):
                await connection.execute(HERE)


@pytest.mark.parametrize(("module", "said"), [("cutover.dualwrite", ""), ("cutover.dualwrite.alchemy", "sqlalchemy]'")])
def test_without_sqlalchemy_the_pool_works_and_the_engine_says_what_to_install(module: str, said: str) -> None:
    program = f"import sys; sys.modules['sqlalchemy'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode == 0) is (said == "")
    assert said in done.stderr
