"""What is left, and who finishes it, when a server, a session or a whole attempt goes away in the middle."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import asyncpg
import pytest

from cutover import faults
from cutover.control import switches
from cutover.errors import GateClosed, NotYet, StaleAttempt, Unreachable
from cutover.flags import store as flags
from cutover.postgres import epoch, fence, replication
from cutover.postgres.databases import Side
from cutover.streams.logical import LogicalStream
from cutover.switch import forward, reverse, section
from cutover.switch.attempt import Attempt, open_attempt
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome
from tests.switch.conftest import TABLES, order
from tests.switch.test_mending import Killed
from tests.switch.test_section import switch, writable

Forward = forward.Forward


def break_after(patch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    """That step ends, and then nothing of what follows it happens."""
    original = getattr(Forward, method)

    async def fail(self: Forward) -> None:
        await original(self)
        raise error

    patch.setattr(Forward, method, fail)


async def cancelled_at(point: str, work: Coroutine[Any, Any, SwitchOutcome]) -> None:
    """It is cancelled twice as it reaches that point, and may go on then."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def stop(passed: str) -> None:
        if passed == point:
            reached.set()
            await go_on.wait()

    with faults.armed(stop):
        running = asyncio.create_task(work)
        await asyncio.wait_for(reached.wait(), 20)
        for _ in range(2):
            running.cancel()
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([running], timeout=30)
    assert running.cancelled()


def without(patch: pytest.MonkeyPatch, side: Side) -> None:
    """That side answers nobody."""
    original = Attempt.session

    async def session(self: Attempt, wanted: Side) -> asyncpg.Connection:
        if wanted == side:
            raise Unreachable(f"the {side} cannot be reached")
        return await original(self, wanted)

    patch.setattr(Attempt, "session", session)


async def test_the_old_primary_goes_on_at_once_when_the_other_side_has_died_behind_the_fence(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    with monkeypatch.context() as patch:
        original = Forward._fence

        async def fence_and_lose(self: Forward) -> None:
            await original(self)
            without(patch, "service")
            raise ConnectionResetError("the other server is gone")

        patch.setattr(Forward, "_fence", fence_and_lose)
        with pytest.raises(Unreachable):
            await section.run(env, request, lambda _: None)
        assert await writable(env, "monolith")
        assert (await flags.get(env.control, "test", env.pair.service)).pause_id is None
        with pytest.raises(Unreachable):  # still away: nothing gets worse
            await section.run(env, request, lambda _: None)
        assert await writable(env, "monolith")
    outcome = await section.run(env, request, lambda _: None)
    assert outcome.result == "undone"
    assert not await writable(env, "service")


async def test_the_new_side_goes_on_when_the_old_one_has_died_behind_the_journal(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    with monkeypatch.context() as patch:
        original = Forward._journal

        async def journal_and_lose(self: Forward) -> None:
            await original(self)
            without(patch, "monolith")
            raise ConnectionResetError("the other server is gone")

        patch.setattr(Forward, "_journal", journal_and_lose)
        with pytest.raises(Unreachable):
            await section.run(env, request, lambda _: None)
        assert await writable(env, "service")
        assert (await flags.get(env.control, "test", env.pair.service)).primary_side == "service"
    assert (await section.run(env, request, lambda _: None)).result == "done"
    assert not await writable(env, "monolith")


async def test_a_control_database_that_is_lost_behind_the_fence_does_not_keep_the_writes_shut(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")

    async def away(*_: Any, **__: Any) -> Any:
        raise Unreachable("database 'control' cannot be reached")

    with monkeypatch.context() as patch:
        original = Forward._fence

        async def fence_and_lose(self: Forward) -> None:
            await original(self)
            for name in ("settled", "advance", "outcome", "raise_token"):
                patch.setattr(switches, name, away)
            raise Unreachable("database 'control' cannot be reached")

        patch.setattr(Forward, "_fence", fence_and_lose)
        with pytest.raises(Unreachable):
            await section.run(env, request, lambda _: None)
        assert await writable(env, "monolith")
        assert not await writable(env, "service")
    outcome = await section.run(env, request, lambda _: None)
    assert outcome.result == "undone"
    assert await writable(env, "monolith")
    assert (await switch(env, "service")).result == "done"


async def test_a_cancelled_section_takes_back_what_it_did(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    reached = asyncio.Event()

    async def hang(self: Forward) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Forward, "_carry_marker", hang)
    running = asyncio.create_task(switch(env, "service"))
    await asyncio.wait_for(reached.wait(), 20)
    assert not await writable(env, "monolith")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert await writable(env, "monolith")
    assert (await flags.get(env.control, "test", env.pair.service)).pause_id is None


@pytest.mark.parametrize("point", ["undo.decide.before", "undo.open.before"])
async def test_a_section_that_is_cancelled_while_it_takes_back_does_that_to_the_end(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    await reverse.make_ready(env, "service")
    with monkeypatch.context() as patch:
        break_after(patch, "_carry_marker", ConnectionResetError("injected"))
        await cancelled_at(point, switch(env, "service"))
    assert await writable(env, "monolith")
    assert not await writable(env, "service")
    assert await switches.under_way(env.control, "test", env.pair.service) is None


async def test_a_section_that_is_cancelled_while_it_finishes_what_another_left_does_that_to_the_end(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    with monkeypatch.context() as patch:
        break_after(patch, "_journal", Killed())
        with pytest.raises(Killed):
            await section.run(env, request, lambda _: None)
    assert not await writable(env, "service")
    await cancelled_at("complete.open.before", section.run(env, request, lambda _: None))
    assert await writable(env, "service")
    assert not await writable(env, "monolith")


async def test_an_attempt_that_slept_before_its_announcement_announces_nothing(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would lift a pause that is announced after the switch has ended, and every client would wait for ever."""
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    asleep, awake = asyncio.Event(), asyncio.Event()
    original = Forward._announce

    async def sleep_first(self: Forward) -> None:
        asleep.set()
        await awake.wait()
        await original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Forward, "_announce", sleep_first)
        sleeper = asyncio.create_task(section.run(env, request, lambda _: None))
        await asyncio.wait_for(asleep.wait(), 20)
    assert (await section.run(env, request, lambda _: None)).result == "undone"
    awake.set()
    with pytest.raises((NotYet, Unreachable)):
        await sleeper
    assert (await flags.get(env.control, "test", env.pair.service)).pause_id is None
    assert await writable(env, "monolith")


async def test_a_stale_verdict_verifies_nothing(env: SwitchEnvironment) -> None:
    async with open_attempt(env) as attempt:
        begun = await switches.begin(
            env.control, attempt.row, switch_id="one", to_side="service", from_side="monolith", from_epoch=0,
            plan_hash=env.plan.hash,
        )  # fmt: skip
    await switches.advance(env.control, begun, "undoing", only_from=("fencing",))
    with pytest.raises(StaleAttempt):
        await env.changed("reverse").adopt(begun)


@pytest.mark.parametrize("state", ["dropped", "broken"])
async def test_a_fence_that_somebody_took_away_stops_neither_a_switch_nor_its_undoing(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    await reverse.make_ready(env, "service")
    async with env.pair.monolith.session() as connection:
        await connection.execute("DROP TRIGGER cutover_fence ON trades")
        if state == "dropped":
            await connection.execute("DROP TRIGGER cutover_fence_truncate ON trades")
    with monkeypatch.context() as patch:
        break_after(patch, "_carry_marker", ConnectionResetError("injected"))
        assert (await switch(env, "service")).result == "undone"
    assert await writable(env, "monolith")
    assert (await switch(env, "service")).result == "done"
    assert not await writable(env, "monolith")
    async with env.pair.monolith.session() as connection:
        states = await fence.states_of(connection, TABLES)
    assert set(states.values()) == {"fenced-always"}


async def test_without_a_way_back_no_switch_begins(env: SwitchEnvironment) -> None:
    with pytest.raises(GateClosed, match="way back"):
        await switch(env, "service")
    await reverse.make_ready(env, "service")
    await reverse.take_back(env, "service")
    with pytest.raises(GateClosed, match="way back"):
        await switch(env, "service")
    assert await switches.under_way(env.control, "test", env.pair.service) is None


async def test_taking_back_the_way_back_leaves_no_slot_that_nobody_reads(env: SwitchEnvironment) -> None:
    slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    await reverse.make_ready(env, "service")
    async with env.pair.target.session() as connection:
        assert await connection.fetchval(slots) == 2
        await reverse.take_back(env, "service")
        assert await connection.fetchval(slots) == 0
    await reverse.make_ready(env, "service")
    done = await switch(env, "service")
    assert done.result == "done"
    await reverse.take_back(env, "service")  # too late: it is in use
    async with env.pair.target.session() as connection:
        assert await connection.fetchval(slots) == 2


async def test_a_stream_that_stands_still_or_is_lost_is_found_before_anybody_is_made_to_wait(
    env: SwitchEnvironment,
) -> None:
    await reverse.make_ready(env, "service")
    stream = env.stream("forward")
    await stream.stop()
    outcome = await switch(env, "service")
    assert (outcome.result, outcome.pause_ms) == ("undone", 0.0)
    assert "disabled" in (outcome.reason or "")
    assert isinstance(stream, LogicalStream)
    async with env.pair.monolith.session() as connection:
        await replication.drop_slot(connection, stream.subscription)
    with pytest.raises(GateClosed, match="--mend"):
        await switch(env, "service")
    assert await switches.under_way(env.control, "test", env.pair.service) is None


async def test_a_control_database_that_forgot_the_journal_does_not_shut_the_side_in_use(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    assert (await section.run(env, request, lambda _: None)).result == "done"
    await env.control.execute(
        "UPDATE control.switch SET state = 'fenced' WHERE migration = 'test' AND service = $1", env.pair.service
    )
    await env.control.execute("DELETE FROM control.switch_outcome WHERE switch_id = $1", request.switch_id)
    with pytest.raises(GateClosed, match="lost its last commits"):
        await section.run(env, request, lambda _: None)
    assert await writable(env, "service")
    assert not await writable(env, "monolith")


async def test_the_marker_of_a_switch_outlives_the_pruning(env: SwitchEnvironment) -> None:
    async with env.pair.monolith.session() as source:
        kept = await env.stream("forward").put_marker_on(source, kind=epoch.SWITCH_MARKER)
        other = await env.stream("forward").put_marker_on(source)
        table = epoch.marker_table(env.pair.service).sql
        await source.execute(f"UPDATE {table} SET put_at = put_at - interval '1 hour'")
        await epoch.prune_markers(source, env.pair.service)
        assert await epoch.marker_seen(source, env.pair.service, kept.id)
        assert not await epoch.marker_seen(source, env.pair.service, other.id)


async def test_a_recovered_switch_tells_how_long_the_clients_waited(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    with monkeypatch.context() as patch:
        break_after(patch, "_carry_marker", ConnectionResetError("injected"))
        outcome: SwitchOutcome = await switch(env, "service")
    assert outcome.recovered
    assert outcome.pause_ms > 0


async def test_a_side_that_dies_with_its_unfence_open_does_not_keep_the_other_one_shut(
    env: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    with monkeypatch.context() as patch:
        original = Forward._unfence

        async def unfence_and_lose(self: Forward) -> None:
            await original(self)
            (await self.attempt.session("service")).terminate()
            without(patch, "service")
            raise ConnectionResetError("the other server is gone")

        patch.setattr(Forward, "_unfence", unfence_and_lose)
        with pytest.raises(Unreachable):
            await section.run(env, request, lambda _: None)
        assert await writable(env, "monolith")
    assert (await section.run(env, request, lambda _: None)).result == "undone"
    assert not await writable(env, "service")
