"""The outbox stream between two real clusters: what is captured arrives, whoever wrote it and however."""

import asyncio

import asyncpg
import pytest

from cutover.errors import Conflict, NotYet
from cutover.postgres import outbox_capture
from cutover.streams.outbox import Backfill
from tests.streams.outbox_world import TABLES, World
from tests.waiting import until

WRITES = """
INSERT INTO items (id, name, note) SELECT n, 'n' || n, 'x' FROM generate_series(1, 60) n;
UPDATE items SET note = 'y' WHERE id % 2 = 0;
UPDATE items SET id = id + 1000 WHERE id <= 10;
DELETE FROM items WHERE id BETWEEN 20 AND 30;
INSERT INTO parts SELECT CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END, n, 'b' || n FROM generate_series(1, 40) n;
UPDATE parts SET region = 'a' WHERE region = 'b' AND "No" < 20;
INSERT INTO parts_b VALUES ('b', 100, 'straight into the partition');
INSERT INTO kinds (amount, at, data, list, feeling) VALUES
    (1.0, '2024-05-05 10:11:12.131415+02', '{"a": [1, 2.50]}', '{"x,y",NULL,"\\"q"}', 'glad'),
    ('NaN', 'infinity', NULL, NULL, NULL), (-0.00, NULL, 'null', '{}', 'sad');
UPDATE kinds SET amount = 1.00 WHERE amount = 1;
"""


async def test_every_kind_of_change_arrives_as_it_is(flowing: World) -> None:
    async with flowing.relay():
        await flowing.monolith.execute(WRITES)
        await flowing.drained()
        await flowing.require_equal()
        # keys that have arrived already, changed
        await flowing.monolith.execute(
            "UPDATE items SET id = id + 5000 WHERE id > 1000; UPDATE kinds SET amount = 2 WHERE amount = 'NaN';"
            "UPDATE parts SET region = 'b' WHERE region = 'a' AND \"No\" < 10;"
            "UPDATE kinds SET amount = 0 WHERE amount = 0"
        )
        await flowing.drained()
    await flowing.require_equal()
    assert await flowing.service.fetchval("SELECT count(*) FROM items") == 49
    assert await flowing.service.fetchval("SELECT amount::text FROM kinds WHERE amount = 1") == "1.00"


async def test_start_and_drop_again_change_nothing_and_take_everything_away(flowing: World) -> None:
    stream = flowing.stream()
    await stream.start(copy=False)
    assert await stream.exists()
    await stream.drop()
    await stream.drop()
    assert not await stream.exists()
    assert await flowing.monolith.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cutover_capture%'") == 0
    assert await flowing.monolith.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture_%'") == 0
    await flowing.monolith.execute("INSERT INTO items (name) VALUES ('goes on')")


async def test_a_role_without_any_right_on_our_schema_is_captured(flowing: World) -> None:
    await flowing.monolith.execute("DROP ROLE IF EXISTS outbox_app; CREATE ROLE outbox_app")
    await flowing.monolith.execute("GRANT ALL ON items TO outbox_app; SET ROLE outbox_app; SET search_path = items")
    try:
        await flowing.monolith.execute("INSERT INTO public.items (id, name) VALUES (1, 'a')")
        # the mark of our own appliers does nothing for a role that does not own the capture
        await flowing.monolith.execute("SET SESSION AUTHORIZATION outbox_app; SET cutover.applier = 'on'")
        await flowing.monolith.execute("INSERT INTO public.items (id, name) VALUES (2, 'b')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await flowing.monolith.execute(f'SELECT FROM cutover."outbox_{flowing.pair.service}"')
    finally:
        await flowing.monolith.execute("RESET SESSION AUTHORIZATION; RESET ROLE; RESET search_path")
        await flowing.monolith.execute("RESET cutover.applier; DROP OWNED BY outbox_app; DROP ROLE outbox_app")
    async with flowing.hands() as hands:
        await hands.drain()
    await flowing.require_equal()
    assert await flowing.service.fetchval("SELECT count(*) FROM items") == 2


async def test_a_partition_that_the_application_makes_later_is_captured(flowing: World) -> None:
    partition = "CREATE TABLE parts_c PARTITION OF parts FOR VALUES IN ('c')"
    await flowing.service.execute(partition)
    await flowing.monolith.execute("DROP ROLE IF EXISTS outbox_owner; CREATE ROLE outbox_owner")
    await flowing.monolith.execute(
        "GRANT CREATE ON SCHEMA public TO outbox_owner; ALTER TABLE parts OWNER TO outbox_owner"
    )
    try:
        await flowing.monolith.execute(f"SET ROLE outbox_owner; {partition}; INSERT INTO parts_c VALUES ('c', 1, 'x')")
    finally:
        await flowing.monolith.execute("RESET ROLE; REASSIGN OWNED BY outbox_owner TO CURRENT_USER")
        await flowing.monolith.execute("DROP OWNED BY outbox_owner; DROP ROLE outbox_owner")
    async with flowing.hands() as hands:
        await hands.drain()
    await flowing.require_equal()
    assert await flowing.service.fetchval("SELECT body FROM parts WHERE region = 'c'") == "x"
    # its TRUNCATE is captured once `prepare` has been there; until then that shows
    health = await flowing.stream().health()
    assert "TRUNCATE of parts_c" in health.detail
    assert not health.lost
    await flowing.stream().prepare()
    assert "parts_c" not in (await flowing.stream().health()).detail


async def test_writers_that_bypass_the_library_are_captured(flowing: World) -> None:
    """Cascades, triggers of the application's own, replica mode, and COPY."""
    await flowing.monolith.execute(
        """
        ALTER TABLE items ADD parent bigint REFERENCES items ON DELETE CASCADE;
        CREATE FUNCTION twin() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id < 100 THEN INSERT INTO items (id, name) VALUES (NEW.id + 100, 'twin ' || NEW.id); END IF;
            RETURN NULL; END $$;
        CREATE TRIGGER twin AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION twin();
        """
    )
    await flowing.service.execute("ALTER TABLE items ADD parent bigint")
    async with flowing.hands() as hands:
        await flowing.monolith.execute(
            "INSERT INTO items (id, name) VALUES (1, 'a'); INSERT INTO items (id, name, parent) VALUES (2, 'b', 1)"
        )
        await flowing.monolith.copy_records_to_table("items", records=[(3, "c")], columns=["id", "name"])
        await flowing.monolith.execute(
            "SET session_replication_role = replica; INSERT INTO items (id, name) VALUES (4, 'd');"
            "RESET session_replication_role"
        )
        await hands.drain()
        assert await flowing.service.fetch("SELECT id FROM items ORDER BY 1") == await flowing.monolith.fetch(
            "SELECT id FROM items ORDER BY 1"
        ), "rows of some writer were not captured"
        await flowing.monolith.execute("DELETE FROM items WHERE id = 1")
        await hands.drain()
    await flowing.require_equal()
    assert await flowing.service.fetchval("SELECT array_agg(id ORDER BY id) FROM items") == [3, 4, 101, 102, 103]


async def test_truncate_is_the_delete_of_every_row_or_refused(flowing: World) -> None:
    await flowing.monolith.execute(WRITES)
    async with flowing.hands() as hands:
        await hands.drain()
        async with flowing.monolith.transaction():
            await flowing.monolith.execute("TRUNCATE items, parts, kinds")
            await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (5, 'after')")
        await hands.drain()
        await flowing.require_equal()
        assert await flowing.contents("service") == [[(5, "after", None)], [], []]
        await flowing.monolith.execute("INSERT INTO parts VALUES ('a', 1, 'x'), ('b', 1, 'y')")
        await hands.drain()
        await flowing.monolith.execute("TRUNCATE parts_b")
        await hands.drain()
        await flowing.require_equal()
    flows = hands.ends.flows
    await outbox_capture.install(flowing.monolith, flowing.pair.service, flows, truncate="refuse")
    with pytest.raises(asyncpg.PostgresError, match="TRUNCATE of items is refused"):
        await flowing.monolith.execute("TRUNCATE items")


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_truncate_that_would_not_see_all_rows_is_refused(flowing: World, isolation: str) -> None:
    """In the snapshot of such a transaction rows are missing that it takes away all the same."""
    async with flowing.hands() as hands:
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'before')")
        async with flowing.pair.monolith.session("old snapshot") as old:
            await old.execute(f"BEGIN ISOLATION LEVEL {isolation}; SELECT count(*) FROM items")
            await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (2, 'unseen')")
            await hands.drain()
            with pytest.raises(asyncpg.PostgresError, match=r"TRUNCATE of items .* READ COMMITTED") as refused:
                await old.execute("TRUNCATE items")
            assert refused.value.sqlstate == outbox_capture.TRUNCATE_SQLSTATE
            await old.execute("COMMIT")
        await flowing.monolith.execute("BEGIN ISOLATION LEVEL READ UNCOMMITTED; TRUNCATE items; COMMIT")
        await hands.drain()
        assert await flowing.service.fetchval("SELECT count(*) FROM items") == 0
    await flowing.require_equal()


async def test_our_own_appliers_are_not_captured_at_the_other_side(flowing: World) -> None:
    await flowing.stream("reverse").prepare()
    await flowing.monolith.execute(WRITES)
    async with flowing.hands() as hands:
        await hands.drain()
    await flowing.require_equal()
    assert await flowing.service.fetchval(f'SELECT count(*) FROM cutover."outbox_{flowing.pair.service}"') == 0


async def test_a_trigger_that_somebody_took_away_is_a_lost_stream_until_it_is_rebuilt(flowing: World) -> None:
    await flowing.monolith.execute("ALTER TABLE parts_b DISABLE TRIGGER cutover_capture")
    health = await flowing.stream().health()
    assert health.lost
    assert "parts_b" in health.detail
    await flowing.stream().prepare()
    assert not (await flowing.stream().health()).lost


async def test_a_marker_waits_for_a_relay_and_for_every_intent_before_it(flowing: World) -> None:
    stream = flowing.stream()
    await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'a')")
    marker = await stream.put_marker()
    with pytest.raises(NotYet):
        await stream.await_marker(marker, 0.2)
    assert (await stream.lag(0.1)).seconds is None
    assert "no relay" in (await stream.health()).detail
    async with flowing.monolith.transaction(), flowing.relay():
        # what is still open does not hold up a marker that was put before
        await stream.await_marker(marker, 20)
        await until(stream.ready, "the stream is ready")
        assert (await stream.health()).ok
        assert ((await stream.lag(10)).seconds or 99) < 10

        async def told() -> bool:
            work = await stream.work()
            return work is not None and work.applied == 1 and work.failures == 0

        await until(told, "the work is counted")
    await flowing.require_equal()
    # a relay that is ended gives its leases back
    assert not await flowing.service.fetchval("SELECT count(*) FROM cutover.relay_lease WHERE owner IS NOT NULL")


async def test_a_version_drawn_early_and_committed_late_is_not_passed_over(flowing: World) -> None:
    async with flowing.relay():
        async with flowing.monolith.transaction():
            await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'early')")
            async with flowing.pair.monolith.session() as later:
                await later.execute("INSERT INTO items (id, name) SELECT n, 'n' || n FROM generate_series(2, 200) n")
            await flowing.drained()
            assert await flowing.service.fetchval("SELECT count(*) FROM items") == 199
        await flowing.drained()
    await flowing.require_equal()


async def test_what_was_rolled_back_never_arrives(flowing: World) -> None:
    async with flowing.relay():
        transaction = flowing.monolith.transaction()
        await transaction.start()
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'ghost')")
        await transaction.rollback()
        await flowing.drained()
    assert await flowing.service.fetchval("SELECT count(*) FROM items") == 0


async def test_stopping_stops_relays_and_starting_goes_on(flowing: World) -> None:
    stream = flowing.stream()
    async with flowing.relay():
        await flowing.drained()
        await stream.stop()
        await flowing.monolith.execute("INSERT INTO items (id, name) VALUES (1, 'waits')")
        await asyncio.sleep(0.2)
        assert await flowing.service.fetchval("SELECT count(*) FROM items") == 0
        assert not await stream.ready()
        await stream.start(copy=False)
        await flowing.drained()
    await flowing.require_equal()


async def test_a_copy_into_tables_that_hold_rows_is_refused(world: World) -> None:
    await world.service.execute("SET cutover.applier = 'on'; INSERT INTO items (id, name) VALUES (1, 'whose?')")
    with pytest.raises(Conflict, match="items"):
        await world.stream().start(copy=True)
    assert not await world.stream().exists()


async def test_rows_from_before_the_stream_are_copied(world: World) -> None:
    await world.monolith.execute(WRITES)
    stream = world.stream()
    await stream.start(copy=True)
    assert {p.stage for p in await stream.progress()} == {"waiting"}
    async with world.relay():
        assert not await stream.ready()
        await Backfill(world.pair, "forward").run()
        await until(stream.ready, "the stream is ready")
        await world.monolith.execute("UPDATE items SET note = 'later'")
        await world.drained()
    await world.require_equal()
    progress = {p.table: p for p in await stream.progress()}
    assert {p.stage for p in progress.values()} == {"ready"}
    assert progress["items"].rows_copied == 49
    assert sorted(progress) == [str(t) for t in TABLES]
