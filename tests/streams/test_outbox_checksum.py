"""Each range of the first copy is proved by the checksum of its rows, as they were read and as they stand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cutover.errors import GateClosed
from cutover.postgres import outbox_checksum, outbox_copy, outbox_schema
from cutover.postgres.databases import Database
from cutover.streams.outbox import Backfill
from cutover.streams.outbox.sessions import open_ends
from tests.streams.outbox_world import World, open_world

#: Fires for our own writers too, which are in replica mode.
SPOILED = """
CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
CREATE TRIGGER spoil BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION spoil();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER spoil;
"""


@pytest.fixture
async def begun(world: World) -> World:
    """A stream whose copy has been planned, of two rows of each table."""
    await world.monolith.execute(
        """
        INSERT INTO items VALUES (1, 'one', 'a secret'), (2, 'two', NULL);
        INSERT INTO parts VALUES ('a', 1, 'x'), ('b', 1, NULL);
        INSERT INTO kinds (amount, at, data, list, feeling) VALUES
            (1.50, '2024-05-05 10:11:12.131415Z', '{"a": 1.0}', '{a,NULL}', 'sad'), (2, NULL, NULL, NULL, NULL)
        """
    )
    await world.stream().start(copy=True)
    return world


async def chunks(world: World) -> dict[str, tuple[object, ...]]:
    rows = await world.service.fetch(
        "SELECT tbl, done, rows, passed_over, checksum FROM cutover.backfill_chunk ORDER BY tbl, chunk"
    )
    return {row["tbl"]: tuple(row.values())[1:] for row in rows}


@pytest.mark.parametrize(
    ("table", "body", "says"),
    [
        ("items", "NEW.note := upper(NEW.note); RETURN NEW;", "the checksum of its 2 rows"),
        ("items", "IF NEW.id = 2 THEN NEW.note := ''; END IF; RETURN NEW;", "the checksum of its 2 rows"),
        ("items", "IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW;", "1 of 2 rows"),
        ("parts", "NEW.body := coalesce(NEW.body, 'none'); RETURN NEW;", "the checksum of its 2 rows"),
        ("kinds", "NEW.amount := trim_scale(NEW.amount); RETURN NEW;", "the checksum of its 2 rows"),
        ("kinds", "NEW.at := NEW.at + interval '1 microsecond'; RETURN NEW;", "the checksum of its 2 rows"),
    ],
)
async def test_what_changes_rows_at_the_target_is_found_and_nothing_of_the_range_is_kept(
    begun: World, table: str, body: str, says: str
) -> None:
    await begun.service.execute(SPOILED.format(table=table, body=body))
    with pytest.raises(GateClosed, match=f"table {table}, range 0: .*{says}") as raised:
        await Backfill(begun.pair, "forward").run(workers=1)
    assert "secret" not in str(raised.value).lower()
    assert (await chunks(begun))[table] == (False, 0, 0, None)
    assert await begun.service.fetchval(f"SELECT count(*) FROM {table}") == 0
    await begun.service.execute(f"DROP TRIGGER spoil ON {table}")
    await Backfill(begun.pair, "forward").run()
    await begun.require_equal()


async def test_a_row_that_is_lost_on_the_way_is_found(begun: World, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = outbox_copy._copy

    async def lossy(sink: Any, schema: str, table: str, part: outbox_copy.Range, data: list[bytes]) -> None:
        if part.flow.name == "kinds":  # of a type of its own, so it travels as text
            data = [b"".join(data).split(b"\n", 1)[1]]
        await copy(sink, schema, table, part, data)

    monkeypatch.setattr(outbox_copy, "_copy", lossy)
    with pytest.raises(GateClosed, match=r"table kinds, range 0: .*1 of 2 rows"):
        await Backfill(begun.pair, "forward").run(workers=1)
    assert (await chunks(begun))["kinds"] == (False, 0, 0, None)


async def carried_first(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Changes that are applied between a range's snapshot and its write: of row 1, and of a row that is new."""
    write = outbox_copy._write
    hands = world.hands()

    async def after_changes(sink: Any, part: outbox_copy.Range, *arguments: Any) -> Any:
        if part.flow.name == "items":
            await world.monolith.execute(
                "UPDATE items SET note = 'new' WHERE id = 1; INSERT INTO items VALUES (9, 'nine')"
            )
            async with hands as at_work:
                await at_work.drain()
        return await write(sink, part, *arguments)

    monkeypatch.setattr(outbox_copy, "_write", after_changes)
    return lambda: Backfill(world.pair, "forward").run(workers=1)


async def test_rows_that_are_there_already_are_left_out_of_both_sums(
    begun: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await carried_first(begun, monkeypatch)
    await run()
    done, rows, passed_over, checksum = (await chunks(begun))["items"]
    assert (done, rows, passed_over) == (True, 1, 1)
    async with open_ends(begun.pair, "forward", "copy", copy=True) as ends:
        hashes = await outbox_checksum.row_hashes(ends.source, ends.sink, ends.flows)
        flow = ends.flows["items"]
        row_two = await outbox_checksum.as_read(ends.source, flow, hashes["items"], ("1",), ("2",))
    assert (row_two.rows, row_two.total) == (1, int(str(checksum)))
    await begun.require_equal()


async def test_what_changes_rows_is_found_beside_rows_that_are_there_already(
    begun: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await carried_first(begun, monkeypatch)
    body = "IF NEW.id = 2 THEN NEW.note := 'spoiled'; END IF; RETURN NEW;"
    await begun.service.execute(SPOILED.format(table="items", body=body))
    with pytest.raises(GateClosed, match=r"table items, range 0: .*the checksum of its 1 rows"):
        await run()
    assert (await chunks(begun))["items"] == (False, 0, 0, None)


async def test_a_copy_that_an_earlier_version_has_begun_goes_on_with_checksums(begun: World) -> None:
    await begun.service.execute(
        "ALTER TABLE cutover.backfill_chunk DROP COLUMN checksum, DROP COLUMN passed_over; "
        "INSERT INTO cutover.backfill_chunk (service, direction, tbl, chunk, low, high, done, rows) "
        "SELECT service, direction, tbl, 1, '{100}', NULL, true, 0 FROM cutover.backfill_chunk WHERE tbl = 'items'"
    )
    await Backfill(begun.pair, "forward").run()
    await outbox_schema.install(begun.service, begun.pair.service)
    done = await begun.service.fetch("SELECT chunk, checksum IS NOT NULL AS proved FROM cutover.backfill_chunk")
    assert sorted(tuple(row) for row in done) == [(0, True), (0, True), (0, True), (1, False)]
    await begun.require_equal()


#: An enum of which the two sides have another order: a key that sorts differently, as text does by other collations.
LETTERS = "CREATE TYPE letter AS ENUM ({}); " \
    "CREATE TABLE items (id letter, n int, note text, PRIMARY KEY (id, n)); " \
    "CREATE TABLE parts (id int PRIMARY KEY); CREATE TABLE kinds (id int PRIMARY KEY);"  # fmt: skip
ITEMS = "SELECT array_agg(row(id::text, n, note) ORDER BY id::text, n) FROM items"


@pytest.fixture
async def sorted_otherwise(
    monolith_db: Database, service_db: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """A copy of several ranges has been planned, of a table whose key sorts in another order at the target."""
    letters = ["'a'", "'b'", "'c'", "'d'", "'e'"]
    ddl = [LETTERS.format(", ".join(order)) for order in (letters, [letters[n] for n in (3, 0, 4, 2, 1)])]
    monkeypatch.setattr(outbox_copy, "CHUNK_BYTES", 8 << 10)
    async with open_world(monolith_db, service_db, "sorted", *ddl) as world:
        await world.monolith.execute(
            "INSERT INTO items SELECT substr('abcde', 1 + n % 5, 1)::letter, n, repeat('x', 50) "
            "FROM generate_series(1, 2000) n; ANALYZE items"
        )
        await world.stream().start(copy=True)
        assert await world.service.fetchval("SELECT count(*) FROM cutover.backfill_chunk WHERE tbl = 'items'") > 5
        yield world


async def test_a_table_whose_key_sorts_in_another_order_at_the_target_is_copied_and_proved(
    sorted_otherwise: World,
) -> None:
    world = sorted_otherwise
    await world.monolith.execute("UPDATE items SET note = 'newer' WHERE n % 100 = 0")
    async with world.hands() as hands:
        await hands.drain()  # some rows are there before the copy
    await Backfill(world.pair, "forward").run()
    assert await world.service.fetchval(ITEMS) == await world.monolith.fetchval(ITEMS)
    [found] = await world.service.fetch(
        "SELECT sum(rows), sum(passed_over), bool_and(checksum IS NOT NULL) FROM cutover.backfill_chunk "
        "WHERE tbl = 'items'"
    )
    assert tuple(found) == (1980, 20, True)


@pytest.mark.parametrize(
    "body", ["IF NEW.n = 7 THEN NEW.note := 'spoiled'; END IF; RETURN NEW;", "IF NEW.n = 7 THEN RETURN NULL; END IF; "
             "RETURN NEW;", "IF NEW.n = 7 THEN NEW.n := -7; END IF; RETURN NEW;"],
)  # fmt: skip
async def test_what_changes_rows_is_found_where_the_key_sorts_in_another_order(
    sorted_otherwise: World, body: str
) -> None:
    await sorted_otherwise.service.execute(SPOILED.format(table="items", body=body))
    with pytest.raises(GateClosed, match=r"table items, range \d+: "):
        await Backfill(sorted_otherwise.pair, "forward").run(workers=1)


async def test_two_copiers_read_while_one_of_them_writes(begun: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows reach the end of the key's index one range after the other."""
    monkeypatch.setattr(outbox_copy, "CHUNK_BYTES", 16 << 10)
    await begun.stream().drop()
    await begun.monolith.execute(
        "INSERT INTO items SELECT n, 'n' || n, repeat('x', 50) FROM generate_series(10, 4000) n; ANALYZE items"
    )
    await begun.stream().start(copy=True)
    read, copy = outbox_copy._read, outbox_copy._copy
    writing: set[str] = set()
    most: dict[str, int] = {"read": 0, "write": 0}

    async def reading(source: Any, part: outbox_copy.Range) -> Any:
        most["read"] += bool(writing)
        return await read(source, part)

    async def alone(sink: Any, schema: str, table: str, part: outbox_copy.Range, data: list[bytes]) -> None:
        assert part.flow.name not in writing
        writing.add(part.flow.name)
        try:
            await copy(sink, schema, table, part, data)
            await asyncio.sleep(0.01)
        finally:
            writing.discard(part.flow.name)
        most["write"] += 1

    monkeypatch.setattr(outbox_copy, "_read", reading)
    monkeypatch.setattr(outbox_copy, "_copy", alone)
    await Backfill(begun.pair, "forward").run(workers=3)
    assert most["read"] > 0
    assert most["write"] > 10
    await begun.require_equal()
