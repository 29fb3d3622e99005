"""kill -9 of a process at each step of a strong write, and what the janitor makes of it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from dataclasses import replace

import asyncpg
import pytest

from cutover import faults
from cutover.alerts.store import recent
from cutover.dualwrite.branch import Branch
from cutover.errors import NotYet
from cutover.postgres import outbox_schema, two_phase
from cutover.streams.outbox import OutboxStream, janitor
from tests.dualwrite.both_sides import MIGRATION, SERVICE, Both, add, until_true
from tests.relay import Relay

POINTS = [point for point in faults.points() if point.startswith("strong.")]
#: Where a killed write leaves a branch, and what it is ended by.
IN_DOUBT = {
    "strong.prepare.after": "abort",
    "strong.commit.before": "abort",
    "strong.commit.after": "commit",
    "strong.end.before": "commit",
}
COMMITTED = ("strong.commit.after", "strong.end.before", "strong.end.after")


async def write_and_die(both: Both, number: int, point: str, level: str = "strong") -> bool:
    """Whether it had its answer before it died."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.dualwrite.strong_process", str(number), stdout=PIPE,
        env={
            **os.environ,
            "BOTH_MONOLITH": both.databases["monolith"].dsn,
            "BOTH_SERVICE": both.databases["service"].dsn,
            "BOTH_CONTROL": both.control_db.dsn,
            "BOTH_KILL_AT": point,
            "BOTH_LEVEL": level,
        },
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == -9, f"{point} was reached"
    return b"done" in output


@pytest.mark.parametrize("point", POINTS)
async def test_a_process_killed_at_any_step_leaves_both_sides_or_neither(both: Both, point: str) -> None:
    trading = await both.service()
    await trading.execute("INSERT INTO positions VALUES ('a', 'X', 0)")
    answered = await write_and_die(both, 1, point)
    assert not answered
    doubtful = await both.branches()
    assert len(doubtful) == (1 if point in IN_DOUBT else 0)
    # its own business for a while, then anybody's
    assert await both.janitor().resolve() == []
    found = await both.janitor().resolve(older_than=0)
    assert [one.decision for one in found] == ([IN_DOUBT[point]] if point in IN_DOUBT else [])
    assert await both.branches() == []
    await both.require_equal()
    assert await both.ids("monolith") == ([1] if point in COMMITTED else [])
    # and the stream carries what stayed in the outbox, to no effect
    await both.drained()
    await both.require_equal()


async def test_a_process_killed_right_after_its_commit_leaves_the_other_side_to_the_relay(both: Both) -> None:
    await both.on("monolith", "INSERT INTO positions VALUES ('a', 'X', 0)")
    assert await write_and_die(both, 1, "", "eventual"), "it had its answer"
    assert await both.ids("monolith") == [1]
    assert await both.ids("service") == []
    await both.drained()
    assert await both.ids("service") == [1]
    await both.require_equal()


async def test_a_write_whose_preparing_is_not_answered_for_is_made_once_more_and_nothing_of_the_first_is_left(
    both: Both,
) -> None:
    trading = await both.service()
    unanswered = [True]

    async def once(point: str) -> None:
        if point == "strong.prepare.after" and unanswered:
            unanswered.pop()
            raise asyncpg.ConnectionDoesNotExistError

    with faults.armed(once):
        await trading.execute("INSERT INTO trades (id, note) VALUES (1, 'a')")
    assert not unanswered
    assert await both.ids("monolith") == await both.ids("service") == [1]
    assert await both.branches() == []


async def test_no_marker_passes_a_branch_in_doubt(both: Both) -> None:
    """What a switch relies on: the intents stay in the outbox, and the relay waits for the branch's versions."""
    await both.on("monolith", "INSERT INTO positions VALUES ('a', 'X', 0)")
    stream = OutboxStream(both.pair, "forward")
    async with both.relay():
        await stream.await_marker(await stream.put_marker(), 20)
        await write_and_die(both, 1, "strong.commit.after")
        marker = await stream.put_marker()
        with pytest.raises(NotYet, match="did not carry a marker"):
            await stream.await_marker(marker, 1.0)
        [found] = await janitor.resolve(both.pair, "forward")
        assert found.decision == "commit"
        await stream.await_marker(marker, 20)
        assert await both.ids("service") == [1]
    await both.require_equal()


async def test_a_decision_in_flight_is_waited_for_and_not_overtaken(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "LOCK_TIMEOUT", 0.2)
    gid = two_phase.branch_id(SERVICE, 0)
    async with both.databases["service"].session() as sink, both.databases["monolith"].session() as source:
        await sink.execute("SET cutover.applier = 'on'; BEGIN; INSERT INTO trades (id) VALUES (1)")
        await two_phase.prepare(sink, gid)
        deciding = source.transaction()
        await deciding.start()
        await source.execute("INSERT INTO trades (id) VALUES (1)")
        await source.execute(
            "INSERT INTO cutover.decision (gid, service, outcome) VALUES ($1, $2, 'commit')", gid, SERVICE
        )
        [found] = await janitor.resolve(both.pair, "forward")
        assert found.decision is None
        assert await both.branches() == [gid]
        monkeypatch.setattr(janitor, "LOCK_TIMEOUT", 10.0)
        waiting = asyncio.create_task(janitor.resolve(both.pair, "forward"))
        await until_true("the janitor waits", lambda: both.waiting_for_a_lock("monolith"))
        await deciding.commit()
        [found] = await waiting
        assert found.decision == "commit"
    assert await both.ids("service") == [1]


async def test_a_process_that_sleeps_before_its_commit_is_not_overtaken(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "LOCK_TIMEOUT", 0.2)
    trading = await both.service()
    prepare = Branch.prepare
    found: list[janitor.Resolved] = []

    async def slow(branch: Branch) -> None:
        await prepare(branch)
        found.extend(await both.janitor().resolve(older_than=0))

    monkeypatch.setattr(Branch, "prepare", slow)
    await trading.run_in_transaction(lambda c: add(c, 1))
    assert [one.decision for one in found] == [None]
    assert await both.ids("monolith") == [1]
    await both.require_equal()


async def test_a_side_that_goes_away_after_the_decision_has_its_branch_ended_later(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay(both.databases["service"]) as relay:
        trading = await both.service(databases={"monolith": both.databases["monolith"], "service": relay.database})
        await trading.execute("INSERT INTO trades (id) VALUES (1)")
        cut = asyncio.Event()

        async def end(*_: object) -> bool:
            if not cut.is_set():
                cut.set()
                await relay.cut()
            raise ConnectionResetError

        with monkeypatch.context() as patched:
            patched.setattr(two_phase, "end", end)
            await trading.execute("INSERT INTO trades (id) VALUES (2)")
        assert trading.gate.counters.in_doubt == 1
        assert await both.ids("monolith") == [1, 2], "it is done, and not reported as failed"
        assert await both.ids("service") == [1]
    [found] = await both.janitor().resolve(older_than=0)
    assert found.decision == "commit"
    await both.require_equal()


async def test_a_janitor_at_work_ends_what_it_finds_and_tells_of_what_stood_too_long(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "OWN_BUSINESS", 0.0)
    monkeypatch.setattr(janitor, "TOO_OLD", 0.0)
    monkeypatch.setattr(janitor, "EVERY", 0.05)
    await both.on("monolith", "INSERT INTO positions VALUES ('a', 'X', 0)")
    await write_and_die(both, 1, "strong.prepare.after")
    one = janitor.Janitor(both.pair, both.control)
    monkeypatch.setattr(one, "resolve", lambda: janitor.Janitor.resolve(one, older_than=0))
    running = asyncio.create_task(one.run())

    async def none_left() -> bool:
        return await both.branches() == []

    try:
        await until_true("the branch is ended", none_left)
        await until_true("it was told", lambda: _told(both))
    finally:
        running.cancel()
    [alert] = await recent(both.control, MIGRATION)
    assert (alert.alert.kind, alert.alert.severity) == ("in-doubt", "warning")


async def test_a_branch_that_cannot_be_ended_keeps_no_other_from_it_and_is_told(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "TOO_OLD", 0.0)
    for number in (1, 2):
        await write_and_die(both, number, "strong.prepare.after")
    [refused, _] = await both.branches()
    end = two_phase.end

    async def end_others(sink: asyncpg.Connection, gid: str, decision: two_phase.Decision) -> bool:
        if gid == refused:
            raise asyncpg.InsufficientPrivilegeError("permission denied to finish prepared transaction")
        return await end(sink, gid, decision)

    monkeypatch.setattr(two_phase, "end", end_others)
    one = janitor.Janitor(both.pair, both.control)
    found = await one.resolve(older_than=0)
    assert [(at.decision, at.problem) for at in found] == [(None, "InsufficientPrivilegeError"), ("abort", "")]
    assert await both.branches() == [refused]
    await one._tell(found)
    [alert] = await recent(both.control, MIGRATION)
    assert alert.alert.severity == "critical"
    assert f"{refused} was refused (InsufficientPrivilegeError)" in alert.alert.text
    monkeypatch.undo()
    await both.janitor().resolve(older_than=0)


async def _told(both: Both) -> bool:
    return bool(await recent(both.control, MIGRATION))


async def test_decisions_are_pruned_once_nobody_may_ask(both: Both) -> None:
    trading = await both.service()
    await trading.execute("INSERT INTO trades (id) VALUES (1)")
    await trading.execute("INSERT INTO trades (id) VALUES (2)", level="eventual")
    count = "SELECT count(*) FROM cutover.decision"
    assert await both.on("monolith", count) == 2
    assert await both.janitor().prune() == 0
    await both.on("monolith", "UPDATE cutover.decision SET at = at - interval '61 minutes'")
    assert await both.janitor().prune() == 2
    assert await both.on("monolith", count) == 0


MANY = """
INSERT INTO cutover.decision (gid, service, outcome, at)
SELECT 'write:trading_engine:' || n, 'trading_engine', 'commit', clock_timestamp() - interval '1 day'
FROM generate_series(1, $1::int) AS n
"""
COUNT = "SELECT count(*) FROM cutover.decision"


async def test_a_pruning_takes_all_that_is_old_however_much_it_is(both: Both) -> None:
    await both.on("monolith", MANY, outbox_schema.PRUNED + 1)
    assert await both.janitor().prune() == outbox_schema.PRUNED + 1
    assert await both.on("monolith", COUNT) == 0


async def test_decisions_are_pruned_at_the_side_that_answers(both: Both) -> None:
    await both.on("monolith", MANY, 3)
    async with Relay(both.databases["service"]) as relay:
        one = janitor.Janitor(replace(both.pair, target=relay.database))
        await relay.cut()
        running = asyncio.create_task(one.run())
        try:
            await until_true("they are pruned", lambda: _none_noted(both))
        finally:
            running.cancel()


async def _none_noted(both: Both) -> bool:
    return bool(await both.on("monolith", COUNT) == 0)
