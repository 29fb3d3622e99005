"""A stream that is built anew over a gap: unique values that moved in it hold nothing up."""

import asyncio

import pytest

from cutover.postgres import outbox_gap
from cutover.streams.outbox import OutboxStream
from tests.streams.outbox_world import World
from tests.waiting import until


async def with_gap(flowing: World, missed: str) -> OutboxStream:
    """Forty items on both sides; then the stream is lost, and made anew after the source has gone on."""
    await flowing.monolith.execute("INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 40) n")
    async with flowing.hands() as hands:
        await hands.drain()
    await flowing.require_equal()
    stream = flowing.stream()
    await stream.drop()
    await flowing.monolith.execute(missed)
    await stream.start(copy=False, gap=True)
    return stream


async def names(flowing: World) -> dict[int, str]:
    return {row["id"]: row["name"] for row in await flowing.service.fetch("SELECT id, name FROM items WHERE id < 9")}


async def test_a_value_that_another_row_had_before_the_gap_is_carried_and_its_old_row_gives_way(flowing: World) -> None:
    stream = await with_gap(
        flowing, "DELETE FROM items WHERE id = 1; UPDATE items SET name = NULL WHERE id IN (2, 3, 4)"
    )
    await flowing.monolith.execute(
        "INSERT INTO items (id, name) VALUES (101, 'n1'); UPDATE items SET name = 'n2' WHERE id = 5;"
        # one that stands in the way and has changed since comes along, and so do chains
        "UPDATE items SET name = 'n3' WHERE id = 6; UPDATE items SET name = 'n6' WHERE id = 7;"
        "UPDATE items SET note = 'changed' WHERE id = 4; UPDATE items SET name = 'n4' WHERE id = 8"
    )
    async with flowing.relay():
        await flowing.drained()
    assert await stream.held() == []
    assert await names(flowing) == {4: None, 5: "n2", 6: "n3", 7: "n6", 8: "n4"}
    assert await flowing.service.fetchval("SELECT name FROM items WHERE id = 101") == "n1"
    assert await flowing.service.fetchval("SELECT count(*) FROM cutover.row_version WHERE version = 0") == 0


@pytest.mark.parametrize("closed", [False, True])
async def test_what_the_stream_has_brought_and_what_comes_after_the_gap_stays_where_it_is(
    flowing: World, closed: bool
) -> None:
    """A foreign row is one that a person has to look at."""
    stream = await with_gap(flowing, "UPDATE items SET note = 'missed' WHERE id = 1")
    async with flowing.relay():
        await flowing.monolith.execute("UPDATE items SET note = 'brought' WHERE id = 2")
        await flowing.drained()
        if closed:
            await stream.close_gap()
        # by the stream's own side nobody has the value; only one of the two rows has been brought
        await flowing.service.execute("SET cutover.applier = 'on'")
        await flowing.service.execute("UPDATE items SET name = 'taken' WHERE id = 2")
        await flowing.service.execute("UPDATE items SET name = 'foreign' WHERE id = 3")
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (102, 'taken'), (103, 'foreign')")

        async def held() -> bool:
            expected = {("102",), ("103",)} if closed else {("102",)}
            return {one.key for one in await stream.held()} == expected

        await until(held, "they are held")
    assert (await names(flowing))[2] == "taken"
    assert ((await names(flowing)).get(3) == "foreign") is closed


async def test_a_row_that_another_relay_brings_meanwhile_does_not_give_way(flowing: World) -> None:
    """Its change is not committed yet when the row that it will have is looked for."""
    await with_gap(flowing, "UPDATE items SET note = 'missed' WHERE id = 1")
    async with flowing.hands() as hands, flowing.pair.target.session("bringing") as bringing:
        flow = hands.ends.flows["items"]
        await bringing.execute("SET cutover.applier = 'on'; BEGIN")
        await bringing.execute(
            "INSERT INTO cutover.row_version (service, tbl, key, version, shard, deleted) "
            "VALUES ($1, 'items', ARRAY['2'], 7, 0, false)",
            flowing.pair.service,
        )
        wanted = await flowing.service.fetchval("SELECT row(99, 'x', NULL)::items::text")
        giving = asyncio.create_task(
            outbox_gap.give_way(
                hands.ends.sink, flowing.pair.service, "forward", flow, hands.relay.tokens, [("2",), ("3",)], [wanted]
            )
        )

        async def waits() -> bool:
            return bool(
                await flowing.service.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND datname = current_database()"
                )
            )

        await until(waits, "it waits for the version row")
        await bringing.execute("UPDATE items SET name = 'x' WHERE id = 2; COMMIT")
        assert await giving == 0
    assert (await names(flowing))[2] == "x"
