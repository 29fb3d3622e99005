"""Rows that stand in each other's way at the sink, and rows that it refuses: unique values, poison, quarantine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from cutover.errors import ConfigError, GateClosed, Refused
from cutover.postgres import outbox_schema, outbox_sink
from cutover.postgres.databases import Database, Side
from cutover.postgres.outbox_tables import Redefined
from cutover.streams.outbox import relay
from tests.streams.outbox_world import Hands, World, open_world
from tests.waiting import until


async def until_true(holds: Callable[[], bool], what: str) -> None:
    async def held() -> bool:
        return holds()

    await until(held, what)


def tokens_of(hands: Hands, shards: set[int]) -> dict[int, int]:
    return {shard: token for shard, token in hands.relay.tokens.items() if shard in shards}


async def shard_of(world: World, key: int) -> int:
    return int(
        await world.monolith.fetchval(
            f'SELECT shard FROM cutover."outbox_{world.pair.service}" WHERE key = $1 LIMIT 1', [str(key)]
        )
    )


async def test_unique_values_change_places_in_one_batch_and_across_shards(flowing: World) -> None:
    swap = """
    BEGIN; UPDATE items SET name = NULL WHERE id = {0}; UPDATE items SET name = 'n{0}' WHERE id = {1};
    UPDATE items SET name = 'n{1}' WHERE id = {0}; COMMIT
    """
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 40) n")
        await hands.drain()
        for left in range(1, 20):
            await flowing.monolith.execute(swap.format(left, 40 - left))
        # a value handed on and on: each row is in the way of the one before
        await flowing.monolith.execute(
            "DELETE FROM items WHERE id = 40; UPDATE items SET name = 'free' WHERE id = 1;"
            "UPDATE items SET name = 'n40' WHERE id = 2; UPDATE items SET name = 'n38' WHERE id = 3"
        )
        # one shard alone, so that what is in the way is always in another one
        shard = await shard_of(flowing, 3)
        await hands.relay.step(hands.applier, tokens_of(hands, {shard}))
        here = await flowing.service.fetchval("SELECT name FROM items WHERE id = 3")
        assert here == "n38"
        await hands.drain()
        assert await flowing.stream().held() == []
    await flowing.require_equal()


async def test_a_value_of_an_index_that_came_in_the_middle_is_carried_once_the_indexes_are_read_anew(
    flowing: World,
) -> None:
    """Sessions are open for weeks, and an index takes no lock that a relay would notice."""
    await flowing.monolith.execute("INSERT INTO items (id, note) VALUES (1, 'x'), (2, 'y')")
    async with flowing.hands() as hands:
        await hands.drain()
        for side in (flowing.monolith, flowing.service):
            await side.execute("CREATE UNIQUE INDEX CONCURRENTLY ON items (note)")
        await flowing.monolith.execute("UPDATE items SET note = NULL WHERE id = 1")
        await flowing.monolith.execute("UPDATE items SET note = 'x' WHERE id = 2")
        # its shard alone, so that the row in the way is not in the batch
        second = tokens_of(hands, {await shard_of(flowing, 2)})
        with pytest.raises(Redefined, match="unique indexes"):
            await hands.relay.step(hands.applier, second)
    async with flowing.relay():
        await flowing.drained()
    assert await flowing.stream().held() == []
    await flowing.require_equal()


async def test_a_row_in_the_way_costs_the_reading_of_its_own_tombstone_and_no_other(flowing: World) -> None:
    sink, service = flowing.service, flowing.pair.service
    await sink.execute("SET cutover.applier = 'on'; INSERT INTO items (id) VALUES (7), (8)")
    await sink.execute(
        "INSERT INTO cutover.row_version (service, tbl, key, version, shard, deleted) "
        f"SELECT '{service}', 'items', ARRAY[n::text], n, 0, true FROM generate_series(1, 5000) n; "
        "ANALYZE cutover.row_version"
    )
    async with flowing.hands() as hands, hands.ends.sink.transaction():
        flow = hands.ends.flows["items"]

        async def may() -> None:
            assert hands.ends.sink.is_in_transaction()

        assert await outbox_sink.sweep(hands.ends.sink, service, flow, may, [("7",), ("9",)]) == 1
        read = await hands.ends.sink.fetchval(
            "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables "
            "WHERE relid = 'cutover.row_version'::regclass"
        )
        assert read < 10
    assert await sink.fetchval("SELECT array_agg(id) FROM items") == [8]


async def test_a_poison_row_is_held_with_all_behind_it_and_nothing_else_is(flowing: World) -> None:
    stream = flowing.stream()
    await flowing.service.execute("ALTER TABLE items ADD CONSTRAINT sober CHECK (note <> 'poison')")
    async with flowing.relay():
        await flowing.monolith.execute(
            "INSERT INTO items (id, name, note) SELECT n, 'n' || n, CASE WHEN n % 20 = 0 THEN 'poison' END "
            "FROM generate_series(1, 60) n"
        )

        async def three_are_held() -> bool:
            return len(await stream.held()) == 3

        async def arrived(rows: int) -> bool:
            return bool(await flowing.service.fetchval("SELECT count(*) FROM items") == rows)

        await until(three_are_held, "the poison is held")
        await until(lambda: arrived(57), "all others arrive")
        await flowing.monolith.execute("UPDATE items SET name = 'behind' WHERE id = 20; DELETE FROM items WHERE id = 1")
        with pytest.raises(GateClosed, match="3 keys of items"):
            await flowing.drained()
        await until(lambda: arrived(56), "the delete of another key passes the held ones")
        health = await stream.health()
        assert not health.ok
        assert "3 keys of items held" in health.detail
        assert health.lost is False
        first, second, third = sorted(await stream.held(), key=lambda h: int(h.key[0]))
        assert (first.key, first.waiting, first.sqlstate) == (("20",), 2, "23514")
        assert first.reason == "CheckViolationError, constraint sober"
        with pytest.raises(Refused, match="who"):
            await stream.retry([first.id], by="", why="")
        # tried again too early it is held again, under a new number
        await stream.retry([third.id], by="ann", why="a look")

        async def held_again() -> bool:
            return [h.key for h in await stream.held() if h.id not in (first.id, second.id)] == [third.key]

        await until(held_again, "it is held again")
        assert await stream.skip([second.id], by="ann", why="not wanted there") == 1
        with pytest.raises(Refused, match="no held key"):
            await stream.skip([second.id], by="ann", why="twice")
        await flowing.service.execute("ALTER TABLE items DROP CONSTRAINT sober")
        await stream.retry([h.id for h in await stream.held()], by="ann", why="mended")
        await flowing.drained()
        assert await flowing.service.fetchval("SELECT array_agg(name ORDER BY id) FROM items WHERE id > 57") == [
            "n58", "n59", "n60",
        ]  # fmt: skip
        assert await flowing.service.fetchval("SELECT name FROM items WHERE id = 20") == "behind"
        # what was skipped flows again with its next change
        assert await flowing.service.fetchval("SELECT count(*) FROM items WHERE id = 40") == 0
        await flowing.monolith.execute("UPDATE items SET note = 'good' WHERE id = 40")
        await flowing.drained()
    await flowing.require_equal()
    decided = await flowing.monolith.fetch("SELECT state, by, why FROM cutover.quarantine ORDER BY id")
    assert sorted(r["state"] for r in decided) == sorted(["retried", "skipped", "retried", "retried"])
    assert {r["by"] for r in decided} == {"ann"}


async def test_a_foreign_row_in_the_way_holds_one_key_after_a_few_tries(flowing: World) -> None:
    await flowing.service.execute("SET cutover.applier = 'on'; INSERT INTO items (id, name) VALUES (900, 'taken')")
    async with flowing.relay():
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'taken'), (2, 'free')")

        async def is_held() -> bool:
            return [h.key for h in await flowing.stream().held()] == [("1",)]

        async def busy() -> None:
            for number in range(10_000):
                await flowing.monolith.execute("INSERT INTO items (id) VALUES ($1)", 1000 + number)

        # others that get through do not make its tries count anew
        writing = asyncio.create_task(busy())
        await until(is_held, "the key is held", 60.0)
        writing.cancel()
        await asyncio.wait([writing])
        assert await flowing.service.fetchval("SELECT count(*) FROM items WHERE id = 2") == 1


async def test_on_best_effort_what_the_sink_refuses_is_given_up_counted_and_carried_again_once_it_is_raised(
    flowing: World,
) -> None:
    stream = flowing.stream()
    await flowing.service.execute("UPDATE cutover.outbox_stream SET best_effort = true")
    await flowing.service.execute("ALTER TABLE items ADD CONSTRAINT short CHECK (length(note) < 5)")
    async with flowing.relay() as relay:
        await until_true(lambda: relay.gives_up, "the relay has heard of the level")
        await flowing.monolith.execute("INSERT INTO items (id, note) VALUES (1, 'too long'), (2, 'fine')")
        await flowing.drained()
        assert [row["id"] for row in await flowing.service.fetch("SELECT id FROM items")] == [2]
        assert relay.failures == 1
        assert await stream.held() == []

        await stream.give_up_nothing()
        await until_true(lambda: not relay.gives_up, "the relay has heard of the level")
        await flowing.monolith.execute("UPDATE items SET note = 'far too long' WHERE id = 1")

        async def is_held() -> bool:
            return [h.key for h in await stream.held()] == [("1",)]

        await until(is_held, "the key is held")
        with pytest.raises(GateClosed, match="quarantine"):
            await flowing.drained()


OLD_VERSIONS = (
    "INSERT INTO cutover.row_version (service, tbl, key, version, shard, deleted, applied_at) "
    "SELECT $1, 'items', ARRAY[n::text], n, n % 64, true, now() - interval '1 day' FROM generate_series(1, 400) n"
)
COUNT_VERSIONS = "SELECT count(*) FROM cutover.row_version WHERE service = $1"


async def test_version_rows_that_guard_against_nothing_go_however_many_there_are(
    flowing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One portion between two batches, and the next one at once."""
    monkeypatch.setattr(outbox_sink, "PRUNED", 10)
    monkeypatch.setattr(relay, "_TIDY_SECONDS", 2.0)
    await flowing.service.execute(OLD_VERSIONS, flowing.pair.service)

    async def all_gone() -> bool:
        return bool(await flowing.service.fetchval(COUNT_VERSIONS, flowing.pair.service) == 0)

    async with flowing.relay():
        await until(all_gone, "no version row is left", 20.0)


async def test_a_stream_that_is_dropped_gives_its_version_rows_up_in_portions(
    flowing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each effect on a side holds the lock that a switch waits for."""
    monkeypatch.setattr(outbox_schema, "_FORGOTTEN", 150)
    await flowing.service.execute(OLD_VERSIONS, flowing.pair.service)
    await flowing.service.execute(OLD_VERSIONS, "another")
    left: list[int] = []

    @asynccontextmanager
    async def effect(side: Side) -> AsyncIterator[asyncpg.Connection]:
        async with flowing.pair.at(side).session() as connection, connection.transaction():
            yield connection
        left.append(await flowing.service.fetchval(COUNT_VERSIONS, flowing.pair.service))

    await flowing.stream().drop(effect)
    assert sorted(set(left), reverse=True) == [400, 250, 100, 0]
    assert await flowing.service.fetchval(COUNT_VERSIONS, "another") == 400


async def test_a_relay_tells_of_no_problem_of_a_stream_that_was_taken_away(flowing: World) -> None:
    async with flowing.relay() as relay:
        await flowing.drained()
        # what a drop in the middle of a batch does to a lane
        relay._problems[0] = "UndefinedTableError (42P01)"
        await flowing.stream().stop()
        await until_true(lambda: not relay.tokens and not relay._problems, "without leases nothing is wrong")


@pytest.mark.parametrize(
    ("key", "found"),
    [("", "neither a primary key"), (", PRIMARY KEY (id) DEFERRABLE", "DEFERRABLE")],
)
async def test_a_table_whose_rows_have_no_sure_name_is_refused_at_the_start(
    monolith_db: Database, service_db: Database, key: str, found: str
) -> None:
    ddl = f"CREATE TABLE items (id bigint{key}); CREATE TABLE parts (id int PRIMARY KEY); " \
          "CREATE TABLE kinds (id int PRIMARY KEY)"  # fmt: skip
    async with open_world(monolith_db, service_db, "refused", ddl, ddl) as world:
        with pytest.raises(ConfigError, match=found):
            await world.stream().prepare()
        assert await world.monolith.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%capture%'") == 0


async def test_a_column_that_comes_in_the_middle_is_carried_once_both_sides_have_it(flowing: World) -> None:
    async with flowing.relay():
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        await flowing.drained()
        await flowing.monolith.execute("ALTER TABLE items ADD more int; INSERT INTO items (id, more) VALUES (2, 7)")
        await flowing.service.execute("ALTER TABLE items ADD more int")
        await flowing.monolith.execute("INSERT INTO items (id, more) VALUES (3, 8)")
        await flowing.drained()
        await flowing.monolith.execute("ALTER TABLE items ALTER more TYPE text; UPDATE items SET more = 'x'")
        await flowing.service.execute("ALTER TABLE items ALTER more TYPE text")
        await flowing.drained()
    assert await flowing.service.fetch("SELECT id, more FROM items ORDER BY 1") == await flowing.monolith.fetch(
        "SELECT id, more FROM items ORDER BY 1"
    )
