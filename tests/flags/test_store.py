"""The flag store: atomic rows, revisions, notifications, and a flip that is safe to run again."""

import asyncio
import json
from datetime import timedelta

import asyncpg
import pytest

from cutover.control import audit
from cutover.control.database import Control
from cutover.errors import Conflict, Refused
from cutover.flags import store

M, S = "ai-trader", "trading_engine"
LIMIT = timedelta(seconds=5)


async def actions(control: Control) -> list[str]:
    async with control.connection() as connection:
        assert await audit.verify(connection) == []
        return [row.action for row in reversed(await audit.entries(connection, M))]


async def test_a_route_begins_at_the_monolith_and_ensure_never_changes_it(control: Control) -> None:
    first = await store.ensure(control, M, S)
    assert (first.epoch, first.primary_side, first.read_from_new, first.write_to_new_primary, first.paused) == (
        0,
        "monolith",
        False,
        False,
        False,
    )
    await store.set_read_from_new(control, M, S, True, actor="alice")
    again = await store.ensure(control, M, S)
    assert again.read_from_new
    assert again.revision == first.revision + 1
    assert await store.all(control, M) == {S: again}
    assert await actions(control) == ["route.created", "route.read_from_new"]


async def test_a_service_without_flags_is_refused_with_what_to_do(control: Control) -> None:
    with pytest.raises(Refused, match="no flags yet"):
        await store.get(control, M, S)
    with pytest.raises(Refused, match="no flags yet"):
        await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    assert await store.find(control, M, S) is None


async def test_setting_the_same_value_again_changes_and_audits_nothing(control: Control) -> None:
    await store.ensure(control, M, S)
    first = await store.set_read_from_new(control, M, S, True, actor="alice")
    assert await store.set_read_from_new(control, M, S, True, actor="alice") == first
    assert (await actions(control)).count("route.read_from_new") == 1


async def test_each_change_is_notified_with_its_service(control: Control) -> None:
    await store.ensure(control, M, S)
    heard: asyncio.Queue[object] = asyncio.Queue()
    async with control.database.session("listener") as listener:
        await listener.add_listener(store.CHANNEL, lambda *args: heard.put_nowait(args[3]))
        await store.announce_pause(control, M, S, "p1", LIMIT)
        await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id="p1")
        async with asyncio.timeout(5):
            assert [await heard.get(), await heard.get()] == [f"{M}/{S}"] * 2


async def test_a_flip_moves_writes_and_reads_and_ends_the_pause_in_one_step(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.announce_pause(control, M, S, "p1", LIMIT)
    await store.flip(control, M, S, primary_side="service", epoch=3, actor="switch", pause_id="p1")
    route = await store.get(control, M, S)
    assert (route.epoch, route.primary_side, route.read_from_new, route.write_to_new_primary, route.pause_id) == (
        3,
        "service",
        True,
        True,
        None,
    )
    flags = await control.fetch("SELECT name, value FROM control.flag WHERE migration = $1 ORDER BY name", M)
    assert {row["name"]: json.loads(row["value"]) for row in flags} == route.flags
    assert route.flags == {
        "trading_engine_read_from_new": True,
        "trading_engine_write_to_new_primary": True,
        "trading_engine_percentage": 100,
    }


async def test_a_flip_run_again_changes_nothing_and_never_lowers_the_epoch(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=3, actor="switch", pause_id="p1")
    first = await store.get(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=3, actor="switch", pause_id="p1")
    assert await store.get(control, M, S) == first
    with pytest.raises(Refused, match="out of date"):
        await store.flip(control, M, S, primary_side="monolith", epoch=2, actor="switch", pause_id="p0")
    with pytest.raises(Conflict, match="belongs to service"):
        await store.flip(control, M, S, primary_side="monolith", epoch=3, actor="switch", pause_id="p1")
    assert await store.get(control, M, S) == first
    assert (await actions(control)).count("route.flipped") == 1


async def test_a_flip_run_again_still_ends_its_own_pause_but_no_other(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id="p1")
    await store.announce_pause(control, M, S, "p2", LIMIT)
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id="p1")
    assert (await store.get(control, M, S)).pause_id == "p2"
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id="p2")
    assert (await store.get(control, M, S)).pause_id is None


async def test_a_flip_is_not_held_up_by_a_long_transaction_that_will_audit(control: Control) -> None:
    await store.ensure(control, M, S)
    async with control.acting("alice", "long", migration=M) as connection:
        await connection.execute("SELECT 1")
        async with asyncio.timeout(5):
            await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    assert (await actions(control))[-2:] == ["route.flipped", "long"]


async def test_only_the_pause_that_was_named_is_lifted(control: Control) -> None:
    await store.ensure(control, M, S)
    paused = await store.announce_pause(control, M, S, "p1", LIMIT)
    assert (paused.pause_id, paused.pause_limit_ms) == ("p1", 5000)
    assert await store.announce_pause(control, M, S, "p1", LIMIT) == paused
    assert (await store.lift_pause(control, M, S, "p0")).pause_id == "p1"
    assert (await store.lift_pause(control, M, S, "p1")).pause_id is None
    assert (await store.lift_pause(control, M, S, "p1")).pause_id is None
    assert (await actions(control)).count("route.pause_lifted") == 1


async def test_a_second_pause_waits_for_the_first_unless_that_was_left_behind(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.announce_pause(control, M, S, "p1", LIMIT)
    with pytest.raises(Conflict, match="announced already"):
        await store.announce_pause(control, M, S, "p2", LIMIT)
    await control.execute("UPDATE control.route SET pause_started_at = pause_started_at - interval '10 s'")
    with pytest.raises(Conflict, match="limit of pause 'p1' has passed"):
        await store.announce_pause(control, M, S, "p1", LIMIT)
    assert (await store.announce_pause(control, M, S, "p2", LIMIT)).pause_id == "p2"


async def test_reads_do_not_leave_the_side_of_the_writes(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    with pytest.raises(Refused, match="roll the switch back"):
        await store.set_read_from_new(control, M, S, False, actor="alice")


async def test_a_share_of_the_reads_moves_and_all_of_them_is_the_read_flag(control: Control) -> None:
    await store.ensure(control, M, S)
    some = await store.set_percentage(control, M, S, 30, actor="alice", reason="a first look")
    assert (some.percentage, some.read_from_new) == (30, False)
    assert await store.set_percentage(control, M, S, 30, actor="bob") == some
    everything = await store.set_percentage(control, M, S, 100, actor="alice")
    assert (everything.percentage, everything.read_from_new) == (100, True)
    assert await store.set_read_from_new(control, M, S, True, actor="bob") == everything
    less = await store.set_percentage(control, M, S, 90, actor="alice")
    assert (less.percentage, less.read_from_new) == (90, False)
    assert await actions(control) == [
        "route.created", "route.percentage", "route.read_from_new", "route.read_from_new",
    ]  # fmt: skip
    async with control.connection() as connection:
        rows = await audit.entries(connection, M)
    assert [row.detail.get("value") for row in rows[:3]] == [False, True, None]
    assert (rows[2].actor, rows[2].detail) == ("alice", {"from": 0, "to": 30, "reason": "a first look"})


async def test_reads_called_back_leave_no_share_behind(control: Control) -> None:
    """`read_from_new` is false at 30 percent already: calling the reads back still has to move them."""
    await store.ensure(control, M, S)
    assert (await store.set_percentage(control, M, S, 30, actor="alice")).percentage == 30
    assert (await store.set_read_from_new(control, M, S, False, actor="alice")).percentage == 0


@pytest.mark.parametrize("value", [-1, 101])
async def test_a_share_is_between_0_and_100(control: Control, value: int) -> None:
    await store.ensure(control, M, S)
    with pytest.raises(Refused, match="0 to 100"):
        await store.set_percentage(control, M, S, value, actor="alice")


async def test_all_reads_go_with_the_writes_there_and_back(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.set_percentage(control, M, S, 30, actor="alice")
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    assert (await store.get(control, M, S)).percentage == 100
    with pytest.raises(Refused, match="roll the switch back"):
        await store.set_percentage(control, M, S, 90, actor="alice")
    assert (await store.set_percentage(control, M, S, 100, actor="alice")).percentage == 100
    await store.flip(control, M, S, primary_side="monolith", epoch=2, actor="switch", pause_id=None)
    route = await store.get(control, M, S)
    assert (route.percentage, route.read_from_new) == (0, False)


@pytest.mark.parametrize("wrong", ["percentage = 50", "read_from_new = false", "percentage = 101"])
async def test_the_table_itself_keeps_the_flags_of_a_service_in_step(control: Control, wrong: str) -> None:
    await store.ensure(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    with pytest.raises(asyncpg.CheckViolationError):
        await control.execute(f"UPDATE control.route SET {wrong}")


async def test_dropped_flags_are_gone_and_a_second_drop_is_nothing(control: Control) -> None:
    await store.ensure(control, M, S)
    await store.announce_pause(control, M, S, "p1", LIMIT)
    with pytest.raises(Refused, match="a pause stands"):
        await store.drop(control, M, S, actor="cleanup")
    await store.lift_pause(control, M, S, "p1")
    await store.flip(control, M, S, primary_side="service", epoch=3, actor="switch", pause_id=None)
    last = await store.get(control, M, S)
    await store.drop(control, M, S, actor="cleanup")
    await store.drop(control, M, S, actor="cleanup")
    assert await store.left(control, M) == []
    # no instance may take it for a service that has not been moved yet, nor is it given flags again
    for route in (await store.get(control, M, S), (await store.all(control, M))[S], await store.ensure(control, M, S)):
        assert (route.primary_side, route.read_from_new, route.percentage, route.epoch, route.revision) == (
            "service", True, 100, 3, last.revision,
        )  # fmt: skip
    assert await store.left(control, M) == []
    with pytest.raises(Refused):
        await store.announce_pause(control, M, S, "p2", LIMIT)
