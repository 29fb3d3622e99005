"""The traffic on a real server, before any migration: everything is at the monolith."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cutover.control.database import Control
from cutover.postgres.databases import Database
from examples.ai_trader import psql_writers, traffic
from examples.ai_trader.check import Verdict, check
from examples.ai_trader.roles import as_role
from examples.ai_trader.tables import OWNERS, SERVICES, TABLES
from examples.ai_trader.traffic import Options


async def some_traffic(filled: Database, control_db: Database, log: Path, client: int = 0) -> dict[str, Any]:
    """Three seconds of it, all tables met."""
    application = as_role(filled, "trader_app")
    options = Options(client=client, log=log, rate=300, seconds=3)
    return await traffic.run(options, control_db, lambda service, side: application, asyncio.Event())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


def entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def verdict(filled: Database, *logs: Path) -> Verdict:
    return await check(list(logs), filled, OWNERS, {})


async def test_what_was_acknowledged_is_in_the_database(
    filled: Database, control: Control, control_db: Database, log: Path
) -> None:
    stats = await some_traffic(filled, control_db, log)
    found = await verdict(filled, log)
    assert found.ok, found.shown
    assert (stats["failed"], stats["unknown"], stats["lost_updates"], stats["stale_reads"]) == (0, 0, 0, 0), stats
    assert stats["reads_failed"] == 0
    assert stats["reads"] > 50
    written = {name for name in TABLES for action in ("insert", "update") if f"{name} {action}" in stats["tables"]}
    assert written == set(TABLES)
    assert sum(found.writes.values()) == stats["writes"]


async def test_the_checker_finds_what_is_done_to_the_rows_behind_its_back(
    filled: Database, control: Control, control_db: Database, log: Path
) -> None:
    await some_traffic(filled, control_db, log)
    lines = entries(log)
    done = [line for line in lines if line["event"] == "ok" and line["table"] == "ai_calibration_log"]
    last = {line["key"]: line for line in done}
    updated = next(key for key, line in last.items() if line["action"] == "update")
    inserted = next(key for key, line in last.items() if line["action"] == "insert")
    async with filled.session() as connection:
        await connection.execute("UPDATE ai_calibration_log SET revision = revision - 1 WHERE id = $1", updated)
        await connection.execute("DELETE FROM ai_calibration_log WHERE id = $1", inserted)
    assert (await verdict(filled, log)).violations == {"stale": 1, "lost": 1}


@asynccontextmanager
async def process(
    filled: Database, control_db: Database, log: Path, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A traffic process as the demo starts it."""
    names = {f"CUTOVER_DSN_{name.upper()}": filled.dsn for name in SERVICES.values()}
    environment = {**os.environ, **names, "CUTOVER_DSN_MONOLITH": filled.dsn, "CUTOVER_DSN_CONTROL": control_db.dsn}
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.ai_trader.traffic", "--client", "1", "--log", str(log), *arguments),
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


def lines_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


async def longer_than(log: Path, lines: int, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while lines_in(log) <= lines:
        assert time.monotonic() < deadline, "the log does not grow"
        await asyncio.sleep(0.05)


async def test_a_process_ends_gracefully_on_sigterm_with_nothing_unknown(
    filled: Database, control: Control, control_db: Database, log: Path
) -> None:
    stats = log.with_suffix(".stats")
    async with process(filled, control_db, log, "--rate", "200", "--stats", str(stats)) as running:
        await longer_than(log, 200)
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 20) == 0
    assert json.loads(stats.read_text())["unknown"] == 0
    found = await verdict(filled, log)
    assert found.ok, found.shown
    assert not any(name.startswith("unknown") for name in found.writes)


async def test_a_killed_process_and_its_next_life_lose_nothing(
    filled: Database, control: Control, control_db: Database, log: Path
) -> None:
    for _ in range(2):
        before = lines_in(log)
        async with process(filled, control_db, log, "--rate", "400") as running:
            await longer_than(log, before + 300)
            running.kill()
    found = await verdict(filled, log)
    assert found.ok, found.shown


async def test_psql_writers_are_fenced_or_done(filled: Database, log: Path) -> None:
    async with filled.session() as connection:
        await connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION USING ERRCODE = 'CU001', MESSAGE = 'not here'; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON agent_status "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
        )
    stop = threading.Event()
    running = asyncio.create_task(asyncio.to_thread(
        psql_writers.run, as_role(filled, "trader_cron"), log, writers=2, rate=40, stop=stop,
        psql=psql_writers.find_psql(),
    ))  # fmt: skip
    deadline = time.monotonic() + 60
    while not running.done() and time.monotonic() < deadline:
        written = await asyncio.to_thread(log.read_text) if lines_in(log) else ""
        if written.count('"ok"') > 10 and '"fenced"' in written:
            break
        await asyncio.sleep(0.1)
    stop.set()
    counts = await running
    assert set(counts) == {"run", "ok", "fenced"}, counts
    assert counts["ok"] > 10
    found = await verdict(filled, log)
    assert found.ok, found.shown
    assert {name for name in found.writes if name.startswith("fenced")} == {"fenced insert"}


def test_an_answer_that_was_lost_is_unknown_and_a_refused_connection_a_failure(tmp_path: Path) -> None:
    nowhere = Database("monolith", "postgresql://trader_cron@127.0.0.1:1/x")
    event, why, _ = psql_writers.run_psql(psql_writers.find_psql(), nowhere, "SELECT 1", {})
    assert (event, why) == ("fail", "not connected")


async def test_a_psql_whose_connection_is_ended_in_its_statement_is_unknown(filled: Database) -> None:
    event, _, _ = await asyncio.to_thread(
        psql_writers.run_psql,
        psql_writers.find_psql(),
        filled,
        "SELECT pg_terminate_backend(pg_backend_pid())",
        {},
    )
    assert event == "unknown"
