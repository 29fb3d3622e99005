"""The plan of just now: a pool that was opened before it was registered, and plans that change."""

import os

import pytest

from cutover.control import plans
from cutover.control.database import Control
from cutover.dualwrite import DualWriteRepository, RoutedPool, ServicePool, following, two_sides
from cutover.postgres.databases import SIDES, Database, Side
from tests.dualwrite.both_sides import MIGRATION, SERVICE, Both, add, open_both, plan, until_true


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PLAN_EVERY", 0.1)
    monkeypatch.setattr(two_sides, "LOOK_EVERY", 0.2)


async def level_is(trading: ServicePool, level: str) -> bool:
    return trading.level_in_force() == level


async def test_a_pool_that_was_opened_before_its_plan_is_registered_writes_by_it(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> None:
    databases: dict[Side, Database] = {"monolith": monolith_db, "service": service_db}
    async with await RoutedPool.open(
        migration=MIGRATION,
        services=[SERVICE],
        control=control_db,
        database={SERVICE: databases},
        application="test",
        max_size=5,
    ) as pool:
        trading = pool.service(SERVICE)
        assert trading.level_in_force() == "eventual"
        assert trading.verifier is None
        async with open_both(control, control_db, monolith_db, service_db, plan(consistency="strong")) as both:
            trades = await DualWriteRepository.open(trading, dict, "trades", verify_consistency=1.0)
            async with trading.transaction() as connection:
                assert await connection.fetchval("SELECT 1") == 1
                await both.start()
                await until_true("the plan is followed", lambda: level_is(trading, "strong"))
                mirror = trading.gate.mirror
                assert mirror is not None
                assert not mirror.complete
                assert not mirror.unsettled, "the transaction that is open is counted"
                await add(connection, 1)
            await trading.run_in_transaction(lambda c: add(c, 2))
            assert await both.ids("service") == [2]
            await both.drained()
            await until_true("all is at the other side", lambda: _complete(trading))
            await both.require_equal()
            assert trades.settings.verify_consistency == 1.0
            await trades.find_by_id(2)
            await until_true("the sample is compared", lambda: _verified(trading))
            names = {task.get_name() for task in pool._following.outboxes[SERVICE].tasks if not task.done()}
            assert names == {"cutover-sides", "cutover-verify", "cutover-janitor"}
            await pool.close()


async def _complete(trading: ServicePool) -> bool:
    return trading.gate.mirror is not None and trading.gate.mirror.complete


async def _verified(trading: ServicePool) -> bool:
    return trading.gate.counters.verified == 1


async def test_a_plan_that_changes_is_taken_over_and_one_that_says_the_same_is_not(both: Both) -> None:
    trading = await both.service(None)
    before = trading._sides
    await plans.register(both.control, plan(traffic={"steps": [50, 100], "every": "1d"}), "test")
    await plans.register(both.control, plan(consistency="strong"), "test")
    await until_true("it is followed", lambda: level_is(trading, "strong"))
    after = trading._sides
    assert before is not None
    assert after is not before
    await until_true("its sessions are ended", lambda: _closed(before))
    await trading.execute("INSERT INTO trades (id) VALUES (1)")
    assert await both.ids("service") == [1]
    hash_before = await plans.record(both.control, MIGRATION)
    await plans.register(both.control, plan(consistency="strong", traffic={"steps": [100], "every": "1d"}), "test")
    assert (await plans.record(both.control, MIGRATION)).hash != hash_before.hash
    pools = await both.open()
    await until_true("it was looked at", lambda: _knows(both, pools))
    assert trading._sides is after
    await plans.register(both.control, plan(stream="logical"), "test")
    await until_true("it is followed", lambda: _without(trading))
    await trading.execute("INSERT INTO trades (id) VALUES (2)")
    assert await both.ids("monolith") == [1, 2]


async def _closed(sides: two_sides.TwoSides) -> bool:
    return all(not sessions._idle for sessions in (*sides._own.values(), *sides._writers.values()))


async def _knows(both: Both, pool: RoutedPool) -> bool:
    return pool._following._hash == (await plans.record(both.control, MIGRATION)).hash


async def _without(trading: ServicePool) -> bool:
    return trading._sides is None and trading.verifier is None and trading.gate.mirror is None


async def test_a_plan_that_asks_for_what_a_running_process_has_not_does_not_stop_its_writes(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    role = f"plain_{os.getpid()}"
    plain: dict[Side, Database] = {}
    for side in SIDES:
        await both.on(side, f"CREATE ROLE {role} LOGIN")
        await both.on(side, f"GRANT SELECT, INSERT, UPDATE, DELETE ON trades, positions TO {role}")
        scheme, _, rest = both.databases[side].dsn.partition("://")
        plain[side] = Database(both.databases[side].name, f"{scheme}://{role}@{rest.rpartition('@')[2]}")
    try:
        pool = await both.open(databases=plain)
        trading = pool.service(SERVICE)
        await plans.register(both.control, plan(consistency="strong"), "test")
        await until_true("the plan was looked at", lambda: _knows(both, pool))
        await trading.execute("INSERT INTO trades (id) VALUES (1)")
        assert trading.level_in_force() == "eventual"
        assert await both.on("monolith", "SELECT count(*) FROM cutover.decision WHERE gid LIKE 'write:%'") == 1
        assert "until this pool is opened anew" in caplog.text
        await pool.close()
    finally:
        for side in SIDES:
            await both.on(side, f"DROP OWNED BY {role}")
            await both.on(side, f"DROP ROLE {role}")
