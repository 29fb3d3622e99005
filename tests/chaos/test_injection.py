"""What an armed fault point does, in processes of their own and on a real server."""

import asyncio
import time
from pathlib import Path

import asyncpg
import pytest

from chaos.injection import Fault, Holds, Injector, commits, resets
from chaos.injection import passes as found_passes
from chaos.processes import Child, Say
from cutover import faults
from cutover.control.database import Control
from cutover.errors import Unreachable
from cutover.postgres import outbox_schema
from cutover.postgres.databases import Database

STEP = "switch.flip"


async def passes(say: Say, sequence: tuple[Fault, ...], folder: Path) -> None:
    """Passes the step twice and says so each time."""
    with faults.armed(Injector(sequence, folder)):
        for number in range(2):
            async with faults.step(STEP):
                pass
            say("passed", number)


async def test_a_kill_ends_the_process_once_and_the_next_one_passes(tmp_path: Path) -> None:
    sequence = (Fault(f"{STEP}.after", "kill"),)
    first = Child("first", passes, sequence, tmp_path)
    assert await first.message(30) is None
    await first.ended(5)
    assert first.killed
    second = Child("second", passes, sequence, tmp_path)
    assert await second.said("passed", 30) == 0
    assert await second.ended(10) == 0
    assert Injector(sequence, tmp_path).happened() == 1


async def test_a_sequence_happens_in_its_order(tmp_path: Path) -> None:
    injector = Injector((Fault(f"{STEP}.after", "error"), Fault(f"{STEP}.before", "error")), tmp_path)
    with faults.armed(injector):
        for happened in (1, 2):
            with pytest.raises(Unreachable, match="failed"):
                async with faults.step(STEP):
                    pass
            assert injector.happened() == happened
        async with faults.step(STEP):
            pass


async def test_two_faults_of_one_point_happen_in_two_passes(tmp_path: Path) -> None:
    injector = Injector([Fault(f"{STEP}.before", "delay", 0.0)] * 2, tmp_path)
    with faults.armed(injector):
        for happened in (1, 2):
            async with faults.step(STEP):
                pass
            assert injector.happened() == happened


@pytest.mark.parametrize(("hard", "kind"), [(True, asyncpg.DiskFullError), (False, Unreachable)])
async def test_an_error_is_a_server_s_that_refuses_or_that_does_not_answer(
    tmp_path: Path, hard: bool, kind: type[Exception]
) -> None:
    with faults.armed(Injector((Fault(f"{STEP}.before", "error", hard=hard),), tmp_path)), pytest.raises(kind):
        async with faults.step(STEP):
            pass


async def test_the_passes_of_a_switch_are_noted_with_their_times_and_those_of_others_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "faults-1"
    folder.mkdir()
    with faults.armed(Injector((), folder)):
        begun = time.monotonic()
        for name in (STEP, "relay.apply"):
            async with faults.step(name):
                pass
    [[(first, before), (second, after)]] = found_passes(tmp_path)
    assert (before, after) == (f"{STEP}.before", f"{STEP}.after")
    assert begun - 0.001 <= first <= second <= time.monotonic()


async def test_a_reset_has_happened_once_a_commit_was_cut_and_not_before(tmp_path: Path, monolith_db: Database) -> None:
    injector = Injector((Fault(f"{STEP}.before", "reset"),), tmp_path)
    connection = await asyncpg.connect(monolith_db.dsn)
    with resets(), faults.armed(injector):
        async with faults.step(STEP):
            assert await connection.fetchval("SELECT 1") == 1
        assert injector.happened() == 0
        with pytest.raises((asyncpg.PostgresConnectionError, ConnectionError)):
            await connection.fetchval("SELECT pg_logical_emit_message(false, 'chaos', '')")
        assert injector.happened() == 1


@pytest.mark.parametrize("hard", [True, False])
async def test_a_hard_delay_stops_the_whole_process(tmp_path: Path, hard: bool) -> None:
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.02)

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0)
    with faults.armed(Injector((Fault(f"{STEP}.before", "delay", 0.5, hard=hard),), tmp_path)):
        async with faults.step(STEP):
            pass
    beating.cancel()
    longest = max((b - a for a, b in zip(beats, [*beats[1:], time.monotonic()], strict=True)), default=0.0)
    assert (longest >= 0.5) == hard


@pytest.mark.parametrize(("hard", "rows"), [(True, 0), (False, 1)])
async def test_a_reset_cuts_the_next_commit_before_or_after_it_has_left(
    tmp_path: Path, monolith_db: Database, hard: bool, rows: int
) -> None:
    async with monolith_db.session() as other:
        await other.execute("CREATE TABLE noted (n int)")
        connection = await asyncpg.connect(monolith_db.dsn)
        with resets(), faults.armed(Injector((Fault(f"{STEP}.before", "reset", hard=hard),), tmp_path)):
            with pytest.raises((asyncpg.PostgresConnectionError, ConnectionError)):
                async with connection.transaction(), faults.step(STEP):
                    await connection.execute("INSERT INTO noted VALUES (1)")
            assert connection.is_closed()

        async def settled() -> int:
            while await other.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") > 1:
                await asyncio.sleep(0.02)
            return int(await other.fetchval("SELECT count(*) FROM noted"))

        assert await asyncio.wait_for(settled(), 10) == rows


@pytest.mark.parametrize(("hard", "rows"), [(True, 0), (False, 1)])
async def test_a_statement_that_commits_by_itself_is_cut_before_it_has_left_or_once_it_is_done(
    tmp_path: Path, monolith_db: Database, hard: bool, rows: int
) -> None:
    fault = Fault(f"{STEP}.before", "reset", hard=hard)
    async with monolith_db.session() as other:
        await other.execute("CREATE TABLE noted (n int)")
        connection = await asyncpg.connect(monolith_db.dsn)
        with resets(), faults.armed(Injector((fault,), tmp_path)), pytest.raises(asyncpg.ConnectionDoesNotExistError):
            async with faults.step(STEP):
                await connection.fetchrow("INSERT INTO noted VALUES ($1) RETURNING n", 1)  # it was never prepared here
        assert await other.fetchval("SELECT count(*) FROM noted") == rows
        assert "INSERT INTO noted" in (tmp_path / "0").read_text()


async def test_every_function_of_ours_that_changes_something_counts_as_a_commit(
    control: Control, monolith_db: Database
) -> None:
    async with monolith_db.session() as connection:
        await connection.execute("CREATE SCHEMA cutover")
        await outbox_schema.install(connection, "s")
        for database in (control.pool, connection):
            changing = await database.fetch(
                "SELECT pronamespace::regnamespace || '.' || proname AS name FROM pg_catalog.pg_proc "
                "WHERE pronamespace::regnamespace::text IN ('control', 'cutover') "
                "AND prorettype <> 'trigger'::regtype AND prosrc ~* '\\y(insert into|update|delete from)\\y'"
            )
            assert changing
            assert [one["name"] for one in changing if not commits(connection, f"SELECT {one['name']}()")] == []


async def test_what_only_reads_is_no_commit(monolith_db: Database) -> None:
    async with monolith_db.session() as connection:
        for sql in ("SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "WITH a AS (SELECT 1 FOR UPDATE) TABLE a"):
            assert not commits(connection, sql)
        for sql in ("WITH a AS (DELETE FROM t RETURNING 1) TABLE a", "WITH a AS (TABLE t) UPDATE u SET x = 1"):
            assert commits(connection, sql)


@pytest.mark.parametrize("hard", [True, False])
async def test_who_comes_to_a_hold_stands_there_until_let_go_whatever_has_happened_before(
    tmp_path: Path, hard: bool
) -> None:
    sequence = (Fault(f"{STEP}.after", "error"), Fault(f"{STEP}.before", "hold", hard=hard))
    holds = Holds(sequence, tmp_path)
    child = Child("held", passes, sequence, tmp_path)
    await holds.reached(f"{STEP}.before")
    with pytest.raises(TimeoutError):
        await child.message(0.2)
    holds.go(f"{STEP}.before")
    assert (await child.said("failed", 30))[0] == "Unreachable"  # the error behind it ended the process
    assert await child.ended(10) == 0
