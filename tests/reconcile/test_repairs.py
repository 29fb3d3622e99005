"""Repairs in their course: told, audited, stopped and begun again, overtaken by a switch; deadlines of cases."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast

import pytest

from cutover.control import audit
from cutover.control import conflicts as cases
from cutover.control.reports import Difference
from cutover.errors import NotYet, Refused, Unreachable
from cutover.plan.models import Table
from cutover.postgres import epoch
from cutover.postgres.databases import Side
from cutover.postgres.identifiers import TableName
from cutover.reconcile import conflicts, mending
from tests.reconcile.conftest import World, no_stream, until
from tests.reconcile.repairing import decide, differences, different, repair


async def test_a_tie_or_a_missing_time_is_told_even_where_the_plan_wants_no_alert_of_repairs(world: World) -> None:
    await different(world)
    told: list[str] = []

    async def alert(text: str) -> None:
        told.append(text)

    rules = Table(conflict="last-write-wins", timestamp="at", alert_on_conflict=False)
    found = await differences(world)
    dated = [d for d in found if d.key_json == '["2"]']
    assert (await repair(world, rules, dated, alert=alert)).repaired == 1
    assert told == []
    done = await repair(world, rules, [d for d in found if d not in dated], alert=alert)
    assert done.undated == 4
    assert "of 4 rows the times are equal or missing, so the source won" in told[-1]


async def test_a_missing_row_is_inserted_beside_constraints_that_are_checked_late_unless_a_value_of_it_is_taken(
    world: World,
) -> None:
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, name text UNIQUE DEFERRABLE INITIALLY DEFERRED, "
        "note text UNIQUE); INSERT INTO t SELECT n, 'name' || n, 'note' || n FROM generate_series(1, 9) n"
    )
    await world.right.execute(
        "DELETE FROM t WHERE id <= 3; INSERT INTO t VALUES (12, 'name2', NULL), (13, NULL, 'note3')"
    )
    missing = [d for d in await differences(world) if d.kind == "missing"]
    assert len(missing) == 3
    assert (await repair(world, Table(), missing)).repaired == 1
    here = await world.right.fetch("SELECT id FROM t ORDER BY id")
    assert [row["id"] for row in here] == [1, 4, 5, 6, 7, 8, 9, 12, 13]


async def test_nothing_is_written_once_a_switch_has_made_the_other_side_the_primary(world: World) -> None:
    """The direction of a repair is as old as its beginning; the epoch row says what holds at the write."""
    await different(world)
    found = await differences(world)
    for connection, side in ((world.left, "monolith"), (world.right, "service")):
        await epoch.install(connection, "svc", cast(Side, side))
    before = await world.right.fetch("SELECT t::text FROM t ORDER BY id")
    async with world.right.transaction():
        await epoch.set_epoch(world.right, "svc", "service", 1)
        running = asyncio.create_task(repair(world, Table(), found))
        async with world.pair.target.session("look") as look:
            await until(lambda: look.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
    with pytest.raises(Refused, match="this side is the primary now"):
        await running
    for kind in ("missing", "extra", "mismatched"):
        with pytest.raises(Refused, match="this side is the primary now"):
            await repair(world, Table(), [d for d in found if d.kind == kind])
    assert await world.right.fetch("SELECT t::text FROM t ORDER BY id") == before


async def test_nothing_is_written_while_the_primary_is_fenced(world: World) -> None:
    """The stream of the way back may have begun, and would bring the row to where it came from."""
    await different(world)
    found = await differences(world)
    for connection, side in ((world.left, "monolith"), (world.right, "service")):
        await epoch.install(connection, "svc", cast(Side, side))
    before = await world.right.fetch("SELECT t::text FROM t ORDER BY id")
    await epoch.set_epoch(world.left, "svc", "service", 1)
    for kind in ("missing", "extra", "mismatched"):
        with pytest.raises(NotYet, match="a switch is under way"):
            await repair(world, Table(), [d for d in found if d.kind == kind])
    assert await world.right.fetch("SELECT t::text FROM t ORDER BY id") == before
    await epoch.set_epoch(world.left, "svc", "monolith", 2)
    assert (await repair(world, Table(), found)).repaired == len(found)


async def test_a_worker_that_stops_while_it_holds_the_primary_s_rows_lets_them_go_and_inserts_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the session that holds them; a deletion may have gone by then, and the row must not come back."""
    await different(world)
    found = [d for d in await differences(world) if d.kind == "missing"]
    monkeypatch.setattr(mending, "HOLDER_LIMITS", {"idle_in_transaction_session_timeout": "300ms"})
    monkeypatch.setattr(mending, "HOLD", 20.0)
    before = await world.right.fetch("SELECT t::text FROM t ORDER BY id")

    async def stopped() -> None:
        await asyncio.wait_for(world.left.execute("DELETE FROM t WHERE id = 5"), 10)  # an application's, of a held row

    with pytest.raises(Unreachable):
        await repair(world, Table(), found, settle=stopped)
    assert await world.right.fetch("SELECT t::text FROM t ORDER BY id") == before


async def test_a_write_of_which_nothing_is_heard_is_broken_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await different(world)
    found = [d for d in await differences(world) if d.kind == "mismatched"]
    monkeypatch.setattr(mending, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(mending, "LOCK_TIMEOUT", "20s")
    async with world.right.transaction():
        await world.right.execute("SELECT FROM t FOR UPDATE")
        with pytest.raises(Unreachable):
            await asyncio.wait_for(repair(world, Table(), found), 10)


async def test_a_repair_is_in_the_audit_log_before_its_first_write_and_with_its_actor(world: World) -> None:
    await different(world)
    found = [d for d in await differences(world) if d.kind == "missing"]
    seen: list[str] = []

    async def looks() -> None:
        async with world.control.connection() as connection:
            seen.extend(entry.action for entry in await audit.entries(connection, "m"))

    await repair(world, Table(), found, settle=looks, actor="alice")
    assert seen == ["repair.begun"]
    async with world.control.connection() as connection:
        after, before = await audit.entries(connection, "m")
    assert (before.actor, before.detail["insert"], before.detail["database"]) == ("alice", 1, "service_db")
    assert (after.actor, after.action, after.detail["rows"]) == ("alice", "repair", 1)


async def test_a_written_row_that_is_on_its_way_to_change_is_looked_at_again_after_a_marker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2)")
    await world.right.execute("UPDATE t SET v = 0")
    found = await differences(world)
    settled: list[int] = []

    async def carries() -> None:
        settled.append(1)
        await world.right.execute("UPDATE t SET v = 7 WHERE id = 1")

    write = mending.update

    async def written_and_changed(*arguments: Any) -> Any:
        outcome = await write(*arguments)
        await world.left.execute("UPDATE t SET v = 7 WHERE id = 1")
        return outcome

    monkeypatch.setattr(conflicts, "update", written_and_changed)
    done = await repair(world, Table(), found, settle=carries)
    assert settled == [1]
    assert (done.repaired, done.still_different) == (2, 0)


async def test_a_repair_that_is_stopped_between_two_batches_goes_on_where_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 30) n"
    )
    await world.right.execute("UPDATE t SET v = 1")
    found = await differences(world)
    monkeypatch.setattr(conflicts, "BATCH", 10)

    async def batches() -> AsyncIterator[Sequence[Difference]]:
        yield found

    table = TableName("public", "t")
    begun = conflicts.repairs(world.pair, "forward", table, Table(), batches(), world.control, no_stream)
    async with aclosing(begun):
        first = await anext(begun)
    assert {step.outcome for step in first} == {conflicts.REPAIRED}
    assert await world.right.fetchval("SELECT count(*) FROM t WHERE v = 0") == 10
    done = await repair(world, Table(), found)
    assert (done.repaired, done.skipped) == (20, 10)
    assert {step.reason for step in done.steps[:10]} == {conflicts.EQUAL}


async def test_a_case_has_the_plans_deadline_and_is_overdue_after_it(world: World) -> None:
    await different(world)
    manual = Table(conflict="manual", decide_within=timedelta(hours=1))
    found = await differences(world)
    await repair(world, manual, found)
    opened = await cases.list_open(world.control, "m", "svc")
    assert all(abs(one.due_at - one.opened_at - timedelta(hours=1)) < timedelta(seconds=1) for one in opened)
    assert await cases.overdue(world.control, "m") == []
    # another plan, found again: the deadline follows it, and still counts from the opening
    await repair(world, Table(conflict="manual", decide_within=timedelta(microseconds=1)), found)
    (late,) = await cases.overdue(world.control, "m", "svc")
    assert (late.table, late.count, late.oldest, late.newest) == ("t", 6, opened[0].id, opened[-1].id)
    assert all(one.overdue for one in await cases.list_open(world.control, "m"))
    await decide(world, "3")
    (late,) = await cases.overdue(world.control, "m")
    assert late.count == 5
