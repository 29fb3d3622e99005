"""Level strong: both sides or neither, whoever dies, whatever is in the way."""

import asyncio
import os

import asyncpg
import pytest
import pytest_asyncio

from cutover import faults
from cutover.control.database import Control
from cutover.devstack import throwaway
from cutover.devstack.cluster import Cluster, free_port
from cutover.dualwrite import SecondaryAway, SecondaryRefused, ServicePool, TransactionAborted
from cutover.errors import ConfigError
from cutover.postgres.databases import SIDES, Database, Side
from cutover.streams.outbox import OutboxStream
from tests.dualwrite.both_sides import SERVICE, Both, add, open_both, plan, until_true
from tests.relay import Relay
from tests.servers import PREFIX, TEST_SETTINGS, create_database


@pytest_asyncio.fixture
async def trading(both: Both) -> ServicePool:
    return await both.service()


async def depth(both: Both) -> int:
    return (await OutboxStream(both.pair, "forward").depth()).intents


async def test_every_kind_of_write_is_at_both_sides_when_it_is_answered(both: Both, trading: ServicePool) -> None:
    await trading.execute("INSERT INTO trades (id, name) VALUES ($1, $2)", 1, "one", table="trades")
    await both.require_equal()
    assert await trading.fetchval("INSERT INTO trades (id, name) VALUES (2, 'two') RETURNING id") == 2
    await both.require_equal()
    await trading.execute("UPDATE trades SET note = 'x' WHERE id = 1")
    await trading.execute("UPDATE trades SET id = 20 WHERE id = 2")
    await both.require_equal()
    await trading.executemany("INSERT INTO positions VALUES ($1, $2, $3)", [("a", "X", "1.50"), ("b", "Y", "2")])
    await both.require_equal()
    async with trading.transaction() as connection:
        await connection.execute("DELETE FROM trades WHERE id = 20")
        async with connection.transaction():
            await connection.execute("INSERT INTO trades (id) VALUES (3)")
        await connection.execute("UPDATE positions SET amount = amount * 2")
    await both.require_equal()
    await trading.copy_records_to_table("trades", records=[(5,), (6,)], columns=["id"])
    await both.require_equal()
    await trading.execute("VACUUM trades")
    assert await both.ids("service") == [1, 3, 5, 6]
    assert await both.branches() == []
    # the intents of all that are forgotten, with no relay at work
    await until_true("the outbox is empty", lambda: _empty(both))
    assert trading.gate.counters.in_doubt == 0


async def _empty(both: Both) -> bool:
    return await depth(both) == 0


async def test_nothing_is_anywhere_after_an_error_of_the_caller(both: Both, trading: ServicePool) -> None:
    async def fails(connection: asyncpg.pool.PoolConnectionProxy) -> None:
        await add(connection, 1)
        raise KeyError

    async def swallows(connection: asyncpg.pool.PoolConnectionProxy) -> None:
        await add(connection, 1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await add(connection, 1)

    with pytest.raises(KeyError):
        await trading.run_in_transaction(fails)
    with pytest.raises(TransactionAborted):
        await trading.run_in_transaction(swallows)
    assert await both.ids("monolith") == await both.ids("service") == []
    assert await both.branches() == []
    await trading.run_in_transaction(lambda c: add(c, 1))
    await both.require_equal()


async def test_a_deferred_check_fails_before_the_other_side_has_prepared(both: Both, trading: ServicePool) -> None:
    await both.on("monolith", "ALTER TABLE trades ADD UNIQUE (note) DEFERRABLE INITIALLY DEFERRED")

    async def work(connection: asyncpg.pool.PoolConnectionProxy) -> None:
        await add(connection, 1)
        await add(connection, 2)  # the same note

    with pytest.raises(asyncpg.UniqueViolationError):
        await trading.run_in_transaction(work)
    assert await both.ids("monolith") == await both.ids("service") == []
    assert await both.branches() == []


async def test_levels_by_call(both: Both) -> None:
    trading = await both.service("eventual")
    await trading.execute("INSERT INTO trades (id) VALUES (1)")
    assert await both.ids("service") == []
    await trading.execute("INSERT INTO trades (id) VALUES (2)", level="strong")
    assert await both.ids("service") == [2]
    await trading.execute("INSERT INTO trades (id) VALUES (3)", level="best_effort")
    assert await both.ids("service") == [2]
    await both.drained()
    await both.require_equal()


async def test_with_the_other_side_away_nothing_is_done_and_later_it_is(both: Both) -> None:
    async with Relay(both.databases["service"]) as relay:
        databases = {"monolith": both.databases["monolith"], "service": relay.database}
        trading = await both.service(databases=databases, patience=1.5)
        await trading.execute("INSERT INTO trades (id) VALUES (1)")
        await relay.cut()
        with pytest.raises(SecondaryAway, match="nothing was done at either side") as caught:
            await trading.execute("INSERT INTO trades (id) VALUES (2)")
        assert caught.value.retryable
        with pytest.raises(SecondaryAway):
            await trading.run_in_transaction(lambda c: add(c, 2), attempts=2)
        assert await both.ids("monolith") == [1]
        assert await trading.fetchval("SELECT count(*) FROM trades") == 1, "reads go on"
        await relay.mend()
        await trading.run_in_transaction(lambda c: add(c, 2))
    await both.require_equal()


async def test_a_pool_that_is_opened_while_the_other_side_is_away_writes_nothing_at_the_primary_alone(
    both: Both,
) -> None:
    async with Relay(both.databases["service"]) as relay:
        databases = {"monolith": both.databases["monolith"], "service": relay.database}
        await relay.cut()
        trading = await both.service(databases=databases, patience=0.5)
        assert trading.level_in_force() == "strong"
        assert trading.gate.mirror is not None
        assert not trading.gate.mirror.complete, "reads stay at the primary"
        with pytest.raises(SecondaryAway, match="nothing was done"):
            await trading.execute("INSERT INTO trades (id) VALUES (1)")
        with pytest.raises(SecondaryAway, match="nothing was done"):
            await trading.run_in_transaction(lambda c: add(c, 1), attempts=1)
        assert await both.ids("monolith") == []
        await trading.execute("INSERT INTO trades (id) VALUES (2)", level="eventual")
        await relay.mend()
        await trading.execute("INSERT INTO trades (id) VALUES (3)")
        assert await both.ids("service") == [3]


async def test_a_pool_that_is_opened_while_both_sides_are_away_writes_strongly_when_they_are_back(both: Both) -> None:
    async with Relay(both.databases["monolith"]) as monolith, Relay(both.databases["service"]) as service:
        await monolith.cut()
        await service.cut()
        trading = await both.service(databases={"monolith": monolith.database, "service": service.database})
        await monolith.mend()
        await service.mend()
        await trading.execute("INSERT INTO trades (id) VALUES (1)")
        assert await both.ids("service") == [1]


async def test_rows_that_the_other_side_refuses_are_nowhere(both: Both, trading: ServicePool) -> None:
    await both.on("service", "ALTER TABLE trades ADD CONSTRAINT sober CHECK (note <> 'poison')")
    with pytest.raises(SecondaryRefused, match="constraint sober") as caught:
        await trading.execute("INSERT INTO trades (id, note) VALUES (1, 'poison')")
    assert "poison" not in str(caught.value)
    assert not caught.value.retryable
    assert await both.ids("monolith") == []
    assert await both.branches() == []


async def test_twenty_writers_of_one_key_all_succeed(both: Both) -> None:
    trading = await both.service(max_size=20, patience=30.0)
    await trading.execute("INSERT INTO positions VALUES ('a', 'X', 0)")

    async def write() -> None:
        for _ in range(5):
            await trading.execute("UPDATE positions SET amount = amount + 1 WHERE account = 'a'")

    async with both.relay():
        await asyncio.gather(*(write() for _ in range(20)))
    assert await both.on("service", "SELECT amount FROM positions") == 100
    await both.require_equal()
    assert trading.gate.counters.failed == 0
    assert trading.gate.counters.retried == 0, "the primary's row lock comes first, so nobody is in another's way"


async def test_transactions_that_touch_keys_in_unlike_order_all_succeed_in_the_end(both: Both) -> None:
    name = await both.on("monolith", "SELECT current_database()")
    await both.on("monolith", f'ALTER DATABASE "{name}" SET deadlock_timeout = 20')
    trading = await both.service(max_size=6, patience=30.0)
    await trading.executemany("INSERT INTO positions VALUES ($1, 'X', 0)", [("a",), ("b",), ("c",)])

    async def move(order: str) -> None:
        async def work(connection: asyncpg.pool.PoolConnectionProxy) -> None:
            for account in order:
                await connection.execute("UPDATE positions SET amount = amount + 1 WHERE account = $1", account)

        for _ in range(5):
            await trading.run_in_transaction(work)

    async with both.relay():
        await asyncio.gather(*(move(order) for order in ("abc", "cba", "bca", "acb", "cab", "bac")))
    assert await both.on("service", "SELECT sum(amount) FROM positions") == 90
    await both.require_equal()


@pytest.mark.parametrize("point", [point for point in faults.points() if point.startswith("strong.")])
async def test_a_cancelled_caller_leaves_both_sides_equal(both: Both, trading: ServicePool, point: str) -> None:
    async def cancel_there(at: str) -> None:
        if at == point:
            writing.cancel()

    with faults.armed(cancel_there):
        writing = asyncio.create_task(trading.run_in_transaction(lambda c: add(c, 1)))
        with pytest.raises(asyncio.CancelledError):
            await writing
    assert await both.branches() == []
    assert await both.ids("monolith") == [1], "what has begun is ended"
    await both.require_equal()
    await trading.run_in_transaction(lambda c: add(c, 2))
    await both.require_equal()


async def test_strong_writes_follow_a_switch_and_come_back(both: Both, trading: ServicePool) -> None:
    await trading.execute("INSERT INTO trades (id) VALUES (1)")
    await both.switch_to("service", 1)
    await until_true("the route is followed", lambda: _is(trading, "service"))
    await trading.run_in_transaction(lambda c: add(c, 2))
    assert await both.ids("service") == [1, 2]
    await until_true("the reverse stream is noticed", lambda: _strong(both, trading, 100))
    await both.switch_to("monolith", 2)
    await until_true("the route is followed", lambda: _is(trading, "monolith"))
    await trading.execute("INSERT INTO trades (id) VALUES (3)")
    assert 3 in await both.ids("service")


async def _is(trading: ServicePool, side: str) -> bool:
    return trading.gate.route.primary_side == side


async def _strong(both: Both, trading: ServicePool, number: int) -> bool:
    await trading.execute("INSERT INTO trades (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET note = 'again'", number)
    return number in await both.ids("monolith")


async def test_columns_that_change_are_read_anew(both: Both, trading: ServicePool) -> None:
    await trading.execute("INSERT INTO trades (id) VALUES (1)")
    for side in SIDES:
        await both.on(side, "ALTER TABLE trades ADD COLUMN fee int")
    await trading.execute("INSERT INTO trades (id, fee) VALUES (2, 7)")
    assert await both.on("service", "SELECT fee FROM trades WHERE id = 2") == 7
    await both.on("service", "ALTER TABLE trades DROP COLUMN fee")
    with pytest.raises(SecondaryRefused, match="'fee' is only at the source"):
        await trading.execute("INSERT INTO trades (id, fee) VALUES (3, 8)")
    assert await both.ids("monolith") == [1, 2]
    await both.on("service", "ALTER TABLE trades ADD COLUMN fee int")
    await trading.execute("INSERT INTO trades (id, fee) VALUES (3, 8)")
    assert await both.on("service", "SELECT fee FROM trades WHERE id = 3") == 8
    # the primary alone: a value that the other side has no place for is no strong write
    await both.on("monolith", "ALTER TABLE trades ADD COLUMN alone int")
    with pytest.raises(SecondaryRefused, match="'alone' is only at the source"):
        await trading.execute("INSERT INTO trades (id, alone) VALUES (9, 1)")
    await both.on("monolith", "ALTER TABLE trades DROP COLUMN alone")
    # the other side first, and a write in between that knows the column at that side alone
    await both.on("service", "ALTER TABLE trades ADD COLUMN other int")
    with pytest.raises(SecondaryRefused, match="'other' is only at the target"):
        await trading.execute("INSERT INTO trades (id) VALUES (4)")
    await both.on("monolith", "ALTER TABLE trades ADD COLUMN other int")
    await trading.execute("INSERT INTO trades (id, other) VALUES (4, 5)")
    assert await both.on("service", "SELECT other FROM trades WHERE id = 4") == 5


async def test_a_column_that_has_come_anew_at_the_other_side_does_not_take_another_one_s_values(
    both: Both, trading: ServicePool
) -> None:
    for side in SIDES:
        await both.on(side, "ALTER TABLE trades ADD COLUMN fee int, ADD COLUMN tax int")
    await trading.execute("INSERT INTO trades (id, fee, tax) VALUES (1, 10, 2)")
    await both.on("service", "ALTER TABLE trades DROP COLUMN fee")
    await both.on("service", "ALTER TABLE trades ADD COLUMN fee int")
    await trading.execute("INSERT INTO trades (id, fee, tax) VALUES (2, 20, 4)")
    assert await both.on("service", "SELECT fee || ' ' || tax FROM trades WHERE id = 2") == "20 4"


async def test_before_its_stream_is_started_a_service_is_written_at_its_primary_alone(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> None:
    chosen = plan(consistency="strong")
    async with open_both(control, control_db, monolith_db, service_db, chosen) as both:
        trading = await both.service(None)
        await trading.execute("INSERT INTO trades (id) VALUES (1)")
        assert await both.ids("service") == []
        await both.start()
        await until_true("the plan's level is in force", lambda: _strong_at_service(both, trading))


async def _strong_at_service(both: Both, trading: ServicePool) -> bool:
    await trading.execute("UPDATE trades SET note = 'again'")
    return await both.ids("service") == [1]


async def test_a_level_that_cannot_be_had_is_refused_when_the_pool_is_opened(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> None:
    async with open_both(control, control_db, monolith_db, service_db, plan(stream="logical")) as both:
        with pytest.raises(ConfigError, match="stream: outbox"):
            await both.open(levels={SERVICE: "strong"})
        with pytest.raises(ConfigError, match="none of the services"):
            await both.open(levels={"trading": "strong"})
        trading = (await both.open()).service(SERVICE)
        with pytest.raises(ConfigError, match="leave `level` out"):
            await trading.execute("INSERT INTO trades (id) VALUES (1)", level="strong")


async def test_a_server_that_prepares_no_transactions_is_found_when_the_pool_is_opened(
    control: Control, control_db: Database, monolith_db: Database
) -> None:
    with throwaway.opened(PREFIX, durable=False) as folder:
        settings = {**TEST_SETTINGS, "max_prepared_transactions": "0"}
        cluster = Cluster("standby", folder / "standby", free_port(), settings).start()
        service = await create_database(cluster, "service_db")
        async with open_both(control, control_db, monolith_db, service) as both:
            await both.start()
            with pytest.raises(ConfigError, match="set max_prepared_transactions there"):
                await both.open(levels={SERVICE: "strong"})
            trading = await both.service("eventual")
            await trading.execute("INSERT INTO trades (id) VALUES (1)")
            with pytest.raises(ConfigError, match="set max_prepared_transactions there"):
                await trading.execute("INSERT INTO trades (id) VALUES (2)", level="strong")
            assert await both.ids("monolith") == [1]


async def test_an_applications_plain_role_writes_strongly_with_appliers_and_notes_without(both: Both) -> None:
    role = f"app_{os.getpid()}"
    plain: dict[Side, Database] = {}
    for side in SIDES:
        for sql in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON trades, positions TO {role}",
        ):
            await both.on(side, sql)
        scheme, _, rest = both.databases[side].dsn.partition("://")
        database = both.databases[side]
        plain[side] = Database(database.name, f"{scheme}://{role}@{rest.rpartition('@')[2]}")
    try:
        with pytest.raises(ConfigError, match=r"appliers=…"):
            await both.open(databases=plain, levels={SERVICE: "strong"})
        pool = await both.open(databases=plain, levels={SERVICE: "strong"}, appliers={SERVICE: both.databases})
        await pool.service(SERVICE).execute("INSERT INTO trades (id) VALUES (1)")
        await both.require_equal()
        await pool.close()
        pool = await both.open(databases=plain)
        await pool.service(SERVICE).execute("INSERT INTO trades (id) VALUES (2)")
        assert await both.on("monolith", "SELECT count(*) FROM cutover.decision WHERE gid LIKE 'write:%'") == 1
        await pool.close()
    finally:
        for side in SIDES:
            for sql in (f"DROP OWNED BY {role}", f"DROP ROLE {role}"):
                await both.on(side, sql)
