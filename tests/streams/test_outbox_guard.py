"""What dual writes lose without a guard (../shared/reference/dual-write.md, table 1.1), one line of it a test.

Batches are read, kept, and applied late, twice or in the wrong order by hand.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from cutover.errors import Refused, StaleAttempt
from cutover.postgres import epoch, fence, outbox_copy, outbox_lease, outbox_sink, outbox_source, own_schema
from cutover.postgres.outbox_source import Batch
from cutover.postgres.outbox_versions import EPOCH_VERSIONS
from cutover.streams.outbox.sessions import open_ends
from tests.streams.outbox_world import Hands, World
from tests.waiting import until


async def read(world: World, hands: Hands) -> Batch:
    return await outbox_source.read(
        hands.ends.source,
        world.pair.service,
        hands.ends.flows,
        hands.ends.source_definition,
        list(hands.relay.tokens),
        1000,
    )


async def deliver(hands: Hands, batch: Batch) -> int:
    return (await hands.applier.carry(batch, hands.relay.tokens)).applied


async def names(world: World) -> list[str]:
    return [row["name"] for row in await world.service.fetch("SELECT name FROM items ORDER BY id")]


async def waiting(world: World, count: int) -> bool:
    """Whether that many sessions at the sink wait for a lock."""
    sql = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database())"
    )
    return bool(await world.service.fetchval(sql) >= count)


async def test_a_late_retry_does_not_overwrite_a_newer_value(flowing: World) -> None:
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'old')")
        late = await read(flowing, hands)
        await flowing.monolith.execute("UPDATE items SET name = 'new'")
        assert await deliver(hands, await read(flowing, hands)) == 1
        assert await deliver(hands, late) == 0
        assert await names(flowing) == ["new"]


async def test_a_late_retry_does_not_bring_a_deleted_row_back(flowing: World) -> None:
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        late = await read(flowing, hands)
        await flowing.monolith.execute("DELETE FROM items")
        assert await deliver(hands, await read(flowing, hands)) == 1
        assert await deliver(hands, late) == 0
        assert await names(flowing) == []


async def test_a_late_delete_does_not_remove_a_row_that_was_inserted_again(flowing: World) -> None:
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        await flowing.monolith.execute("DELETE FROM items")
        late = await read(flowing, hands)
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'again')")
        await deliver(hands, await read(flowing, hands))
        assert await deliver(hands, late) == 0
        assert await names(flowing) == ["again"]


async def test_what_a_crash_leaves_in_the_outbox_has_no_effect_the_second_time(flowing: World) -> None:
    """Between the commit at the sink and the delete at the source."""
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 9) n")
        assert await deliver(hands, await read(flowing, hands)) == 9
        assert await deliver(hands, await read(flowing, hands)) == 0
        await hands.drain()
        assert (await read(flowing, hands)).changes == []
    await flowing.require_equal()


async def test_an_apply_that_waited_for_a_newer_one_sees_what_it_wrote(flowing: World) -> None:
    async with flowing.hands() as hands, flowing.pair.target.session("blocker") as blocker:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'first')")
        await hands.drain()
        await flowing.monolith.execute("DELETE FROM items")
        late = await read(flowing, hands)
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'last')")
        newer = await read(flowing, hands)
        async with flowing.hands_again(hands) as other:
            async with blocker.transaction():
                await blocker.execute("SELECT FROM items FOR UPDATE")
                first = asyncio.create_task(deliver(hands, newer))
                await until(lambda: waiting(flowing, 1), "the newer apply waits for the row")
                second = asyncio.create_task(deliver(other, late))
                await until(lambda: waiting(flowing, 2), "the older one waits for its version row")
            assert (await first, await second) == (1, 0)
        assert await names(flowing) == ["last"]


async def test_a_delete_that_waited_for_an_older_insert_deletes_what_that_wrote(flowing: World) -> None:
    async with flowing.hands() as hands, flowing.pair.target.session("blocker") as blocker:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        older = await read(flowing, hands)
        await flowing.monolith.execute("DELETE FROM items")
        newer = await read(flowing, hands)
        async with flowing.hands_again(hands) as other:
            await blocker.execute("SET cutover.applier = 'on'")  # the fence lets it pass
            obstacle = blocker.transaction()
            await obstacle.start()
            await blocker.execute("INSERT INTO items (id, name) VALUES (1, 'in the way')")
            first = asyncio.create_task(deliver(hands, older))
            await until(lambda: waiting(flowing, 1), "the older apply has its version row, and waits for the key")
            second = asyncio.create_task(deliver(other, newer))
            await until(lambda: waiting(flowing, 2), "the newer one waits for the version row")
            await obstacle.rollback()
            assert (await first, await second) == (1, 1)
        assert await names(flowing) == []


async def test_the_relay_that_lost_its_lease_and_one_whose_sink_is_primary_are_refused(flowing: World) -> None:
    service = flowing.pair.service
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        batch = await read(flowing, hands)
        sql = "UPDATE cutover.relay_lease SET expires_at = '-infinity' WHERE service = $1"

        async def beat(owner: str, held: dict[int, int]) -> dict[int, int]:
            return await outbox_lease.beat(
                flowing.service, service, "forward", owner, held, applied=0, failures=0, problem="", seconds=60
            )

        await flowing.service.execute(sql, service)
        with pytest.raises(StaleAttempt, match="taken over"):
            await deliver(hands, batch)
        held = await beat(hands.relay.owner, hands.relay.tokens)
        assert all(held[shard] > hands.relay.tokens[shard] for shard in range(64)), "an expired lease was renewed"
        await beat("other", {})
        held = await beat(hands.relay.owner, held)
        again = await beat("other", {})
        assert (len(held), len(again)) == (32, 32), "the shards are shared"
        assert not set(held) & set(again), "two relays hold one shard"
        with pytest.raises(StaleAttempt, match="taken over"):
            await deliver(hands, batch)
        hands.relay.tokens = {**held, **again}
        await flowing.set_primary("service", 1)
        with pytest.raises(StaleAttempt, match="primary"):
            await deliver(hands, batch)
    assert await names(flowing) == []


async def test_leases_and_complaints_from_before_the_clock_was_set_back_hold_nothing_up(flowing: World) -> None:
    """Their relay is gone, and what it has left lies in the future."""
    service, sink = flowing.pair.service, flowing.service
    lease = (
        "UPDATE cutover.relay_lease SET owner = 'gone', token = token + 1, expires_at = clock_timestamp() + '1 hour'"
    )
    await sink.execute(f"{lease} WHERE service = $1 AND direction = 'forward'", service)
    await sink.execute(
        "INSERT INTO cutover.relay_member VALUES ($1, 'forward', 'gone', clock_timestamp() + '1 hour', 'a problem')",
        service,
    )
    assert await outbox_lease.relays(sink, service, "forward") == outbox_lease.Relays(0, ())
    held = await outbox_lease.beat(
        sink, service, "forward", "mine", {}, applied=0, failures=0, problem="", seconds=outbox_lease.LEASE_SECONDS
    )
    assert len(held) == 64, "each of them is taken over, and nobody else counts as a relay"
    assert (await outbox_lease.relays(sink, service, "forward")).shards == 64


async def test_versions_are_comparable_across_a_switch_and_back(flowing: World) -> None:
    service = flowing.pair.service
    await flowing.stream("reverse").start(copy=False)
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'one'), (2, 'x')")
        late = await read(flowing, hands)
        await hands.drain()
        await flowing.set_primary("service", 1)
        async with flowing.hands("reverse") as back:
            await flowing.service.execute("UPDATE items SET name = 'two' WHERE id = 1; DELETE FROM items WHERE id = 2")
            late_back = await read(flowing, back)
            assert all(EPOCH_VERSIONS < c.version < 2 * EPOCH_VERSIONS for c in late_back.changes), (
                "versions of the second epoch are not above those of the first one"
            )
            await back.drain()
            await flowing.set_primary("monolith", 2)
            await flowing.monolith.execute("UPDATE items SET name = 'three' WHERE id = 1")
            with pytest.raises(StaleAttempt):
                await deliver(back, late_back)
        await hands.drain()
        await deliver(hands, late)
        assert await names(flowing) == ["three"]
    await flowing.require_equal()
    # set again by a recovery, a side in use draws on
    before = await flowing.monolith.fetchval(f'SELECT last_value FROM cutover."version_{service}"')
    await flowing.set_primary("monolith", 2)
    assert await flowing.monolith.fetchval(f'SELECT last_value FROM cutover."version_{service}"') == before


async def test_versions_of_a_stream_that_is_built_anew_are_above_those_of_the_old_one(flowing: World) -> None:
    """A relay of before may still forget intents, or a prepared branch bring version rows, of the old numbers."""
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 9) n")
        old = {intent for change in (await read(flowing, hands)).changes for intent in change.intents}
    await flowing.stream().drop()
    await flowing.stream().start(copy=False)
    await flowing.monolith.execute("UPDATE items SET note = 'new'")
    await outbox_source.forget(flowing.monolith, flowing.pair.service, sorted(old))
    async with flowing.hands() as anew:
        changes = (await read(flowing, anew)).changes
        assert len(changes) == 9
        assert min(c.version for c in changes) > max(version for _, version in old)
    # it goes with the service
    await flowing.stream().drop()
    await fence.remove(flowing.monolith, flowing.pair.tables)
    await epoch.remove(flowing.monolith, flowing.pair.service)
    assert await own_schema.drop_if_unused(flowing.monolith) == ""


#: A row of key 1 at the sink that has a tombstone, as a copy leaves it behind.
REVIVED = "SET cutover.applier = 'on'; INSERT INTO items (id, name) VALUES (1, 'a'); RESET cutover.applier"


async def switched(world: World) -> None:
    """The other side has become the primary, and the application has put the row there."""
    await world.set_primary("service", 1)
    await world.service.execute("DELETE FROM items; INSERT INTO items (id, name) VALUES (1, 'acknowledged')")


async def overtaken(world: World) -> None:
    await world.service.execute("UPDATE cutover.relay_lease SET token = token + 1")


@pytest.mark.parametrize(("meanwhile", "left"), [(switched, ["acknowledged"]), (overtaken, ["a"])])
async def test_a_relay_that_wakes_up_too_late_sweeps_nothing_away(
    flowing: World, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[World], Awaitable[None]], left: list[str]
) -> None:
    """It had found a row with a tombstone in the way of another one."""
    sweep = outbox_sink.sweep

    async def late(*arguments: Any, **named: Any) -> int:
        await meanwhile(flowing)
        return await sweep(*arguments, **named)

    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        await hands.drain()
        await flowing.monolith.execute("DELETE FROM items")
        await hands.drain()
        await flowing.service.execute(REVIVED)
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (2, 'a')")
        with monkeypatch.context() as patched:
            patched.setattr(outbox_sink, "sweep", late)
            with pytest.raises(StaleAttempt):
                await hands.relay.step(hands.applier, hands.relay.tokens)
    assert await names(flowing) == left


async def test_a_copy_that_wakes_up_after_a_switch_sweeps_nothing_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.stream().start(copy=True)
    await world.service.execute(
        "INSERT INTO cutover.row_version (service, tbl, key, version, shard, deleted) "
        "VALUES ($1, 'items', '{1}', 1, 0, true)",
        world.pair.service,
    )
    sweep = outbox_sink.sweep

    async def late(*arguments: Any, **named: Any) -> int:
        await world.set_primary("service", 1)
        await world.service.execute("INSERT INTO items (id, name) VALUES (1, 'acknowledged')")
        return await sweep(*arguments, **named)

    monkeypatch.setattr(outbox_sink, "sweep", late)
    async with open_ends(world.pair, "forward", "copy", copy=True) as ends:
        with pytest.raises(Refused, match="primary"):
            await outbox_copy.sweep_next(ends.sink, world.pair.service, "forward", ends.flows)  # items is the first
    assert await names(world) == ["acknowledged"]


async def test_tombstones_go_when_nothing_older_can_come_any_more(flowing: World) -> None:
    service = flowing.pair.service

    async def versions() -> int:
        return int(await flowing.service.fetchval("SELECT count(*) FROM cutover.row_version"))

    async with flowing.hands() as hands:
        relay, ends = hands.relay, hands.ends
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
        late = await read(flowing, hands)
        await flowing.monolith.execute("DELETE FROM items")
        await deliver(hands, await read(flowing, hands))
        assert await relay.tidy(ends, relay.tokens, keep_seconds=0) == 0, "its intents still wait at the source"
        await hands.drain()
        assert await relay.tidy(ends, relay.tokens) == 0, "younger than a statement may take"
        await flowing.service.execute(
            "INSERT INTO cutover.backfill_table (service, direction, tbl, estimated) "
            "VALUES ($1, 'forward', 'items', 1)",
            service,
        )
        assert await relay.tidy(ends, relay.tokens, keep_seconds=0) == 0, "a first copy is under way"
        await flowing.service.execute("DELETE FROM cutover.backfill_table")
        stale = {shard: token - 1 for shard, token in relay.tokens.items()}
        assert await relay.tidy(ends, stale, keep_seconds=0) == 0, "not the holder of the lease"
        assert await versions() == 1
        assert await relay.tidy(ends, relay.tokens, keep_seconds=0) == 1
        assert await versions() == 0
        # the batch of a relay that was overtaken meanwhile has nothing left to meet, and is refused
        old = dict(relay.tokens)
        await flowing.service.execute("UPDATE cutover.relay_lease SET token = token + 1")
        with pytest.raises(StaleAttempt):
            await hands.applier.carry(late, old)
    assert await names(flowing) == []


async def test_only_what_is_newer_is_written_in_a_batch_of_both(flowing: World) -> None:
    async with flowing.hands() as hands:
        await flowing.monolith.execute(
            "INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(1, 20) n;"
            "INSERT INTO parts VALUES ('a', 1, 'x')"
        )
        batch = await read(flowing, hands)
        half = replace(batch, changes=batch.changes[:10])
        assert await outbox_sink.apply(
            hands.ends.sink, flowing.pair.service, "forward", hands.ends.flows, hands.ends.sink_definition,
            half.changes, [], hands.relay.tokens,
        ) == 10  # fmt: skip
        assert await deliver(hands, batch) == 11
    await flowing.require_equal()


async def test_a_key_in_another_spelling_is_another_key_whatever_its_type_calls_equal(flowing: World) -> None:
    """`1.0` becomes `1.00`: the old spelling's delete comes after the new one's insert, and must not meet its row."""
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO kinds (amount) SELECT n + 0.0 FROM generate_series(1, 8) n")
        await hands.drain()
        await flowing.monolith.execute("UPDATE kinds SET amount = amount + 0.00")
        shards = await flowing.monolith.fetch(
            f'SELECT shard FROM cutover."outbox_{flowing.pair.service}" ORDER BY op DESC, shard'
        )
        for row in shards:
            await hands.relay.step(hands.applier, {row["shard"]: hands.relay.tokens[row["shard"]]})
        assert await flowing.service.fetchval("SELECT count(*) FROM kinds WHERE amount::text LIKE '%.00'") == 8
    await flowing.require_equal()


async def test_what_a_crash_of_the_source_could_take_back_is_not_carried_over(flowing: World) -> None:
    async with flowing.hands() as hands:
        await flowing.monolith.execute("SET synchronous_commit = off; INSERT INTO items (id, name) VALUES (1, 'a')")
        position = await flowing.monolith.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        assert (await read(flowing, hands)).changes
        flushed = "SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn"
        assert await flowing.monolith.fetchval(flushed, position), "it is carried over before it was on the disk"
