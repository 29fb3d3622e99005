"""What may happen between two steps of the outbox, and in which order: the lines of docs/dual-write-proofs.md that had
no test of their own."""

from typing import Any

import asyncpg
import pytest

from cutover.postgres import outbox_sink, outbox_source
from cutover.postgres.outbox_tables import Redefined
from tests.streams.outbox_world import World


async def test_what_was_read_and_not_applied_stays_in_the_outbox(
    flowing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that dies between the reading of a batch and its apply."""

    async def dies(*_: object, **__: object) -> int:
        raise ConnectionResetError

    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 9) n")
        with monkeypatch.context() as patched:
            patched.setattr(outbox_sink, "apply", dies)
            with pytest.raises(ConnectionResetError):
                await hands.relay.step(hands.applier, hands.relay.tokens)
        await hands.drain()
    assert await flowing.service.fetchval("SELECT count(*) FROM items") == 9
    await flowing.require_equal()


async def test_writers_of_one_key_are_applied_in_the_order_of_its_lock_whoever_began_first(flowing: World) -> None:
    await flowing.monolith.execute("INSERT INTO items (id, name, note) VALUES (1, 'a', 'nobody')")
    async with flowing.hands() as hands, flowing.pair.monolith.session("late") as late:
        await hands.drain()
        transaction = late.transaction()
        await transaction.start()
        await late.execute("SELECT now(), pg_current_xact_id()")  # begins first, in every sense
        await flowing.monolith.execute("UPDATE items SET note = 'began later'")
        await hands.drain()
        await late.execute("UPDATE items SET note = 'began first'")
        await transaction.commit()
        await hands.drain()
    assert await flowing.service.fetchval("SELECT note FROM items") == "began first"
    await flowing.require_equal()


async def test_half_a_transaction_meets_no_foreign_key_and_the_other_half_follows(flowing: World) -> None:
    for connection in (flowing.monolith, flowing.service):
        await connection.execute("ALTER TABLE parts ADD item bigint REFERENCES items")
    async with flowing.hands() as hands:
        await flowing.monolith.execute(
            "BEGIN; INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 8) n;"
            "INSERT INTO parts SELECT 'a', n, 'x', n FROM generate_series(1, 8) n; COMMIT"
        )
        shards = {
            table: {
                row["shard"]
                for row in await flowing.monolith.fetch(
                    f'SELECT shard FROM cutover."outbox_{flowing.pair.service}" WHERE tbl = $1', table
                )
            }
            for table in ("items", "parts")
        }
        first = {shard: hands.relay.tokens[shard] for shard in shards["parts"] - shards["items"]}
        await hands.relay.step(hands.applier, first)
        orphans = "SELECT count(*) FROM parts LEFT JOIN items ON items.id = parts.item WHERE items.id IS NULL"
        assert await flowing.service.fetchval(orphans) > 0, "children are here before their parents"
        await hands.drain()
        assert await flowing.stream().held() == []
        assert await flowing.service.fetchval(orphans) == 0
    await flowing.require_equal()


async def test_a_batch_of_large_rows_is_full_long_before_it_has_as_many_as_it_may(
    flowing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their size is looked at before many are held in memory, and they arrive all the same, some at a time."""
    read = outbox_source._images
    held: list[int] = []

    async def measured(connection: Any, flow: Any, keys: Any) -> dict[int, str]:
        images = await read(connection, flow, keys)
        held.append(sum(map(len, images.values())))
        return images

    monkeypatch.setattr(outbox_source, "_images", measured)
    monkeypatch.setattr(outbox_source, "BATCH_BYTES", 1 << 20)
    await flowing.monolith.execute(
        "INSERT INTO items (id, note) SELECT n, repeat('x', 100000) FROM generate_series(1, 60) n"
    )
    async with flowing.hands() as hands:
        batch = await outbox_source.read(
            hands.ends.source, flowing.pair.service, hands.ends.flows, hands.ends.source_definition,
            list(hands.relay.tokens), 1000,
        )  # fmt: skip
        assert batch.full
        assert max(held) < 2 << 20, "one reading held more than a batch may have"
        assert sum(len(c.image or "") for c in batch.changes) < 2 << 20
        held.clear()
        await hands.drain()
    await flowing.require_equal()
    # small rows are still read many at once
    held.clear()
    await flowing.monolith.execute("INSERT INTO items (id) SELECT n FROM generate_series(1000, 1400) n")
    async with flowing.hands() as hands:
        await hands.relay.step(hands.applier, hands.relay.tokens)
    assert len(held) <= 4


async def test_rows_are_not_read_for_columns_that_a_table_had_before(flowing: World) -> None:
    """A column that is here and not yet there: an image without it would be done with, and its value never carried."""
    more = "ALTER TABLE items ADD more int"
    async with flowing.hands() as hands:
        await flowing.monolith.execute(more)
        await flowing.monolith.execute("INSERT INTO items (id, name, more) VALUES (1, 'a', 7)")
        with pytest.raises(Redefined):
            await hands.relay.step(hands.applier, hands.relay.tokens)
    await flowing.service.execute(more)
    async with flowing.hands() as anew:
        await anew.drain()
    assert await flowing.service.fetchval("SELECT more FROM items") == 7
    await flowing.require_equal()


async def test_rows_are_not_written_into_columns_that_a_table_had_before(flowing: World) -> None:
    """A column that went and came again at the sink stands in another place, where another one's values would fit."""
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name, note) VALUES (1, 'a name', 'a note')")
        await flowing.service.execute("ALTER TABLE items DROP name; ALTER TABLE items ADD name text UNIQUE")
        with pytest.raises(Redefined):
            await hands.relay.step(hands.applier, hands.relay.tokens)
    assert await flowing.service.fetchval("SELECT count(*) FROM items") == 0
    async with flowing.hands() as anew:
        await anew.drain()
    await flowing.require_equal()


async def test_columns_stay_as_they_are_while_a_batch_is_written(
    flowing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = outbox_sink._raise_versions

    async def in_between(*arguments: Any) -> Any:
        with pytest.raises(asyncpg.LockNotAvailableError):
            await flowing.service.execute("SET lock_timeout = '50ms'; ALTER TABLE items ADD more int")
        return await raised(*arguments)

    monkeypatch.setattr(outbox_sink, "_raise_versions", in_between)
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        await hands.drain()
    await flowing.require_equal()
