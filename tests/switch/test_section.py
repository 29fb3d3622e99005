"""The fenced section on real clusters: forwards, back, and after every kind of interruption."""

import asyncio
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from cutover.control import conflicts, switches
from cutover.errors import Conflict, StaleAttempt
from cutover.flags import store as flags
from cutover.monitor import catalogs
from cutover.postgres import epoch, fence
from cutover.postgres.applier import applier_session
from cutover.postgres.databases import CONNECTION_ERRORS, Side, other
from cutover.switch import finish, forward, gates, reverse, section
from cutover.switch.attempt import open_attempt
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome
from cutover.switch.steps import POINT_OF_NO_RETURN, SECTION
from tests.switch.conftest import TABLES, order
from tests.waiting import until

INSERT = "INSERT INTO trades (price) VALUES (1) RETURNING id"


async def writable(env: SwitchEnvironment, side: Side) -> bool:
    """Whether that side takes an application's write."""
    async with env.pair.at(side).session() as connection:
        return await accepted(connection)


async def accepted(connection: asyncpg.Connection) -> bool:
    """Whether an insert was taken; any other refusal than the fence's is an error of the test."""
    try:
        await connection.execute(INSERT)
    except asyncpg.PostgresError as error:
        if error.sqlstate != epoch.FENCED_SQLSTATE:
            raise
        return False
    return True


async def switch(env: SwitchEnvironment, to_side: Side, switch_id: str = "") -> SwitchOutcome:
    return await section.run(env, order(env, to_side, switch_id), lambda _: None)


async def there_and_finished(env: SwitchEnvironment, to_side: Side) -> SwitchOutcome:
    await reverse.make_ready(env, to_side)
    request = order(env, to_side)
    outcome = await section.run(env, request, lambda _: None)
    assert outcome.result == "done", outcome
    await finish.finish(env, request)
    return outcome


async def same_rows(env: SwitchEnvironment) -> bool:
    query = "SELECT (SELECT jsonb_agg(t ORDER BY id) FROM trades t)::text"
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        return bool(await one.fetchval(query) == await two.fetchval(query))


async def test_switch_rollback_and_second_switch_lose_nothing_and_need_no_backfill(env: SwitchEnvironment) -> None:
    expected = 200
    for to_side in ("service", "monolith", "service"):
        assert await writable(env, other(to_side))
        expected += 1
        outcome = await there_and_finished(env, to_side)
        assert outcome.pause_ms > 0
        assert outcome.compared_keys >= 1
        assert [step.name for step in outcome.steps] == list(SECTION)
        assert not await writable(env, other(to_side))
        assert await writable(env, to_side)
        expected += 1
        route = await flags.get(env.control, "test", env.pair.service)
        assert (route.primary_side, route.epoch, route.pause_id) == (to_side, outcome.epoch, None)
        await until(lambda: same_rows(env), "both sides hold the same rows")
    async with env.pair.monolith.session() as connection:
        assert await connection.fetchval("SELECT count(*) FROM trades") == expected


async def test_sequences_of_the_new_side_never_give_an_id_twice(env: SwitchEnvironment) -> None:
    async with env.pair.monolith.session() as source:
        last = await source.fetchval(INSERT)
    await there_and_finished(env, "service")
    async with env.pair.target.session() as sink:
        assert await sink.fetchval(INSERT) > last


@pytest.mark.parametrize("step", SECTION)
async def test_an_error_before_the_journal_is_undone_and_one_after_it_finished(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await reverse.make_ready(env, "service")
    name = {"announce-pause": "_announce", "marker": "_carry_marker", "sequences": "_raise_sequences"}
    method = name.get(step, f"_{step}")
    original = getattr(forward.Forward, method)

    async def fail(self: forward.Forward) -> None:
        await original(self)
        raise ConnectionResetError("injected")

    monkeypatch.setattr(forward.Forward, method, fail)
    outcome = await switch(env, "service")
    done = SECTION.index(step) >= SECTION.index(POINT_OF_NO_RETURN)
    assert outcome.result == ("done" if done else "undone"), outcome
    assert await writable(env, "service") == done
    assert await writable(env, "monolith") == (not done)
    route = await flags.get(env.control, "test", env.pair.service)
    assert route.pause_id is None
    assert route.primary_side == ("service" if done else "monolith")


@pytest.mark.parametrize("step", SECTION)
async def test_an_attempt_that_vanishes_is_recovered_by_the_next(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As after kill -9: no handler of the first attempt runs, its sessions stay open."""
    await reverse.make_ready(env, "service")
    name = {"announce-pause": "_announce", "marker": "_carry_marker", "sequences": "_raise_sequences"}
    method = name.get(step, f"_{step}")
    original = getattr(forward.Forward, method)
    reached = asyncio.Event()

    async def hang(self: forward.Forward) -> None:
        await original(self)
        reached.set()
        await asyncio.Event().wait()

    request = order(env, "service")
    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, method, hang)
        sleeping = asyncio.create_task(section.run(env, request, lambda _: None))
        await asyncio.wait_for(reached.wait(), 20)
    outcome = await section.run(env, request, lambda _: None)
    done = SECTION.index(step) >= SECTION.index(POINT_OF_NO_RETURN)
    assert outcome.result == ("done" if done else "undone")
    assert outcome.recovered
    assert await writable(env, "service") == done
    assert await writable(env, "monolith") == (not done)
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    # asked once more, the same switch gives the same answer
    assert await section.run(env, request, lambda _: None) == outcome


async def test_a_switch_of_a_run_that_is_gone_is_ended_before_the_next_begins(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    reached = asyncio.Event()

    async def hang(self: forward.Forward) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(forward.Forward, "_carry_marker", hang)
        gone = asyncio.create_task(switch(env, "service"))
        await asyncio.wait_for(reached.wait(), 20)
    assert not await writable(env, "monolith")
    outcome = await switch(env, "service")
    assert outcome.result == "done"
    assert await writable(env, "service")
    assert not await writable(env, "monolith")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert await writable(env, "service")


async def test_an_overtaken_attempt_has_no_further_effect(env: SwitchEnvironment) -> None:
    async with open_attempt(env) as old, open_attempt(env) as new:
        await old.seize("monolith")
        await new.seize("monolith")
        with pytest.raises((StaleAttempt, asyncpg.PostgresError, *CONNECTION_ERRORS)):
            async with old.effect("monolith") as connection:
                await epoch.set_epoch(connection, env.pair.service, "service", 99)
    async with env.pair.monolith.session() as connection:
        row = await epoch.read(connection, env.pair.service)
    assert row is not None
    assert row.epoch == 0


async def test_a_lost_answer_of_the_journal_is_read_back(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    original = switches.advance

    async def lose(control: Any, row: Any, to_state: Any, **keywords: Any) -> Any:
        result = await original(control, row, to_state, **keywords)
        if to_state == "journaled":
            raise ConnectionResetError("the answer is lost")
        return result

    monkeypatch.setattr(switches, "advance", lose)
    outcome = await switch(env, "service")
    assert outcome.result == "done"
    assert not outcome.recovered


async def test_a_difference_inside_the_fence_undoes_the_switch(env: SwitchEnvironment) -> None:
    await reverse.make_ready(env, "service")
    async with env.pair.monolith.session() as source:
        await source.execute("UPDATE trades SET note = 'changed' WHERE id = 7")
    stream = env.stream("forward")
    await stream.await_marker(await stream.put_marker(), 10)
    # with an origin of ours, or the reverse stream would carry it to the monolith, and both would be equal again
    async with applier_session(env.pair.target, env.pair.service, "test") as sink:
        await sink.execute("UPDATE trades SET note = 'rotten' WHERE id = 7")
    outcome = await switch(env, "service")
    assert outcome.result == "undone"
    assert "trades: 1" in (outcome.reason or "")
    assert await writable(env, "monolith")


async def test_a_transaction_in_the_way_holds_the_switch_off_and_is_named(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_CLEAR_SECONDS", 0.0)
    await reverse.make_ready(env, "service")
    async with env.pair.monolith.session("the nightly report") as writer:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute("INSERT INTO trades (price) VALUES (1)")
        await asyncio.sleep(forward._OLD_TRANSACTION_SECONDS + 0.1)
        outcome = await switch(env, "service")
        assert outcome.result == "undone"
        assert "the nightly report" in (outcome.reason or "")
        await transaction.commit()
    assert await writable(env, "monolith")


async def test_a_switch_to_where_the_service_is_already_is_refused(env: SwitchEnvironment) -> None:
    with pytest.raises(Conflict, match="already"):
        await switch(env, "monolith")


async def test_at_no_instant_are_two_sides_writable(env: SwitchEnvironment) -> None:
    """Writers hammer both sides through switches; a commit at one side never overlaps a write at the other."""
    taken: list[tuple[Side, int, int]] = []
    stop = asyncio.Event()

    async def hammer(side: Side) -> None:
        async with env.pair.at(side).session() as connection, env.control.connection() as clock:
            while not stop.is_set():
                # one server's clock for both: the interval in which the write was surely open
                begun = await clock.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")
                if await accepted(connection):
                    ended = await clock.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")
                    taken.append((side, begun, ended))

    hammers = [asyncio.create_task(hammer(side)) for side in ("monolith", "service")]
    for to_side in ("service", "monolith", "service", "monolith"):
        await there_and_finished(env, to_side)
    stop.set()
    await asyncio.gather(*hammers)
    sides = [side for side, _, _ in sorted(taken, key=lambda one: one[2])]
    changes = sum(one != two for one, two in pairwise(sides))
    assert changes <= 4
    assert {"monolith", "service"} == set(sides)
    async with env.pair.monolith.session() as one, env.pair.target.session() as two:
        for connection in (one, two):
            states = await fence.states_of(connection, await fence.relations(connection, TABLES))
            assert len(set(states.values())) == 1


async def test_an_open_case_closes_the_write_gate_and_the_command_is_named(env: SwitchEnvironment) -> None:
    await catalogs.take(env.control, env.pair, env.plan.hash, by="test")
    assert (await gates.measure(env, "service")).problems == []
    case = await conflicts.open_case(
        env.control, migration="test", service=env.pair.service, table="trades", key_json='["1"]', kind="mismatched",
        rule="manual",
    )  # fmt: skip
    measured = await gates.measure(env, "service")
    (problem,) = measured.problems
    assert f"cutover conflicts list test --service {env.pair.service}" in problem
    await conflicts.decide(env.control, "test", case, "alice", "primary")
    assert not (await gates.measure(env, "service")).ok
    await conflicts.resolve(env.control, case, "alice", "both sides agree")
    assert (await gates.measure(env, "service")).ok
