"""kill -9 of the relay and of the first copy at each of their points: nothing is lost, and nothing is written twice."""

import pytest

from cutover import faults
from cutover.postgres import outbox_copy
from cutover.streams.outbox import Backfill
from tests.streams.outbox_world import World
from tests.streams.test_outbox_kills import spawn
from tests.waiting import until

#: Each write of a row at the target, by whomever, in the transaction that did it.
COUNTED = """
CREATE TABLE written (id bigint, op text);
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.written VALUES (coalesce(NEW.id, OLD.id), TG_OP); RETURN NULL; END $$;
CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION count_it();
ALTER TABLE items ENABLE ALWAYS TRIGGER counted;
"""
REFUSED = "ALTER TABLE items ADD CONSTRAINT wanted CHECK (note <> 'refused')"


def points_of(prefix: str) -> list[str]:
    return [point for point in faults.points() if point.startswith(prefix)]


async def die(world: World, kind: str, point: str) -> None:
    process = await spawn(world, kind, OUTBOX_KILL_AT=point)
    assert await process.wait() == -9, f"{point} was reached"


async def written(world: World) -> list[tuple[object, ...]]:
    rows = await world.service.fetch("SELECT id, op, count(*) FROM written GROUP BY 1, 2 ORDER BY 1, 2")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("point", points_of("relay."))
async def test_a_relay_killed_at_any_point_leaves_the_rest_to_the_next(flowing: World, point: str) -> None:
    held = point.startswith("relay.hold")
    await flowing.service.execute(COUNTED + (REFUSED if held else ""))
    await flowing.monolith.execute(
        """
        INSERT INTO items SELECT n, 'n' || n, 'a' FROM generate_series(1, 9) n;
        UPDATE items SET note = 'b' WHERE id = 1;
        DELETE FROM items WHERE id = 2;
        """
    )
    if held:
        await flowing.monolith.execute("INSERT INTO items VALUES (100, 'n100', 'refused')")
    await die(flowing, "relay", point)
    # a second one dies at the same point, of what is left or of what is new
    await flowing.monolith.execute("INSERT INTO items VALUES (10, 'n10', 'a')")
    if point != "relay.hold.after":
        await die(flowing, "relay", point)
    async with flowing.relay():
        if held:

            async def is_held() -> bool:
                return [key.key for key in await flowing.stream().held()] == [("100",)]

            await until(is_held, "the key is held, once")
            await flowing.service.execute("ALTER TABLE items DROP CONSTRAINT wanted")
            [key] = await flowing.stream().held()
            await flowing.stream().retry([key.id], by="test", why="the constraint is gone")
        await flowing.drained()
    await flowing.require_equal()
    assert await flowing.stream().held() == []
    expected = [(number, "INSERT", 1) for number in (1, 3, 4, 5, 6, 7, 8, 9, 10)]
    assert await written(flowing) == expected + ([(100, "INSERT", 1)] if held else [])
    waits = await flowing.monolith.fetchval(f'SELECT count(*) FROM cutover."outbox_{flowing.pair.service}"')
    assert waits == 0, "and nothing waits any more"


@pytest.mark.parametrize("point", points_of("backfill."))
async def test_a_copy_killed_at_any_point_goes_on_with_the_next_range(
    world: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(outbox_copy, "CHUNK_BYTES", 16 << 10)
    await world.monolith.execute(
        "INSERT INTO items SELECT n, 'n' || n, repeat('x', 50) FROM generate_series(1, 1000) n; ANALYZE items"
    )
    await world.service.execute(COUNTED)
    await world.stream().start(copy=True)
    # a row whose deletion was applied, and which an earlier range has brought back
    await world.monolith.execute("INSERT INTO items VALUES (2000, 'n2000'); DELETE FROM items WHERE id = 2000")
    async with world.hands() as hands:
        await hands.drain()
    await world.service.execute(
        "SET cutover.applier = 'on'; INSERT INTO items VALUES (2000, 'n2000'); RESET cutover.applier"
    )
    done = "SELECT count(*) FROM cutover.backfill_chunk WHERE done"
    for _ in range(2):
        before = await world.service.fetchval(done)
        await die(world, "backfill", point)
        after = await world.service.fetchval(done)
        if point == "backfill.range.after":
            assert after > before, "what was noted stays noted"
    await Backfill(world.pair, "forward").run()
    assert {p.stage for p in await world.stream().progress()} == {"ready"}
    await world.require_equal()
    found = await written(world)
    assert [row for row in found if row[0] != 2000] == [(number, "INSERT", 1) for number in range(1, 1001)]
    assert [row for row in found if row[0] == 2000] == [(2000, "DELETE", 1), (2000, "INSERT", 1)]
    rows = await world.service.fetchval("SELECT sum(rows) FROM cutover.backfill_chunk WHERE tbl = 'items'")
    assert rows == 1000


@pytest.mark.parametrize("kind", ["relay", "backfill"])
async def test_one_killed_in_the_midst_of_its_transaction_at_the_target_has_done_nothing(
    world: World, kind: str
) -> None:
    await world.monolith.execute("INSERT INTO items SELECT n, 'n' || n, 'a' FROM generate_series(1, 9) n")
    await world.service.execute(
        COUNTED.replace("RETURN NULL", "IF NEW.id = 5 THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NULL")
    )
    await world.stream().start(copy=kind == "backfill")
    if kind == "relay":
        await world.monolith.execute("UPDATE items SET note = 'b'")

    async def waits() -> bool:
        return bool(
            await world.service.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'advisory' "
                "AND datname = current_database()"
            )
        )

    async def gone() -> bool:
        return not await world.service.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE $1 AND datname = current_database()",
            f"%cutover-{'copy' if kind == 'backfill' else 'relay'}%",
        )

    async with world.pair.target.session("test-lock") as blocker:
        await blocker.execute("SELECT pg_advisory_lock(7)")
        process = await spawn(world, kind)
        await until(waits, "it is in the midst of it")
        process.kill()
        await process.wait()
    await until(gone, "its sessions have ended")
    assert await written(world) == []
    assert not await world.service.fetchval("SELECT bool_or(done) FROM cutover.backfill_chunk WHERE tbl = 'items'")
    if kind == "backfill":
        await Backfill(world.pair, "forward").run()
    else:
        async with world.relay():
            await world.drained()
    await world.require_equal()
    assert await written(world) == [(number, "INSERT", 1) for number in range(1, 10)]
