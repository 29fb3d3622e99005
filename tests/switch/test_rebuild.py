"""A stream whose slot was lost is rebuilt without losing what it never carried."""

import pytest

from cutover import faults
from cutover.control import rebuilds, reports
from cutover.errors import NotYet
from cutover.plan.models import Table
from cutover.postgres import giving_way
from cutover.postgres.databases import SIDES
from cutover.reconcile.passes import Job, run_pass
from cutover.streams.logical import LogicalStream
from cutover.switch import finish, rebuild, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import order
from tests.waiting import until


async def test_a_lost_reverse_slot_is_rebuilt_and_every_missed_row_comes_over(env: SwitchEnvironment) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    assert (await section.run(env, request, lambda _: None)).result == "done"
    await finish.finish(env, request)
    stream = env.stream("reverse")
    assert isinstance(stream, LogicalStream)
    await stream.stop()

    async def gone() -> bool:
        async with env.pair.target.session() as connection:
            active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active"
            return not await connection.fetchval(active, stream.subscription)

    await until(gone, "the walsender has ended")
    async with env.pair.target.session() as connection:
        await connection.execute("SELECT pg_drop_replication_slot($1)", stream.subscription)
        await connection.execute("INSERT INTO trades (price, note) SELECT i, 'missed' FROM generate_series(1, 50) i")
        await connection.execute("UPDATE trades SET note = 'changed' WHERE id = 5")
        await connection.execute("DELETE FROM trades WHERE id = 9")
    assert (await stream.health()).lost
    said: list[str] = []
    for report in await rebuild.rebuild(env, said.append):
        assert report.differences == 0
    query = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        assert await one.fetchval(query) == await two.fetchval(query)
    assert (await stream.health()).ok
    assert any("52 rows mended" in line for line in said), said
    assert await reports.open_differences(env.control, "test", env.pair.service) == []


async def test_what_the_gap_left_behind_does_not_stop_the_stream_that_is_built_anew(env: SwitchEnvironment) -> None:
    """Deleted in the gap and there again behind it; a unique value that another row had before the gap."""
    stream = env.stream("forward")
    for side in SIDES:
        async with env.pair.at(side).session() as connection:
            await connection.execute(
                "CREATE UNIQUE INDEX ON trades (lower(note)) WHERE note LIKE 'u%'; "
                "CREATE UNIQUE INDEX ON trades (price) NULLS NOT DISTINCT"
            )
    async with env.pair.monolith.session() as source:
        await source.execute("UPDATE trades SET note = 'U' || id WHERE id <= 20")
        await source.execute("UPDATE trades SET note = lower(note), price = NULL WHERE id = 20")
        await stream.await_marker(await stream.put_marker(), 10)
        await stream.drop()
        # unseen: three rows go, one gives its unique values away
        await source.execute(
            "DELETE FROM trades WHERE id IN (1, 2, 20); UPDATE trades SET note = 'x', price = -3 WHERE id = 3"
        )
        await stream.prepare()
        await stream.start(copy=False, gap=True)
        await source.execute(
            "INSERT INTO trades (id, price, note) VALUES (1, 1, 'again'), (301, NULL, 'u20'), (2, -2, 'u2')"
        )
        await source.execute("UPDATE trades SET price = 3, note = 'u3' WHERE id = 4")
        await stream.await_marker(await stream.put_marker(), 10)
    await rebuild.rebuild(env, lambda _: None)
    query = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        assert await one.fetchval(query) == await two.fetchval(query)
        triggers = "SELECT count(*) FROM pg_trigger WHERE tgname = $1"
        functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'give_way%'"
        assert await two.fetchval(triggers, giving_way.TRIGGER) == await two.fetchval(functions) == 0
    assert (await stream.health()).ok


async def test_rows_give_way_by_unique_indexes_over_a_type_and_a_function_of_the_applications_schema(
    env: SwitchEnvironment,
) -> None:
    stream = env.stream("forward")
    for side in SIDES:
        async with env.pair.at(side).session() as connection:
            await connection.execute(
                "CREATE TYPE order_status AS ENUM ('open', 'closed'); "
                "ALTER TABLE trades ADD status order_status; "
                "CREATE FUNCTION folded(text) RETURNS text IMMUTABLE LANGUAGE sql RETURN pg_catalog.lower($1); "
                "CREATE UNIQUE INDEX ON trades (price) WHERE status = 'open'::order_status; "
                "CREATE UNIQUE INDEX ON trades (folded(note))"
            )
    async with env.pair.monolith.session() as source:
        await stream.drop()
        await source.execute("UPDATE trades SET price = -1, status = 'open', note = 'A' WHERE id = 1")
        await stream.prepare()
        await stream.start(copy=False, gap=True)
        await source.execute("UPDATE trades SET price = 1000 WHERE id = 1")
        await source.execute("UPDATE trades SET price = -1, status = 'open' WHERE id = 2")
        await source.execute("INSERT INTO trades (id, price, note) VALUES (301, 301, 'ROW 301')")
        await stream.await_marker(await stream.put_marker(), 10)
    assert (await stream.health()).apply_errors == 0
    await rebuild.rebuild(env, lambda _: None)
    query = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        assert await one.fetchval(query) == await two.fetchval(query)


async def test_dropping_a_stream_takes_away_what_lets_rows_give_way(env: SwitchEnvironment) -> None:
    async with env.pair.target.session() as sink:
        await giving_way.install(sink, env.pair.service, env.pair.tables)
        await env.stream("forward").drop()
        assert await sink.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname = $1", giving_way.TRIGGER) == 0
        assert await sink.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE 'give_way%'") == 0


async def test_rebuilding_a_stream_that_is_whole_changes_no_row(env: SwitchEnvironment) -> None:
    said: list[str] = []
    assert all(report.differences == 0 for report in await rebuild.rebuild(env, said.append))
    assert not any("mended" in line for line in said)


async def test_a_rebuild_whose_stream_stands_still_does_not_end_with_rows_that_nobody_could_judge(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No marker arrives, so nothing that differs is ever confirmed; the report has no difference all the same."""
    stream, service = env.stream("forward"), env.pair.service
    await stream.drop()
    async with env.pair.monolith.session() as source:
        await source.execute("INSERT INTO trades (price, note) SELECT i, 'missed' FROM generate_series(1, 50) i")

    async def stand_still(point: str) -> None:
        if point == "rebuild.mend.before":
            await stream.stop()

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "_READY_SECONDS", 1.0)
        rules = {"conflict": "source-wins", "alert_on_conflict": False, "reconcile": {"max_lag": "2s"}}
        patch.setattr(rebuild, "_RULES", Table.model_validate(rules))
        with faults.armed(stand_still), pytest.raises(NotYet, match="did not carry a marker"):
            await rebuild.rebuild(env, lambda _: None)
    assert await rebuilds.unfinished(env.control, "test", service, "forward")
    async with env.pair.target.session() as sink:
        assert await giving_way.installed(sink, env.pair.tables)
    assert all(report.differences == 0 for report in await rebuild.rebuild(env, lambda _: None))
    assert await rebuilds.unfinished(env.control, "test", service, "forward") == ""
    async with env.pair.target.session() as sink:
        assert await sink.fetchval("SELECT count(*) FROM trades WHERE note = 'missed'") == 50


async def test_a_rebuild_does_not_end_while_a_row_will_not_settle(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def moving(job: Job) -> reports.TableReport:
        return (await run_pass(job)).model_copy(update={"unsettled": 3})

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "run_pass", moving)
        with pytest.raises(NotYet, match="positions: 3 rows changed at every look"):
            await rebuild.rebuild(env, lambda _: None)
    assert await rebuilds.unfinished(env.control, "test", env.pair.service, "forward")
    await rebuild.rebuild(env, lambda _: None)
    assert await rebuilds.unfinished(env.control, "test", env.pair.service, "forward") == ""
