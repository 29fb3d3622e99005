"""Repairs: each rule, only on the side that is not the primary, never over a row that changed."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cutover.control import audit, reports
from cutover.control import conflicts as cases
from cutover.errors import ConfigError
from cutover.plan.models import Table
from tests.reconcile.conftest import World
from tests.reconcile.repairing import decide, differences, different, repair


async def test_source_wins_makes_both_sides_the_same_and_leaves_the_primary_alone(world: World) -> None:
    await different(world)
    before = await world.left.fetch("SELECT t::text, xmin::text FROM t ORDER BY id")
    found = await differences(world)
    told: list[str] = []

    async def alert(text: str) -> None:
        told.append(text)

    plan = await repair(world, Table(conflict="source-wins"), found, dry_run=True, alert=alert)
    assert {(s.key[0], s.action) for s in plan.steps} == {
        ("1", "update"), ("2", "update"), ("3", "update"), ("4", "update"), ("5", "insert"), ("6", "delete"),
    }  # fmt: skip
    assert (plan.repaired, told) == (0, [])
    assert await differences(world) == found
    done = await repair(world, Table(conflict="source-wins"), found, alert=alert)
    assert (done.repaired, done.cases, done.skipped, done.still_different) == (6, 0, 0, 0)
    assert await differences(world) == []
    assert len(told) == 1
    assert "6 rows repaired" in told[0]
    assert await world.left.fetch("SELECT t::text, xmin::text FROM t ORDER BY id") == before
    again = await repair(world, Table(conflict="source-wins"), found)
    assert (again.repaired, again.skipped) == (0, 6)


async def test_in_reverse_the_service_is_the_source_and_the_monolith_is_mended(world: World) -> None:
    await different(world)
    await world.compare("t", "reverse")
    found = await reports.open_differences(world.control, "m", "svc", "t")
    done = await repair(world, Table(), found, direction="reverse")
    assert done.repaired == 6
    assert await world.left.fetchval("SELECT v FROM t WHERE id = 3") == "right"
    assert await world.left.fetchval("SELECT count(*) FROM t WHERE id = 6") == 1


async def test_last_write_wins_leaves_a_newer_other_side_to_a_person(world: World) -> None:
    await different(world)
    done = await repair(world, Table(conflict="last-write-wins", timestamp="at"), await differences(world))
    actions = {s.key[0]: (s.action, s.reason) for s in done.steps}
    assert actions["2"] == ("update", "the source is newer")
    assert actions["3"] == ("case", "the other side is newer, so the primary would have to change")
    assert actions["4"] == ("update", "no newer side can be told, so the source wins")
    assert (done.repaired, done.cases) == (5, 1)
    assert await world.right.fetchval("SELECT v FROM t WHERE id = 3") == "right"
    [case] = await cases.list_open(world.control, "m", "svc")
    assert (case.key_json, case.kind, case.rule) == ('["3"]', "mismatched", "last-write-wins")


async def test_manual_opens_a_case_for_each_key_and_writes_nothing(world: World) -> None:
    await different(world)
    found = await differences(world)
    for _ in range(2):
        done = await repair(world, Table(conflict="manual"), found)
        assert (done.repaired, done.cases) == (0, 6)
    opened = await cases.list_open(world.control, "m", "svc")
    assert {(c.key_json, c.seen) for c in opened} == {(f'["{n}"]', 2) for n in range(1, 7)}
    assert await differences(world) == found


async def test_what_a_person_decided_is_applied_by_the_next_pass_and_closes_the_case(world: World) -> None:
    await different(world)
    manual = Table(conflict="manual")
    await repair(world, manual, await differences(world))
    before = await world.left.fetch("SELECT t::text, xmin::text FROM t ORDER BY id")
    decided = [await decide(world, key) for key in ("3", "5", "6")]
    done = await repair(world, manual, await differences(world))
    assert (done.repaired, done.cases) == (3, 3)
    assert {one.reason for one in done.steps if one.outcome == "repaired"} == {
        "alice decided that the primary's row holds"
    }
    assert {d.key_json for d in await differences(world)} == {'["1"]', '["2"]', '["4"]'}
    closed = [await cases.get(world.control, "m", number) for number in decided]
    assert {(one.resolved_by, one.resolution) for one in closed} == {
        ("alice", "the primary's row was written over the other side")
    }
    assert await world.left.fetch("SELECT t::text, xmin::text FROM t ORDER BY id") == before
    assert len(await cases.list_open(world.control, "m", "svc")) == 3


async def test_a_decision_does_not_outlive_the_rows_that_it_was_about(world: World) -> None:
    await different(world)
    manual = Table(conflict="manual")
    await repair(world, manual, await differences(world))
    number = await decide(world, "3")
    await world.right.execute("UPDATE t SET v = 'changed after the decision' WHERE id = 3")
    done = await repair(world, manual, await differences(world))
    assert done.repaired == 0
    assert await world.right.fetchval("SELECT v FROM t WHERE id = 3") == "changed after the decision"
    case = await cases.get(world.control, "m", number)
    assert (case.decision, case.resolved_at) == (None, None)
    async with world.control.connection() as connection:
        newest = (await audit.entries(connection, "m"))[0]
    assert (newest.action, newest.detail["by"]) == ("conflict.decision_cleared", "alice")


async def test_a_decision_is_about_the_primary_of_its_time(world: World) -> None:
    await different(world)
    manual = Table(conflict="manual")
    await repair(world, manual, await differences(world))
    await decide(world, "3")
    await world.compare("t", "reverse")
    found = await reports.open_differences(world.control, "m", "svc", "t")
    done = await repair(world, manual, found, direction="reverse")
    assert (done.repaired, done.cases) == (0, 6)


async def test_a_pass_that_finds_both_sides_alike_closes_the_case(world: World) -> None:
    await different(world)
    manual = Table(conflict="manual")
    await repair(world, manual, await differences(world))
    mended = await decide(world, "3", "mended")
    await decide(world, "4", "mended")
    await world.both("UPDATE t SET at = '2024-05-05', v = 'agreed' WHERE id = 3")
    earlier = await world.compare("t")
    stale = earlier.model_copy(update={"started_at": earlier.started_at - timedelta(hours=1)})
    await cases.close_settled(world.control, stale)
    assert len(await cases.list_open(world.control, "m", "svc")) == 6
    await cases.close_settled(world.control, earlier.model_copy(update={"complete": False}))
    assert len(await cases.list_open(world.control, "m", "svc")) == 6
    await cases.close_settled(world.control, earlier)
    case = await cases.get(world.control, "m", mended)
    assert (case.resolved_by, case.resolution) == ("alice", "both sides agree")
    assert len(await cases.list_open(world.control, "m", "svc")) == 5
    await repair(world, manual, await differences(world))
    assert await cases.decided(world.control, "m", "svc", "t") == {}


async def test_a_row_that_changed_since_it_was_confirmed_is_left_alone(world: World) -> None:
    await different(world)
    found = await differences(world)
    await world.right.execute("UPDATE t SET v = 'newer' WHERE id IN (1, 6)")
    await world.left.execute("UPDATE t SET v = 'newer' WHERE id = 5")
    done = await repair(world, Table(), found)
    outcome = {s.key[0]: s.outcome or s.reason for s in done.steps}
    assert done.repaired == 3
    assert {s.key[0]: s.reason for s in done.steps if s.action == "skip"} == dict.fromkeys(
        ("1", "5", "6"), "changed since it was confirmed"
    ), outcome
    assert await world.right.fetchval("SELECT count(*) FROM t WHERE v = 'newer'") == 2


@pytest.mark.parametrize("key", ["1", "6"])
async def test_the_guard_holds_for_a_change_that_comes_while_the_repair_waits_for_the_lock(
    world: World, key: str
) -> None:
    await different(world)
    found = [d for d in await differences(world) if d.key_json == f'["{key}"]']
    async with world.pair.target.session("applies") as applier:
        transaction = applier.transaction()
        await transaction.start()
        await applier.execute("UPDATE t SET v = 'from the stream' WHERE id = $1", int(key))
        running = asyncio.create_task(repair(world, Table(), found))
        while not await world.right.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            assert not running.done()
            await asyncio.sleep(0.005)
        await transaction.commit()
    done = await running
    assert [s.outcome for s in done.steps] == ["changed since it was confirmed"]
    assert await world.right.fetchval("SELECT v FROM t WHERE id = $1", int(key)) == "from the stream"


async def test_an_insert_holds_the_primarys_row_until_it_is_written(world: World) -> None:
    """Else a deletion could pass by the sink before the insert, and the row would come back."""
    await different(world)
    found = [d for d in await differences(world) if d.kind == "missing"]
    refused: list[str] = []

    async def deletes() -> None:
        async with world.pair.monolith.session("app", lock_timeout="50ms") as app:
            try:
                await app.execute("DELETE FROM t WHERE id = 5")
            except Exception as error:
                refused.append(type(error).__name__)

    done = await repair(world, Table(), found, settle=deletes)
    assert refused == ["LockNotAvailableError"]
    assert done.repaired == 1


async def test_an_insert_that_the_stream_brings_meanwhile_is_not_written_twice(world: World) -> None:
    await different(world)
    found = [d for d in await differences(world) if d.kind == "missing"]

    async def brings() -> None:
        await world.right.execute(
            "INSERT INTO t (id, v, n, at, doc, bin, arr) OVERRIDING SYSTEM VALUE "
            "VALUES (5, 'v', 1.50, '2024-01-01', '{\"a\": 1.0}', '\\x00ff', '{1}')"
        )

    done = await repair(world, Table(), found, settle=brings)
    assert done.repaired == 0
    assert await differences(world) != found
    assert await world.right.fetchval("SELECT count(*) FROM t WHERE id = 5") == 1


async def test_a_row_that_another_one_stands_in_the_way_of_becomes_a_case_and_the_others_are_mended(
    world: World,
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE, v int)")
    await world.both("INSERT INTO t SELECT n, 'c' || n, n FROM generate_series(1, 10) AS n")
    await world.right.execute("UPDATE t SET v = 0 WHERE id IN (7, 8)")
    await world.right.execute("DELETE FROM t WHERE id = 9; UPDATE t SET code = 'c9' WHERE id = 10")
    await world.left.execute("UPDATE t SET code = 'c8x' WHERE id = 8")
    found = [d for d in await differences(world) if d.key_json != '["10"]']
    done = await repair(world, Table(), found)
    assert (done.repaired, done.cases) == (2, 1)
    [case] = await cases.list_open(world.control, "m", "svc")
    assert case.key_json == '["9"]'
    await decide(world, "9")
    assert (await repair(world, Table(), [d for d in found if d.key_json == '["9"]'])).cases == 1
    assert (await cases.get(world.control, "m", case.id)).decision is None


async def test_a_repair_beside_a_running_stream_does_not_stop_it(world: World, live: Callable[..., Any]) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.left.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 100) AS n")
    stream = await live("t")
    await world.right.execute("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = -1 WHERE id % 5 = 0")
    await world.right.execute("INSERT INTO t VALUES (200, 1)")
    await world.compare("t", settle=stream.settle)
    found = await reports.open_differences(world.control, "m", "svc", "t")
    stop = asyncio.Event()

    async def write() -> None:
        async with world.pair.monolith.session("app") as app:
            key = 0
            while not stop.is_set():
                key = key % 100 + 1
                await app.execute("UPDATE t SET v = v + 1 WHERE id = $1", key)
                await app.execute("DELETE FROM t WHERE id = $1", 101 - key)
                await app.execute("INSERT INTO t VALUES ($1, 1) ON CONFLICT DO NOTHING", 101 - key)

    writer = asyncio.create_task(write())
    try:
        for _ in range(10):
            await repair(world, Table(), found, settle=stream.settle)
            await world.compare("t", settle=stream.settle)
            found = await reports.open_differences(world.control, "m", "svc", "t")
    finally:
        stop.set()
        await writer
    for _ in range(2):
        await world.compare("t", settle=stream.settle)
        found = await reports.open_differences(world.control, "m", "svc", "t")
        await repair(world, Table(), found, settle=stream.settle)
    report = await world.compare("t", settle=stream.settle)
    assert (report.differences, report.unsettled, report.rows_source) == (0, 0, report.rows_target)
    errors = await world.right.fetchval("SELECT sum(apply_error_count) FROM pg_stat_subscription_stats")
    assert errors in (0, None)


async def test_a_rule_by_a_column_that_cannot_date_a_row_says_so(world: World) -> None:
    await different(world)
    found = await differences(world)
    for column, words in (("gone", "there is no such column"), ("doc", "its type jsonb does not date a row")):
        with pytest.raises(ConfigError, match=rf"`timestamp: {column}` of its conflict rule: {words}"):
            await repair(world, Table(conflict="last-write-wins", timestamp=column), found)
