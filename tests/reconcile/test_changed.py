"""Changed keys: read from the log completely, kept until verified, compared by key in little time."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from cutover.errors import GateClosed, NotYet
from cutover.postgres import changes
from cutover.postgres.identifiers import TableName, quote
from cutover.reconcile.changed import ChangedKeys
from tests.reconcile.conftest import World
from tests.waiting import until

T = TableName("public", "t")


async def keys(world: World) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in await world.control.fetch("SELECT table_name, key_json FROM control.changed_key"):
        found.setdefault(row["table_name"], set()).add(row["key_json"])
    return found


async def verify_all(world: World, followed: ChangedKeys) -> None:
    for table in world.pair.tables:
        assert await followed.verified(await world.compare(table.name))


async def test_a_publication_that_was_made_anew_leaves_a_record_that_is_lost_until_it_is_made_anew_too(
    world: World, changed: Callable[..., Any]
) -> None:
    """Before 18 such a slot cannot be read for ever; from 18 on it says nothing of what was written meanwhile."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v text)")
    followed = await changed("t")
    await verify_all(world, followed)
    assert await followed.whole()
    await world.left.execute("DROP PUBLICATION svc_pub")
    assert await followed.lost()
    await world.both("INSERT INTO t VALUES (1, 'between')")
    await world.left.execute("CREATE PUBLICATION svc_pub FOR TABLE t, cutover.marker_svc")
    assert await followed.lost()
    with pytest.raises(GateClosed, match="made anew"):
        await followed.prepare()
    await followed.drop_slot()
    assert await followed.lost()
    await followed.prepare()
    assert await followed.whole()
    assert await followed.unverified() == world.pair.tables


async def test_every_kind_of_change_leaves_its_keys_and_what_was_rolled_back_leaves_none(
    world: World, changed: Callable[..., Any]
) -> None:
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text); CREATE TABLE c (a text, b date, PRIMARY KEY (b, a))"
    )
    await world.both("INSERT INTO t SELECT n, 'v', repeat(md5(n::text), 1000) FROM generate_series(1, 20) AS n")
    followed = await changed("t", "c")
    await world.left.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    await world.left.execute("INSERT INTO t VALUES (100, 'new')")
    await world.left.execute("UPDATE t SET v = 'w' WHERE id = 1")
    await world.left.execute("UPDATE t SET id = 102 WHERE id = 2")
    await world.left.execute("DELETE FROM t WHERE id = 3")
    await world.left.execute("INSERT INTO c VALUES ('é \"x\"', '2024-02-03'), ('', '0044-03-15 BC')")
    await world.left.execute("INSERT INTO cutover.marker_svc VALUES ('m')")
    async with world.left.transaction():
        await world.left.execute("UPDATE t SET v = 'sub' WHERE id = 4; SAVEPOINT s; UPDATE t SET v = 'x' WHERE id = 5")
        await world.left.execute("ROLLBACK TO s; SAVEPOINT s2; UPDATE t SET v = 'x' WHERE id = 6; RELEASE s2")
    rolled_back = world.left.transaction()
    await rolled_back.start()
    await world.left.execute("UPDATE t SET v = 'never' WHERE id = 7")
    await rolled_back.rollback()
    assert await followed.consume() > 0
    assert await keys(world) == {
        "t": {f'["{n}"]' for n in (100, 1, 2, 102, 3, 4, 6)},
        "c": {'["2024-02-03","é \\"x\\""]', '["0044-03-15 BC",""]'},
    }
    assert await followed.consume() == 0
    assert await followed.tail() == {T: 7, TableName("public", "c"): 2}


async def test_a_full_replica_identity_a_key_in_toast_and_partitions_are_understood(
    world: World, changed: Callable[..., Any]
) -> None:
    name = 'Nä"sty t'
    await world.both(
        "CREATE TABLE t (v text, id text PRIMARY KEY, big text); ALTER TABLE t REPLICA IDENTITY FULL; "
        "ALTER TABLE t ALTER id SET STORAGE EXTERNAL; ALTER TABLE t ALTER big SET STORAGE EXTERNAL; "
        f"CREATE TABLE {quote(name)} (v int, k int, p int, PRIMARY KEY (p, k)) PARTITION BY LIST (p); "
        f"CREATE TABLE p1 PARTITION OF {quote(name)} FOR VALUES IN (1); "
        "CREATE TABLE p2 (p int NOT NULL, gone int, k int NOT NULL, v int); ALTER TABLE p2 DROP gone; "
        f"ALTER TABLE {quote(name)} ATTACH PARTITION p2 FOR VALUES IN (2)"
    )
    await world.both(
        "INSERT INTO t SELECT 'v', repeat('k', 2300) || n, repeat('b', 9000) FROM generate_series(1, 3) AS n"
    )
    await world.both(f"INSERT INTO {quote(name)} VALUES (1, 10, 1), (1, 20, 2)")
    followed = await changed("t", name)
    await world.left.execute("UPDATE t SET v = 'w' WHERE id LIKE '%1'; DELETE FROM t WHERE id LIKE '%2'")
    await world.left.execute(
        f"UPDATE {quote(name)} SET v = 2 WHERE k = 20; UPDATE {quote(name)} SET p = 2 WHERE k = 10"
    )
    await followed.consume()
    long = "k" * 2300
    assert await keys(world) == {
        "t": {f'["{long}1"]', f'["{long}2"]'},
        name: {'["2","20"]', '["1","10"]', '["2","10"]'},
    }


async def test_a_truncate_makes_the_whole_table_dirty_until_a_later_pass(
    world: World, changed: Callable[..., Any]
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    followed = await changed("t")
    await verify_all(world, followed)
    assert await followed.unverified() == ()
    await world.both("TRUNCATE t")
    verdict = await followed.verify()
    assert (verdict.equal, verdict.unverified) == (False, (T,))
    with pytest.raises(GateClosed, match="no full pass has verified"):
        await followed.require_short_tail(100)
    await verify_all(world, followed)
    assert (await followed.verify()).equal


async def test_only_what_changed_before_a_verified_pass_began_is_cleared(
    world: World, changed: Callable[..., Any]
) -> None:
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n FROM generate_series(1, 50) AS n"
    )
    followed = await changed("t")
    verdict = await followed.verify()
    assert (verdict.equal, verdict.unverified) == (False, (T,))  # never verified: nothing may be concluded
    await world.both("UPDATE t SET v = 1 WHERE id = 1")
    await followed.consume()

    async def meanwhile(*_: object) -> None:
        await world.both("UPDATE t SET v = 2 WHERE id = 2")
        await followed.consume()

    await world.right.execute("UPDATE t SET v = 9 WHERE id = 9")  # a difference, so that the pass settles
    report = await world.compare("t", settle=meanwhile)
    assert report.mismatched == 1
    assert await followed.verified(report)
    assert await keys(world) == {"t": {'["2"]', '["9"]'}}
    verdict = await followed.verify()
    assert (verdict.equal, verdict.keys, verdict.differing, verdict.unverified) == (False, 2, {T: 1}, ())
    assert await keys(world) == {"t": {'["9"]'}}
    await world.right.execute("UPDATE t SET v = NULL WHERE id = 9")
    assert (await followed.verify()).equal
    assert await followed.require_short_tail(0) == 0
    await world.left.execute("UPDATE t SET v = 3")
    with pytest.raises(GateClosed, match=r"50 keys changed.*more than 49 \(t 50\)"):
        await followed.require_short_tail(49)
    assert await followed.require_short_tail(50) == 50


async def test_a_report_that_is_not_a_finished_pass_of_that_table_verifies_nothing(
    world: World, changed: Callable[..., Any]
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    report = await world.compare("t")
    assert not await followed.verified(report.model_copy(update={"id": report.id + 1000}))
    assert not await followed.verified(report.model_copy(update={"complete": False}))
    assert await followed.unverified() == (T,)


async def test_a_crash_between_keeping_and_advancing_brings_the_keys_again(
    world: World, changed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    await world.left.execute("INSERT INTO t VALUES (1)")

    async def crash(*_: object) -> None:
        raise KeyError("crash")

    with monkeypatch.context() as patched:
        patched.setattr(changes, "advance", crash)
        with pytest.raises(KeyError):
            await followed.consume()
    assert await keys(world) == {"t": {'["1"]'}}
    assert await followed.consume() > 0
    assert await followed.consume() == 0
    assert await keys(world) == {"t": {'["1"]'}}


async def slot_at(world: World) -> int:
    """Bytes of log from the beginning to where the slot stands."""
    return int(
        await world.left.fetchval(
            "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = $1",
            "cutover_svc_changes",
        )
    )


async def flushed(world: World) -> int:
    return int(await world.left.fetchval("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn"))


async def other_work(world: World) -> None:
    """Half a megabyte of log that no publication of ours tells of."""
    await world.left.execute("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 500)")


async def test_the_slot_moves_on_over_log_that_holds_no_change_of_ours(
    world: World, changed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From PostgreSQL 15 on nothing is sent for it; a quiet service must not keep the monolith's log for ever."""
    monkeypatch.setattr(changes, "REACH", 100_000)
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    await world.left.execute("CREATE TABLE other (v text)")
    await other_work(world)
    end, before = await flushed(world), await slot_at(world)
    assert end - before > 400_000
    await followed.consume()
    assert await slot_at(world) == before + 100_000, "one reading goes no further"
    await followed.drain()
    assert await slot_at(world) >= end
    assert await followed.tail() == {T: 0}


async def test_a_transaction_that_is_open_across_the_end_of_a_reading_is_read_whole_afterwards(
    world: World, changed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "REACH", 200_000)
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    await world.left.execute("CREATE TABLE other (v text)")
    await followed.drain()
    async with world.pair.monolith.session() as writer:
        begun = writer.transaction()
        await begun.start()
        await writer.execute("INSERT INTO t VALUES (1)")
        written = await flushed(world)
        await other_work(world)
        await followed.drain()
        assert await slot_at(world) > written + 200_000, "the row's own record lies behind the slot"
        await other_work(world)
        await writer.execute("INSERT INTO t VALUES (2)")
        await begun.commit()
    await followed.consume()
    assert await keys(world) == {}, "the commit lies beyond this reading"
    await followed.drain()
    assert await keys(world) == {"t": {'["1"]', '["2"]'}}


@pytest.mark.parametrize(("limit", "reach"), [(10_000, 40), (1, 40), (1, 1_000_000)])
async def test_wherever_a_reading_ends_no_commit_is_passed_over(
    world: World, changed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, limit: int, reach: int
) -> None:
    """In the middle of a record, between two, at the beginning of a commit."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    async with world.pair.monolith.session() as writer:
        begun = writer.transaction()
        await begun.start()
        await writer.execute("INSERT INTO t VALUES (0)")
        for number in range(1, 13):
            await world.left.execute(f"INSERT INTO t VALUES ({number})")
        await begun.commit()
    end = await flushed(world)
    readings = 0
    while await slot_at(world) < end:
        monkeypatch.setattr(changes, "REACH", reach - readings * 7 % 40)
        await followed.consume(limit)
        readings += 1
    assert readings >= (13 if reach > 40 else 60)
    assert await keys(world) == {"t": {f'["{number}"]' for number in range(13)}}


async def test_a_lost_slot_voids_what_was_verified(world: World, changed: Callable[..., Any]) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    await verify_all(world, followed)
    await followed.prepare()
    assert await followed.unverified() == ()  # prepared again: nothing happens
    await world.left.execute("SELECT pg_drop_replication_slot('cutover_svc_changes')")
    with pytest.raises(GateClosed, match="prepare it again"):
        await followed.consume()
    await followed.prepare()
    assert await followed.unverified() == (T,)
    await followed.drop()
    await followed.drop()
    assert (
        await world.left.fetchval("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'cutover_svc%'") == 0
    )


async def test_without_the_streams_publication_nothing_is_prepared(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    world.with_tables("t")
    with pytest.raises(GateClosed, match="'svc_reverse_pub' does not exist yet"):
        await ChangedKeys(world.pair, "reverse", world.control).prepare()


async def test_a_slot_that_another_session_is_still_making_does_not_count_as_made(
    world: World, changed: Callable[..., Any]
) -> None:
    """It goes with its session, and a switch would be left without it."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    await followed.drop()
    async with world.pair.monolith.session() as writer, world.pair.monolith.session() as maker:
        begun = writer.transaction()
        await begun.start()
        await writer.execute("INSERT INTO t VALUES (1)")  # for the end of which a new slot waits
        create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"
        making = asyncio.create_task(maker.execute(create, followed.slot))

        async def there() -> bool:
            return bool(
                await world.left.fetchval("SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active "
                                          "AND confirmed_flush_lsn IS NULL AND restart_lsn IS NOT NULL", followed.slot)
            )  # fmt: skip

        await until(there, "the slot is being made")
        assert not await followed.whole()
        with pytest.raises(NotYet, match="being made by another session"):
            await followed.prepare()
        await begun.rollback()
        await making
    assert await followed.whole()
    await followed.prepare()


async def test_two_readers_at_once_wait_for_each_other_and_lose_nothing(
    world: World, changed: Callable[..., Any]
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    async with ChangedKeys(world.pair, "forward", world.control) as second:
        for start in range(0, 1000, 100):
            await world.left.execute(f"INSERT INTO t SELECT n FROM generate_series({start}, {start + 99}) AS n")
            await asyncio.gather(followed.consume(), second.consume())
    assert await followed.tail() == {T: 1000}


async def test_a_lost_connection_is_opened_anew(world: World, changed: Callable[..., Any]) -> None:
    from cutover.errors import Unreachable

    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    followed = await changed("t")
    await world.left.execute("INSERT INTO t VALUES (1)")
    await world.left.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'cutover-changes/svc'"
    )
    with pytest.raises(Unreachable):
        await followed.consume()
    assert await followed.consume() > 0


async def test_an_opening_that_fails_leaves_no_session_behind(world: World, changed: Callable[..., Any]) -> None:
    await world.both("CREATE TABLE t (id int NOT NULL UNIQUE)")
    with pytest.raises(GateClosed, match="no primary key") as caught:
        await changed("t")
    assert caught.tb  # as long as the error is looked at, what it left behind is kept from the garbage collector
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover-changes/svc'"
    assert [await side.fetchval(sessions) for side in (world.left, world.right)] == [0, 0]


async def test_the_tail_is_verified_in_little_time_whatever_the_tables_size(
    world: World, changed: Callable[..., Any]
) -> None:
    tables = ("t1", "t2", "t3")
    for table in tables:
        await world.both(
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, v text, n numeric(20,8), at timestamptz, doc jsonb)"
        )
        await world.both(
            f"INSERT INTO {table} SELECT n, md5(n::text), n / 3.0, '2024-01-01', '{{\"a\": 1}}' "
            "FROM generate_series(1, 20000) AS n"
        )
    followed = await changed(*tables)
    await verify_all(world, followed)
    for round_ in range(5):
        for table in tables:
            await world.both(f"UPDATE {table} SET v = 'r{round_}' WHERE id % 121 = {round_}")
        await followed.consume()
        started = time.monotonic()
        verdict = await followed.verify(tidy=False)
        took = time.monotonic() - started
        assert (verdict.equal, verdict.keys) == (True, 3 * len(range(round_ or 121, 20001, 121)))
        await followed.verify()
        print(f"verified {verdict.keys} keys in {took * 1000:.1f} ms")
    assert took < 1.0  # a bound for a busy machine; about 20 ms on a quiet one
