"""Alarms of the sides: exactly one takes writes, its fences are the ones that were made, and nobody else writes."""

import asyncio

import asyncpg
import pytest

from cutover import doctor
from cutover.monitor import catalogs, fences, sides, writers
from cutover.postgres import epoch, fence
from cutover.postgres import writers as at_the_shut_side
from cutover.postgres.databases import Side
from cutover.postgres.identifiers import TableName
from cutover.switch import forward, reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.monitor.conftest import Watched
from tests.switch.conftest import order

TRADES = TableName("public", "trades")


async def test_a_service_that_preparation_is_not_done_with_is_not_judged(env: SwitchEnvironment) -> None:
    watched = Watched(env)
    await watched.on("service", fence.open_sql([TRADES]))
    looked = await watched.look()
    assert (looked.state, looked.findings) == ("not prepared yet", [])
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    assert {one.watch for one in (await watched.look()).findings} == {"writable-side", "fence"}


async def test_an_epoch_row_that_says_something_else_than_the_route(watched: Watched) -> None:
    service = watched.env.pair.service
    await watched.on("service", epoch.set_sql(service, "service", 7))
    (found,) = await watched.found("writable-side")
    assert (found.severity, found.subject) == ("critical", "epoch at the service")
    assert "says that the service is writable at epoch 7, the route says monolith, epoch 0" in found.text
    await watched.on("service", found.remedy.partition("_db': ")[2])
    await watched.quiet()


async def test_an_epoch_row_that_is_gone(watched: Watched) -> None:
    service = watched.env.pair.service
    await watched.on("monolith", f"DELETE FROM cutover.epoch WHERE service = '{service}'")
    (found,) = await watched.found("writable-side")
    assert "its epoch row is gone: cutover start preparation test" in str(found)
    async with watched.env.pair.monolith.session() as connection:
        await epoch.install(connection, service, "monolith")
    await watched.quiet()


async def test_an_epoch_row_that_is_gone_after_a_switch_is_made_as_the_route_has_it(watched: Watched) -> None:
    service = watched.env.pair.service
    await watched.switch("service")
    await watched.on("service", f"DELETE FROM cutover.epoch WHERE service = '{service}'")
    (found,) = await watched.found("writable-side")
    assert "its epoch row is gone" in found.text
    assert "preparation" not in found.remedy
    await watched.on("service", found.remedy.partition("there: ")[2])
    await watched.quiet()


async def test_a_database_that_takes_itself_for_the_other_sides(watched: Watched) -> None:
    """Restored from the other one's dump, perhaps."""
    await watched.on("service", "UPDATE cutover.epoch SET side = 'monolith'")
    (found,) = await watched.found("writable-side")
    assert (found.severity, found.subject) == ("critical", "epoch at the service")
    assert "takes itself for the monolith's, and is the service's" in found.text
    assert f"cutover doctor test --service {watched.env.pair.service}" in found.remedy
    await watched.on("service", "UPDATE cutover.epoch SET side = 'service'")
    await watched.quiet()


async def test_a_fence_that_lets_sessions_in_replica_mode_pass(watched: Watched) -> None:
    await watched.on("service", f"ALTER TABLE trades ENABLE TRIGGER {fence.WRITES}")
    async with watched.env.pair.target.session("psql") as rogue:
        await rogue.execute("SET session_replication_role = replica; INSERT INTO trades (id, price) VALUES (901, 1)")
        (found,) = await watched.found("fence")
        assert "lets sessions in replica mode pass" in found.text
        await watched.on("service", found.remedy)
        with pytest.raises(asyncpg.PostgresError) as refused:
            await rogue.execute("INSERT INTO trades (id, price) VALUES (902, 1)")
        assert refused.value.sqlstate == epoch.FENCED_SQLSTATE
    assert await watched.found("fence") == []


async def test_after_the_control_database_lost_a_switch_nobody_is_told_to_open_the_old_primary(
    watched: Watched,
) -> None:
    """Restored from a backup of before the switch, its route is of then; the newest rows are at the service."""
    env = watched.env
    await watched.switch("service")
    await env.control.execute("DELETE FROM control.switch")
    await env.control.execute(
        "UPDATE control.route SET primary_side = 'monolith', write_to_new_primary = false, epoch = 0"
    )
    await watched.on("service", f"DROP TRIGGER {fence.WRITES} ON trades; DROP TRIGGER {fence.TRUNCATE} ON trades")
    looked = await watched.look(mend=True)
    told = [one for one in looked.findings if one.watch == "fence"]
    assert {one.subject.partition(" at ")[2] for one in told} == {"the monolith", "the service"}
    seen = await fences.look(env.control, env.pair)
    alert = seen.alert(env.pair)
    assert alert is not None
    examined = await doctor.examine(env.plan, env.pair, env.control)
    assert examined.remedy == "", "--mend would refuse"
    assert set(seen.problems) <= set(examined.problems)
    assert not any("preparation" in one for one in examined.problems)
    for text in (*(one.remedy for one in told), *seen.problems, alert.text):
        assert "found out which side holds the newest rows" in text
        assert "TRIGGER" not in text
        assert "preparation" not in text
    assert seen.states["service"][TRADES] == "missing", "no fence is made either"
    await watched.on("monolith", fence.open_sql([TRADES]))
    both = [one for one in await watched.found("writable-side") if one.subject == "both"]
    assert [one.remedy for one in both] == [seen.disagree]


async def test_both_sides_open_is_told_with_the_statement_that_shuts_the_fence(watched: Watched) -> None:
    await watched.on("service", fence.open_sql([TRADES]))
    looked = await watched.look()
    assert {one.watch for one in looked.findings} == {"writable-side", "fence"}
    (sides_,) = [one for one in looked.findings if one.watch == "writable-side"]
    assert sides_.text == "trades take writes at both sides"
    (altered,) = [one for one in looked.findings if one.watch == "fence"]
    assert "is open, so both sides take writes" in altered.text
    await watched.on("service", altered.remedy.partition("Shut it: ")[2].partition(" — ")[0])
    await watched.quiet()


async def test_no_side_open_without_a_switch(watched: Watched) -> None:
    await watched.on("monolith", fence.close_sql([TRADES], always=True))
    (found,) = await watched.found("writable-side")
    assert found.text == "trades take writes at no side though no switch is under way"
    (altered,) = await watched.found("fence")
    await watched.on("monolith", altered.remedy)
    await watched.quiet()


async def test_a_fence_that_was_dropped_is_made_where_the_monitor_may(watched: Watched) -> None:
    await watched.on("service", f"DROP TRIGGER {fence.WRITES} ON trades; DROP TRIGGER {fence.TRUNCATE} ON trades")
    (found,) = await watched.found("fence")
    assert "trades at the service has no fence" in found.text
    assert "cutover start preparation test" in found.remedy
    (made,) = await watched.found("fence", mend=True)
    assert "it has one now" in made.text
    await watched.quiet()


@pytest.mark.parametrize(
    "made",
    [
        f"CREATE TRIGGER {fence.WRITES} BEFORE INSERT ON trades FOR EACH STATEMENT EXECUTE FUNCTION "
        "cutover.refuse('{service}')",
        f"CREATE TRIGGER {fence.WRITES} BEFORE INSERT OR UPDATE OR DELETE ON trades FOR EACH STATEMENT "
        "EXECUTE FUNCTION lenient()",
        f"CREATE TRIGGER {fence.WRITES} BEFORE INSERT OR UPDATE OR DELETE ON trades FOR EACH STATEMENT "
        "WHEN (current_user = 'nobody') EXECUTE FUNCTION cutover.refuse('{service}')",
    ],
)
async def test_a_trigger_of_the_same_name_that_refuses_less(watched: Watched, made: str) -> None:
    await watched.on(
        "service",
        "CREATE FUNCTION lenient() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"DROP TRIGGER {fence.WRITES} ON trades",
        made.format(service=watched.env.pair.service),
        f"ALTER TABLE trades ENABLE ALWAYS TRIGGER {fence.WRITES}",
    )
    (found,) = await watched.found("fence")
    assert "the fence of trades at the service is altered" in found.text
    await watched.on("service", found.remedy.partition("Shut it: ")[2].partition(" — ")[0])
    await watched.quiet()


@pytest.mark.parametrize("side", ["monolith", "service"])
async def test_the_function_behind_the_fences_was_replaced(watched: Watched, side: Side) -> None:
    await watched.on(
        side,
        "CREATE OR REPLACE FUNCTION cutover.refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
        "AS 'BEGIN RETURN NULL; END'",
    )
    (found,) = await watched.found("fence")
    assert found.subject == f"cutover.refuse at the {side}"
    async with watched.env.pair.at(side).session() as connection:
        await epoch.install(connection, watched.env.pair.service, side)
    await watched.quiet()


async def test_a_switch_that_was_left_lying(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def die(_: forward.Forward) -> None:
        begun.set()
        await asyncio.Event().wait()

    await reverse.make_ready(watched.env, "service")
    request = order(watched.env, "service")
    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, "_carry_marker", die)
        sleeping = asyncio.create_task(section.run(watched.env, request, lambda _: None))
        await asyncio.wait_for(begun.wait(), 20)
        # what a switch does on its way is not called wrong
        looked = await watched.look()
        assert (looked.settled, looked.findings) == (False, [])
        patch.setattr(sides, "LEFT_LYING", -100.0)
        (found,) = await watched.found("writable-side")
        assert "a switch is fenced for" in found.text
        assert "cutover worker" in found.remedy
        assert f"--service {watched.env.pair.service} --mend" in found.remedy
        sleeping.cancel()
        await asyncio.gather(sleeping, return_exceptions=True)
    await watched.quiet()


async def test_a_look_that_a_switch_came_into_judges_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fences.look

    async def during(*arguments: object, **options: object) -> fences.Look:
        seen = await original(*arguments, **options)  # type: ignore[arg-type]
        await watched.switch("service")
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(fences, "look", during)
        looked = await watched.look()
    assert (looked.settled, looked.findings) == (False, [])
    await watched.quiet()


async def test_a_session_that_writes_at_the_shut_side(watched: Watched) -> None:
    await watched.on("service", fence.open_sql([TRADES]))
    async with watched.env.pair.target.session("psql") as rogue:
        transaction = rogue.transaction()
        await transaction.start()
        await rogue.execute("INSERT INTO trades (id, price) VALUES (900, 1)")
        (found,) = await watched.found("rogue-writer")
        assert found.severity == "critical"
        assert f"pid {rogue.get_server_pid()}" in found.remedy
        assert "psql" in found.text
        await transaction.rollback()
    await watched.on("service", fence.close_sql([TRADES], always=True))
    await watched.quiet()


async def test_a_statement_that_is_just_being_refused_is_no_open_writer(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = fence.Holder(1, "psql", "cron", "active", "trades", "RowExclusiveLock", 0.0)
    looks = [[met], []]

    async def open_writers(*_: object) -> list[fence.Holder]:
        return looks.pop(0)

    monkeypatch.setattr(at_the_shut_side, "open_writers", open_writers)
    assert await watched.found("rogue-writer") == []
    assert looks == []


async def test_a_writer_that_names_itself_as_ours_and_is_not(watched: Watched) -> None:
    """The name alone proves nothing: the role has to be one that the fence lets through."""
    await watched.on(
        "service",
        fence.open_sql([TRADES]),
        "DO $$BEGIN CREATE ROLE watched_app LOGIN PASSWORD 'app'; EXCEPTION WHEN duplicate_object THEN NULL; END$$",
        "GRANT INSERT ON trades TO watched_app",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO watched_app",
    )
    rogue = await asyncpg.connect(
        watched.env.pair.target.dsn,
        user="watched_app",
        password="app",
        server_settings={"application_name": "cutover-relay"},
    )
    try:
        async with rogue.transaction():
            await rogue.execute("INSERT INTO trades (id, price) VALUES (900, 1)")
            (found,) = await watched.found("rogue-writer")
            assert "role watched_app" in found.text
    finally:
        await rogue.close()


async def test_statements_that_the_fence_refuses(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(asyncpg.PostgresError) as refused:
        await watched.on("service", "BEGIN; INSERT INTO trades (price) VALUES (1)")
    assert refused.value.sqlstate == epoch.FENCED_SQLSTATE
    (found,) = await watched.found("rogue-writer")
    assert (found.severity, found.subject) == ("warning", "refused at the service")
    assert epoch.FENCED_SQLSTATE in found.remedy
    monkeypatch.setattr(writers, "REFUSED_FOR", 0.0)
    await watched.quiet()


async def test_what_a_switch_refuses_is_no_rogue_writer(watched: Watched) -> None:
    await watched.switch("service")
    with pytest.raises(asyncpg.PostgresError):
        await watched.on("monolith", "UPDATE trades SET price = 2")
    await watched.quiet()  # the first look since the switch
    with pytest.raises(asyncpg.PostgresError):
        await watched.on("monolith", "UPDATE trades SET price = 2")
    (found,) = await watched.found("rogue-writer")
    assert found.subject == "refused at the monolith"


async def test_rows_that_were_written_and_captured_at_the_shut_side(outbox: Watched) -> None:
    await outbox.env.stream("reverse").start(copy=False)
    assert await outbox.found("rogue-writer") == []
    await outbox.env.stream("reverse").put_marker()
    assert await outbox.found("rogue-writer") == []
    await outbox.on(
        "service",
        fence.open_sql([TRADES]),
        "INSERT INTO trades (id, price) VALUES (900, 1)",
        fence.close_sql([TRADES], always=True),
    )
    (found,) = await outbox.found("rogue-writer")
    assert found.subject == "rows at the service"
    assert "1 changes were written at the service" in found.text
    assert found.remedy == f"cutover reconcile test --service {outbox.env.pair.service} --now"
