"""Statements that commit on their way (CALL, DO, a text with COMMIT in it): what they have done is not done again."""

import asyncio

import asyncpg
import pytest

from cutover.dualwrite import PartlyDone, RoutedPool, ServicePool
from cutover.dualwrite.statements import may_commit
from cutover.postgres.databases import Side
from tests.dualwrite.conftest import SERVICE, World
from tests.dualwrite.waiting import until

SIDES: tuple[Side, Side] = ("monolith", "service")
#: A batch is one row more; `tried` counts the tries, for what it draws is not rolled back.
MADE = """
CREATE SEQUENCE tried;
CREATE FUNCTION batch() RETURNS void LANGUAGE sql AS $$
    INSERT INTO trades (id) SELECT coalesce(max(id), 0) + 1 FROM trades $$;
CREATE FUNCTION meet(code text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tried') = 1 THEN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'met'; END IF; END $$;
CREATE PROCEDURE fill(code text) LANGUAGE plpgsql AS $$ BEGIN
    PERFORM batch(); COMMIT; PERFORM batch(); PERFORM meet(code); END $$;
CREATE PROCEDURE wait_between() LANGUAGE plpgsql AS $$ BEGIN
    PERFORM batch(); COMMIT; PERFORM pg_advisory_xact_lock(1); PERFORM batch(); END $$
"""
TEXTS = {
    "call": "CALL fill('{}')",
    "call behind a comment": "-- nightly\n/* all */ call fill('{}')",
    "do": "DO $$ BEGIN PERFORM batch(); COMMIT; PERFORM batch(); PERFORM meet('{}'); END $$",
    "do that calls": "DO $$ BEGIN CALL fill('{}'); END $$",
    "text": "SELECT batch(); COMMIT; SELECT batch(), meet('{}')",
}


async def made(world: World) -> None:
    for side in SIDES:
        async with world.databases[side].session("test") as connection:
            await connection.execute(MADE)


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_the_batch_that_was_committed_before_a_serialization_failure_or_deadlock_is_there_once(
    world: World, trading: ServicePool, text: str, code: str
) -> None:
    await made(world)
    with pytest.raises(asyncpg.PostgresError, match="met") as caught:
        await trading.execute(text.format(code))
    assert caught.value.sqlstate == code
    assert await world.ids("monolith") == [1]
    assert await world.on("monolith", "SELECT last_value FROM tried") == 1


async def test_a_procedure_called_for_its_rows_is_not_called_again_either(world: World, trading: ServicePool) -> None:
    await made(world)
    with pytest.raises(asyncpg.SerializationError):
        await trading.fetch("CALL fill($1)", "40001")
    assert await world.ids("monolith") == [1]


@pytest.mark.parametrize("how", ["statement", "block"])
@pytest.mark.parametrize(
    "text",
    [
        "CALL wait_between()",
        "SELECT batch(); COMMIT; SELECT pg_advisory_xact_lock(1); INSERT INTO trades (id) VALUES (2)",
    ],
)
async def test_one_that_meets_the_fence_says_that_what_it_had_committed_stands(
    world: World, trading: ServicePool, text: str, how: str
) -> None:
    await made(world)

    async def work() -> None:
        if how == "statement":
            await trading.execute(text)
            return
        async with trading.acquire() as connection:
            await connection.execute(text)

    async with world.databases["monolith"].session("rival") as rival:
        await rival.execute("SELECT pg_advisory_lock(1)")
        working = asyncio.create_task(work())
        await until(lambda: world.on("monolith", "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
        await world.switch_databases("service", 1)
        await world.flip("service", 1, pause=None)
        await rival.execute("SELECT pg_advisory_unlock(1)")
        with pytest.raises(PartlyDone, match="committed") as caught:
            await working
    assert not caught.value.retryable
    assert await world.ids("monolith") == [1]
    assert await world.ids("service") == []
    assert trading.gate.counters.fenced == 1


async def test_several_statements_that_commit_together_are_done_again(
    world: World, pool: RoutedPool, trading: ServicePool
) -> None:
    await made(world)
    await trading.execute("INSERT INTO trades (id, side) VALUES (1, 'a; b'); SELECT meet('40001')")
    assert await world.ids("monolith") == [1]
    assert pool.stats()[SERVICE].retried == 1


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("CALL p()", True),
        ("  (call p())", True),
        ("/* a */ -- b\nDO $$BEGIN END$$", True),
        ("INSERT INTO t VALUES (1); -- a\n COMMIT", True),
        ("BEGIN; INSERT INTO t VALUES (1); end;", True),
        ("INSERT INTO t VALUES (1); prepare transaction 'a'", True),
        ("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)", False),
        ("INSERT INTO t VALUES (1);", False),
        ("INSERT INTO t VALUES ('CALL p(); DO')", False),
        ("-- CALL p(); COMMIT\nINSERT INTO t VALUES (1)", False),
        ("SELECT pay($1)", False),
        ("INSERT INTO calls VALUES (1); SELECT done()", False),
    ],
)
def test_what_may_commit_is_told_by_its_words(sql: str, expected: bool) -> None:
    assert may_commit(sql) is expected
