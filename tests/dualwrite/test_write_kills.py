"""kill -9 of an application at each step of a write: it is there wholly or not at all, and is carried over once."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import pytest_asyncio

from cutover.control.database import Control
from cutover.postgres.databases import Database
from tests.dualwrite.both_sides import SERVICE, Both, open_both, plan
from tests.dualwrite.waiting import until

#: Each row that is written at the service's side, by whomever.
COUNTED = """
CREATE TABLE written (tbl text, op text);
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.written VALUES (TG_TABLE_NAME, TG_OP); RETURN NULL; END $$;
CREATE TRIGGER counted AFTER INSERT OR UPDATE OR DELETE ON trades FOR EACH ROW EXECUTE FUNCTION count_it();
ALTER TABLE trades ENABLE ALWAYS TRIGGER counted;
"""
#: Holds a write up at the primary: in its statement, or in its COMMIT.
HELD_UP = """
CREATE FUNCTION wait_for_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER held_up AFTER INSERT ON trades {when} FOR EACH ROW EXECUTE FUNCTION wait_for_it();
"""
Opening = Callable[[str], AbstractAsyncContextManager[Both]]


@pytest_asyncio.fixture
async def opened(control: Control, control_db: Database, monolith_db: Database, service_db: Database) -> Opening:
    """A service at a level of the plan's; what it writes at its other side is counted."""

    @asynccontextmanager
    async def open_at(level: str) -> AsyncIterator[Both]:
        async with open_both(control, control_db, monolith_db, service_db, plan(consistency=level)) as both:
            await both.start()
            await both.on("monolith", "INSERT INTO positions VALUES ('a', 'X', 0)")
            await both.drained()
            async with both.databases["service"].session("test-admin") as connection:
                await connection.execute(COUNTED)
            yield both

    return open_at


async def spawn(both: Both, form: str, at: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.dualwrite.write_process", form, stdout=PIPE,
        env={
            **os.environ,
            "BOTH_MONOLITH": both.databases["monolith"].dsn,
            "BOTH_SERVICE": both.databases["service"].dsn,
            "BOTH_CONTROL": both.control_db.dsn,
            "BOTH_KILL_AT": at,
        },
    )  # fmt: skip


async def require_whole(both: Both, *, done: bool) -> None:
    """Both rows or neither at the primary, with the note of the write; then the same at both sides, carried once."""
    trades, positions = await both.contents("monolith")
    assert [row[:2] for row in trades] == ([(1, "one")] if done else [])
    assert [int(row[2]) for row in positions] == [int(done)]  # type: ignore[call-overload]
    notes = "SELECT count(*) FROM cutover.decision WHERE outcome = 'commit' AND service = $1"
    assert await both.on("monolith", notes, SERVICE) == int(done)
    await both.janitor().resolve(older_than=0)
    await both.drained()
    await both.drained()
    await both.require_equal()
    assert await both.branches() == []
    counted = "SELECT count(*) FROM written WHERE tbl = 'trades'"
    assert await both.on("service", counted) == int(done)
    given_up = "SELECT failures FROM cutover.outbox_stream WHERE service = $1 AND direction = 'forward'"
    assert await both.on("service", given_up, SERVICE) == 0


@pytest.mark.parametrize("level", ["eventual", "best_effort"])
@pytest.mark.parametrize(
    ("form", "at"),
    [("transaction", "before"), ("transaction", "inside"), ("transaction", "answered"),
     ("statement", "before"), ("statement", "answered")],
)  # fmt: skip
async def test_one_killed_around_its_statements_has_written_all_or_nothing(
    opened: Opening, level: str, form: str, at: str
) -> None:
    async with opened(level) as both:
        process = await spawn(both, form, at)
        output, _ = await process.communicate()
        assert process.returncode == -9, f"{at} was reached"
        assert (b"answered" in output) == (at == "answered")
        await until(lambda: gone(both))
        await require_whole(both, done=at == "answered")


async def gone(both: Both) -> bool:
    """Whether the server has noticed."""
    return not await both.on("monolith", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'killed'")


@pytest.mark.parametrize("level", ["eventual", "best_effort"])
@pytest.mark.parametrize("form", ["transaction", "statement"])
@pytest.mark.parametrize("step", ["statement", "COMMIT"])
async def test_one_killed_in_its_statement_or_in_its_commit_has_written_all_or_nothing(
    opened: Opening, level: str, form: str, step: str
) -> None:
    """The server goes on with what it was told: a COMMIT that it has is done, though nobody hears of it.

    For level strong see `test_strong_kills`: there deferred triggers run before the COMMIT.
    """
    async with opened(level) as both:
        when = "DEFERRABLE INITIALLY DEFERRED" if step == "COMMIT" else ""
        async with both.databases["monolith"].session("test-lock") as blocker:
            await blocker.execute(HELD_UP.format(when=when))
            await blocker.execute("SELECT pg_advisory_lock(7)")
            process = await spawn(both, form, "")
            await until(lambda: both.waiting_for_a_lock("monolith"), 30)
            process.kill()
            output, _ = await process.communicate()
            assert output == b"", "it had no answer"
        await until(lambda: gone(both))
        # a statement by itself is its own COMMIT
        await require_whole(both, done=step == "COMMIT" or form == "statement")
