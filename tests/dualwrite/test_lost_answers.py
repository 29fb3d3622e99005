"""Connections that die in COMMIT: what happened is found out, and nothing is done twice or reported wrongly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from cutover.dualwrite import AnswerLost, ServicePool, UnknownOutcome, strong, two_sides
from cutover.dualwrite.connections import RoutedConnection
from cutover.dualwrite.statements import with_part
from cutover.errors import Unreachable
from cutover.postgres.outbox_source import Change
from tests.dualwrite.both_sides import Both, add, until_true
from tests.relay import Relay

LOCK = 4711
#: COMMIT waits for a lock that the test has.
WAITS = f"""
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_catalog.pg_advisory_xact_lock({LOCK}); RETURN NULL; END $$
"""
IN_COMMIT = """
CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON trades DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()
"""
WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted"
KILL = """
SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted
"""


@dataclass
class Held:
    """A commit that is held up, on a way that can be cut."""

    both: Both
    relay: Relay
    trading: ServicePool
    holder: asyncpg.Connection

    async def cut_in_commit(self, running: "asyncio.Task[object]", *, commit: bool, mend: bool = True) -> None:
        await until_true("COMMIT is under way", lambda: self.both.on("monolith", WAITING))
        assert not running.done()
        await self.relay.cut()
        if mend:
            await self.relay.mend()
        if commit:
            await self.holder.fetchval("SELECT pg_advisory_unlock($1)", LOCK)
        else:
            assert await self.both.on("monolith", KILL) == 1
            await self.holder.fetchval("SELECT pg_advisory_unlock($1)", LOCK)


@asynccontextmanager
async def held(both: Both, level: str, **options: Any) -> AsyncIterator[Held]:
    await both.on("monolith", WAITS)
    if level != "strong":
        await both.on("monolith", IN_COMMIT)
    async with Relay(both.databases["monolith"]) as relay, both.databases["monolith"].session("holder") as holder:
        trading = await both.service(
            level,
            databases={"monolith": relay.database, "service": both.databases["service"]},
            **{"patience": 15.0, **options},
        )
        await holder.execute(f"SELECT pg_advisory_lock({LOCK})")
        yield Held(both, relay, trading, holder)


Write = Callable[[ServicePool], Awaitable[object]]


async def by_transaction(trading: ServicePool) -> object:
    return await trading.run_in_transaction(lambda c: add(c, 1))


async def by_executemany(trading: ServicePool) -> object:
    await trading.executemany("INSERT INTO trades (id) VALUES ($1)", [(1,)])
    return None


async def by_statement(trading: ServicePool) -> object:
    return await trading.execute("INSERT INTO trades (id) VALUES ($1)", 1)


async def by_with(trading: ServicePool) -> object:
    return await trading.fetchval("WITH x AS (SELECT 1 AS n) INSERT INTO trades (id) SELECT n FROM x RETURNING id")


def hold_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strong write has its deferred triggers behind it when it commits, so something else is waited for there."""
    read_changes = strong.read_changes

    async def read(connection: Any, *about: Any) -> list[Change]:
        changes = await read_changes(connection, *about)
        connection.send_with_commit(f"SELECT pg_advisory_xact_lock({LOCK})")
        return changes

    monkeypatch.setattr(strong, "read_changes", read)


@asynccontextmanager
async def cut_off(
    both: Both, monkeypatch: pytest.MonkeyPatch, write: Write, level: str, *, commit: bool
) -> AsyncIterator[Held]:
    """A write whose connection dies in COMMIT, after or before that is done; it is answered, and there once."""
    if level == "strong":
        hold_the_commit(monkeypatch)
    async with held(both, level) as at:
        running = asyncio.ensure_future(write(at.trading))
        await at.cut_in_commit(running, commit=commit)
        await running
        assert await both.ids("monolith") == [1]
        assert await both.branches() == []
        assert at.trading.gate.counters.unknown == 0
        yield at


@pytest.mark.parametrize("write", [by_transaction, by_executemany])
@pytest.mark.parametrize("level", ["eventual", "strong"])
async def test_a_transaction_that_was_committed_is_answered_as_such(
    both: Both, monkeypatch: pytest.MonkeyPatch, write: Write, level: str
) -> None:
    async with cut_off(both, monkeypatch, write, level, commit=True):
        assert await both.ids("service") == ([1] if level == "strong" else [])


@pytest.mark.parametrize("level", ["eventual", "strong"])
async def test_a_transaction_that_wrote_only_what_is_not_captured_is_answered_as_such_too(
    both: Both, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    await both.on("monolith", "CREATE TABLE journal (line text)")
    if level == "strong":
        hold_the_commit(monkeypatch)
    async with held(both, level) as at:
        if level != "strong":
            await both.on("monolith", IN_COMMIT.replace("ON trades", "ON journal").replace("wait AFTER", "later AFTER"))
        running = asyncio.create_task(
            at.trading.run_in_transaction(lambda c: c.execute("INSERT INTO journal VALUES ('once')"))
        )
        await at.cut_in_commit(running, commit=True)
        await running
        assert await both.on("monolith", "SELECT count(*) FROM journal") == 1
        assert await both.branches() == []


@pytest.mark.parametrize("write", [by_transaction, by_executemany, by_statement, by_with])
@pytest.mark.parametrize("level", ["eventual", "strong"])
async def test_what_was_not_committed_is_done_again_once(
    both: Both, monkeypatch: pytest.MonkeyPatch, write: Write, level: str
) -> None:
    async with cut_off(both, monkeypatch, write, level, commit=False) as at:
        assert at.trading.gate.counters.retried >= 1
        if level == "strong":
            await both.require_equal()


@pytest.mark.parametrize("write", [by_statement, by_with])
async def test_a_statement_that_was_done_says_so_and_that_its_answer_is_lost(both: Both, write: Write) -> None:
    async with held(both, "eventual") as at:
        running = asyncio.ensure_future(write(at.trading))
        await at.cut_in_commit(running, commit=True)
        with pytest.raises(AnswerLost, match="was done, once"):
            await running
        assert await both.ids("monolith") == [1]
        assert at.trading.gate.counters.unknown == 0


@pytest.mark.parametrize("write", [by_transaction, by_statement])
async def test_while_the_database_is_away_nobody_can_say(
    both: Both, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    monkeypatch.setattr(two_sides, "DECIDE_WITHIN", 0.5)
    async with held(both, "eventual") as at:
        running = asyncio.ensure_future(write(at.trading))
        await at.cut_in_commit(running, commit=True, mend=False)
        with pytest.raises(UnknownOutcome):
            await running
        await at.relay.mend()


async def test_a_strong_write_of_which_nobody_can_say_does_not_keep_its_session(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_sides, "DECIDE_WITHIN", 0.5)
    hold_the_commit(monkeypatch)
    async with held(both, "strong", max_size=1, patience=8.0) as at:
        running = asyncio.ensure_future(by_transaction(at.trading))
        await at.cut_in_commit(running, commit=True, mend=False)
        with pytest.raises(UnknownOutcome):
            await running
        assert at.trading.gate.counters.in_doubt == 1
        await at.relay.mend()
        assert [one.decision for one in await both.janitor().resolve(older_than=0)] == ["commit"]
        monkeypatch.undo()
        await at.trading.run_in_transaction(lambda c: add(c, 2))
        await both.require_equal()


@pytest.mark.parametrize("decision", ["commit", "abort", None])
async def test_a_caller_that_is_cancelled_while_its_commit_is_lost_leaves_both_sides_alike(
    both: Both, monkeypatch: pytest.MonkeyPatch, decision: str | None
) -> None:
    monkeypatch.setattr(two_sides, "DECIDE_WITHIN", 0.5 if decision is None else 5.0)
    hold_the_commit(monkeypatch)
    async with held(both, "strong", max_size=1, patience=8.0) as at:
        running = asyncio.ensure_future(by_transaction(at.trading))
        await until_true("COMMIT is under way", lambda: both.on("monolith", WAITING))
        running.cancel()
        await at.cut_in_commit(running, commit=decision != "abort", mend=decision is not None)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert at.trading.gate.counters.in_doubt == (decision is None)
        assert len(await both.branches()) == (decision is None)
        assert at.trading.gate.mirror is not None
        assert not (decision is None and at.trading.gate.mirror.complete)
        if decision is None:
            await at.relay.mend()
            await both.janitor().resolve(older_than=0)
        await both.require_equal()
        assert await both.ids("monolith") == ([] if decision == "abort" else [1])
        monkeypatch.undo()
        await at.trading.run_in_transaction(lambda c: add(c, 2))
        await both.require_equal()


async def test_a_note_that_may_be_gone_is_not_asked_for(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sides, "ASKED_FOR", 0.0)
    async with held(both, "eventual") as at:
        running = asyncio.ensure_future(by_transaction(at.trading))
        await at.cut_in_commit(running, commit=False)
        with pytest.raises(UnknownOutcome):
            await running


async def test_a_commit_whose_connection_this_process_gives_up_is_told_as_a_lost_one(both: Both) -> None:
    await both.on("monolith", WAITS)
    await both.on("monolith", IN_COMMIT)
    holder, ours = [
        await asyncpg.connect(both.databases["monolith"].dsn, connection_class=RoutedConnection) for _ in range(2)
    ]
    await holder.fetchval("SELECT pg_advisory_lock($1)", LOCK)
    await ours.execute("BEGIN")
    await ours.execute("INSERT INTO trades (id) VALUES (1)")
    committing = asyncio.create_task(ours.execute("COMMIT"))
    await until_true("COMMIT is under way", lambda: both.on("monolith", WAITING))
    ours.terminate()
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await committing
    await holder.close()


async def test_what_dies_before_its_commit_is_unreachable_and_not_unknown(both: Both) -> None:
    async with Relay(both.databases["monolith"]) as relay:
        trading = await both.service(
            "eventual", databases={"monolith": relay.database, "service": both.databases["service"]}
        )

        async def work(connection: asyncpg.pool.PoolConnectionProxy) -> None:
            await add(connection, 1)
            await relay.cut()
            await relay.mend()

        with pytest.raises(Unreachable):
            await trading.run_in_transaction(work, attempts=1)
        assert await both.ids("monolith") == []


async def test_a_stream_that_is_taken_away_costs_a_retry_and_no_more(both: Both) -> None:
    trading = await both.service("eventual")
    await trading.execute("INSERT INTO trades (id) VALUES (1)")
    await both.on("monolith", "DROP TABLE cutover.decision")
    await trading.execute("INSERT INTO trades (id) VALUES (2)")
    strong = await both.service("strong")
    await strong.execute("INSERT INTO trades (id) VALUES (3)")
    assert await both.ids("monolith") == [1, 2, 3]


@pytest.mark.parametrize("level", ["eventual", "strong"])
async def test_a_statement_that_its_callers_limit_has_ended_is_a_timeout_and_is_not_sent_again(
    both: Both, level: str
) -> None:
    trading = await both.service(level)
    await trading.execute("INSERT INTO trades (id, note) VALUES (1, 'a')")
    async with both.databases["monolith"].session("holder") as holder, holder.transaction():
        await holder.execute("SELECT FROM trades FOR UPDATE")
        with pytest.raises(TimeoutError):
            await trading.execute("UPDATE trades SET note = 'b' WHERE id = $1", 1, timeout=0.3)
        with pytest.raises(TimeoutError):
            await trading.fetchval("UPDATE trades SET note = 'b' RETURNING id", timeout=0.3)
    assert trading.gate.counters.retried == trading.gate.counters.unknown == 0
    assert await both.on("monolith", "SELECT note FROM trades") == "a"
    await trading.execute("UPDATE trades SET note = 'c'")
    assert await both.on("monolith", "SELECT note FROM trades") == "c"


@pytest.mark.parametrize("write", [by_transaction, by_executemany, by_statement])
@pytest.mark.parametrize("level", ["eventual", "strong"])
async def test_a_commit_that_the_pools_limit_has_ended_is_a_timeout_and_is_not_sent_again(
    both: Both, monkeypatch: pytest.MonkeyPatch, write: Write, level: str
) -> None:
    if level == "strong":
        hold_the_commit(monkeypatch)
    async with held(both, level, command_timeout=1.0) as at:
        with pytest.raises(TimeoutError):
            await write(at.trading)
        assert at.trading.gate.counters.retried == at.trading.gate.counters.unknown == 0
        assert await both.branches() == []
        assert await both.ids("monolith") == []


@pytest.mark.parametrize("level", ["eventual", "strong"])
@pytest.mark.parametrize("arguments", [(1, "x"), (1, "x", "y", "z")])
async def test_a_statement_with_a_wrong_number_of_arguments_writes_nothing(
    both: Both, level: str, arguments: tuple[object, ...]
) -> None:
    trading = await both.service(level)
    await trading.execute("INSERT INTO trades (id, note) VALUES (1, 'a')")
    with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError)):
        await trading.execute("UPDATE trades SET note = $2, name = $3 WHERE id = $1", *arguments)
    assert await both.on("monolith", "SELECT note FROM trades WHERE name IS NULL") == "a"
    assert trading.gate.counters.unknown == 0


@pytest.mark.parametrize(
    ("sql", "arguments", "expected"),
    [
        ("INSERT INTO t VALUES ($1)", 1, "WITH p INSERT INTO t VALUES ($1)"),
        ("INSERT INTO t VALUES (1);", 0, "WITH p INSERT INTO t VALUES (1);"),
        ("INSERT INTO t VALUES (1); DELETE FROM t", 0, None),
        ("-- a\nwith recursive a AS (TABLE x) TABLE a", 1, "-- a\nwith recursive p, a AS (TABLE x) TABLE a"),
        ("with /* a */ recursive a AS (TABLE x) TABLE a", 0, None),
        ("SELECT pay($1)", 1, "WITH p SELECT pay($1)"),
        ("SELECT pay($1, $2)", 1, None),
        ("SELECT pay($12)", 1, None),
        ("CALL pay($1)", 1, None),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", 0, None),
        ("CREATE TABLE x ()", 0, None),
    ],
)  # fmt: skip
def test_a_part_is_put_into_a_statement_only_where_it_fits(sql: str, arguments: int, expected: str | None) -> None:
    assert with_part(sql, "p", arguments=arguments) == expected
