"""The first copy beside changes that are applied before, during and after it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cutover.postgres import outbox_checksum, outbox_copy, outbox_sink
from cutover.streams.outbox import Backfill
from cutover.streams.outbox.sessions import open_ends
from tests.streams.outbox_world import World

#: One key of each kind; what happens to it after the range's snapshot is in its note.
KEYS = {
    1: "UPDATE items SET note = 'new' WHERE id = 1",
    2: "DELETE FROM items WHERE id = 2",
    3: "DELETE FROM items WHERE id = 3; INSERT INTO items VALUES (3, 'n3', 'again')",
    4: "UPDATE items SET id = 40 WHERE id = 4",
    5: "UPDATE items SET name = 'other' WHERE id = 5; INSERT INTO items VALUES (50, 'n5', 'has its name')",
    6: "DELETE FROM items WHERE id = 6; INSERT INTO items VALUES (6, 'n6'); DELETE FROM items WHERE id = 6",
}


@pytest.fixture
async def copying(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[World, Callable[..., None]]:
    """A stream whose copy has been planned, and a way to let something happen around the write of a range."""
    await world.monolith.execute("INSERT INTO items SELECT n, 'n' || n, 'old' FROM generate_series(1, 6) n")
    await world.stream().start(copy=True)
    write = outbox_copy._write

    def around(before: Callable[[], Awaitable[None]] | None, after: Callable[[], Awaitable[None]] | None) -> None:
        async def held_up(sink: Any, part: outbox_copy.Range, *arguments: Any) -> Any:
            mine = part.flow.name == "items"
            if before and mine:
                await before()
            written = await write(sink, part, *arguments)
            if after and mine:
                await after()
            return written

        monkeypatch.setattr(outbox_copy, "_write", held_up)

    return world, around


async def test_what_is_applied_between_a_ranges_snapshot_and_its_write_wins(
    copying: tuple[World, Callable[..., None]],
) -> None:
    world, around = copying
    async with world.hands() as hands:

        async def change() -> None:
            for sql in KEYS.values():
                await world.monolith.execute(sql)
            await hands.drain()

        around(change, None)
        await Backfill(world.pair, "forward").run(workers=1)
    await world.require_equal()


async def test_what_is_applied_while_the_copied_rows_are_not_committed_wins(
    copying: tuple[World, Callable[..., None]],
) -> None:
    """Deletes do not see the copied rows, and do not wait for them: the sweep at the end takes those."""
    world, around = copying
    async with world.hands() as hands:

        async def change() -> None:
            await world.monolith.execute("DELETE FROM items WHERE id IN (2, 6)")
            await hands.drain()

        around(None, change)
        await Backfill(world.pair, "forward").run(workers=1)
        assert await world.service.fetchval("SELECT array_agg(id ORDER BY id) FROM items") == [1, 3, 4, 5]
    await world.require_equal()


async def test_a_delete_that_commits_after_the_copied_rows_did_is_waited_for(
    copying: tuple[World, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had not seen the copied row, and the sweep would not see its tombstone."""
    world, around = copying
    deleted, may_commit = asyncio.Event(), asyncio.Event()
    write = outbox_sink._write

    async def held_up(*arguments: Any, **named: Any) -> None:
        await write(*arguments, **named)
        deleted.set()
        await may_commit.wait()

    monkeypatch.setattr(outbox_sink, "_write", held_up)
    async with world.hands() as hands:
        waiting: list[asyncio.Task[None]] = []

        async def change() -> None:
            await world.monolith.execute("DELETE FROM items WHERE id = 2")
            waiting.append(asyncio.create_task(hands.drain()))
            await deleted.wait()
            asyncio.get_running_loop().call_later(0.5, may_commit.set)

        around(None, change)
        await Backfill(world.pair, "forward").run(workers=1)
        assert waiting[0].done() or may_commit.is_set()
        await waiting[0]
    await world.require_equal()


async def test_an_apply_that_writes_a_row_which_a_copy_holds_goes_on_after_it(
    copying: tuple[World, Callable[..., None]],
) -> None:
    world, around = copying
    async with world.hands() as hands:
        waiting: list[asyncio.Task[None]] = []

        async def change() -> None:
            for sql in KEYS.values():
                await world.monolith.execute(sql)
            waiting.append(asyncio.create_task(hands.drain()))
            await asyncio.sleep(0.2)

        around(None, change)
        await Backfill(world.pair, "forward").run(workers=1)
        await waiting[0]
        await hands.drain()
        assert await world.stream().held() == []
    await world.require_equal()


async def test_changes_that_wait_until_the_copy_is_over_win(copying: tuple[World, Callable[..., None]]) -> None:
    world, around = copying

    async def change() -> None:
        for sql in KEYS.values():
            await world.monolith.execute(sql)

    around(change, None)
    await Backfill(world.pair, "forward").run(workers=1)
    async with world.hands() as hands:
        await hands.drain()
        assert await world.stream().held() == []
    await world.require_equal()


async def test_a_table_with_a_unique_constraint_that_is_checked_late_is_copied_beside_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a conflict with such a constraint the server takes no notice by itself (ON CONFLICT without a key)."""
    for connection in (world.monolith, world.service):
        await connection.execute(
            "ALTER TABLE items DROP CONSTRAINT items_name_key, ADD CONSTRAINT late UNIQUE (name) DEFERRABLE "
            "INITIALLY DEFERRED; CREATE UNIQUE INDEX ON items (lower(note)) WHERE note <> 'old'"
        )
    await world.monolith.execute("INSERT INTO items SELECT n, 'n' || n, 'note' || n FROM generate_series(1, 6) n")
    await world.stream().start(copy=True)
    write = outbox_copy._write

    async def after_changes(sink: Any, part: outbox_copy.Range, *arguments: Any) -> Any:
        if part.flow.name == "items":
            await world.monolith.execute(
                "BEGIN; UPDATE items SET name = 'n2', note = NULL WHERE id = 1;"
                "UPDATE items SET name = 'n1', note = 'NOTE1' WHERE id = 2; COMMIT; DELETE FROM items WHERE id = 3;"
                "INSERT INTO items VALUES (7, 'n3', 'note3'); UPDATE items SET note = 'other' WHERE id = 4;"
                "INSERT INTO items VALUES (8, 'n8', 'NOTE4')"
            )
            await hands.drain()
            await world.monolith.execute("UPDATE items SET name = 'late' WHERE id = 5")
        return await write(sink, part, *arguments)

    monkeypatch.setattr(outbox_copy, "_write", after_changes)
    async with world.hands() as hands:
        await Backfill(world.pair, "forward").run(workers=1)
        await hands.drain()
        assert await world.stream().held() == []
    await world.require_equal()


async def test_rows_that_come_after_the_ranges_were_cut_are_left_to_their_intents(world: World) -> None:
    """However many they are by the time the last range is read: it is held in memory."""
    await world.monolith.execute(
        "INSERT INTO items SELECT n, 'n' || n, 'old' FROM generate_series(1, 6) n;"
        "INSERT INTO parts VALUES ('a', 1, 'x')"
    )
    await world.stream().start(copy=True)
    await world.monolith.execute(
        "INSERT INTO items SELECT n, 'n' || n, 'later' FROM generate_series(7, 90) n; DELETE FROM items WHERE id = 6;"
        "INSERT INTO parts VALUES ('a', 2, 'later'), ('b', 1, 'later'); INSERT INTO kinds (amount) VALUES (1.0)"
    )
    await Backfill(world.pair, "forward").run()
    copied = {p.table: (p.stage, p.rows_copied) for p in await world.stream().progress()}
    assert copied == {"items": ("ready", 5), "parts": ("ready", 1), "kinds": ("ready", 0)}
    async with world.hands() as hands:
        await hands.drain()
    await world.require_equal()


async def test_a_copy_of_many_ranges_that_is_ended_in_the_middle_goes_on_where_it_stood(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_copy, "CHUNK_BYTES", 16 << 10)
    await world.monolith.execute(
        "INSERT INTO items SELECT n, 'n' || n, repeat('x', 50) FROM generate_series(1, 4000) n; ANALYZE items"
    )
    await world.stream().start(copy=True)
    seen: list[int] = []

    async def break_off(_: float) -> None:
        seen.append(1)
        if len(seen) == 8:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await Backfill(world.pair, "forward").run(rest=break_off)
    items = {p.table: p for p in await world.stream().progress()}["items"]
    assert items.stage == "copying"
    assert 0 < items.rows_copied < 4000
    # a range that has been done is not copied by anybody again
    async with open_ends(world.pair, "forward", "copy", copy=True) as ends:
        before = await world.service.fetchval("SELECT count(*) FROM cutover.backfill_chunk WHERE done")
        hashes = await outbox_checksum.row_hashes(ends.source, ends.sink, ends.flows)
        turns = {name: asyncio.Lock() for name in ends.flows}
        job = outbox_copy.Job(world.pair.service, "forward", ends.flows, hashes, turns)
        await outbox_copy.copy_next(ends.source, ends.sink, job)
        assert await world.service.fetchval("SELECT count(*) FROM cutover.backfill_chunk WHERE done") == before + 1
    await Backfill(world.pair, "forward").run()
    assert {p.stage for p in await world.stream().progress()} == {"ready"}
    await world.require_equal()
