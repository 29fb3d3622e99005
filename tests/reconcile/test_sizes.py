"""Tables of any size: what there is is found, and the process's memory does not grow with it.

CUTOVER_PROVE_SIZES=full takes 2^20 rows, and a hundred thousand against a million that differ (`make prove-reconcile`).
"""

import asyncio
import os
from pathlib import Path

import pytest

from tests.reconcile.conftest import World
from tests.reconcile.pass_process import Order, processes, whole

FULL = os.environ.get("CUTOVER_PROVE_SIZES") == "full"
MANY = 2**20 if FULL else 2**16
FEW_DIFFERING, MANY_DIFFERING = (100_000, 1_000_000) if FULL else (6_000, 30_000)
#: Rows whose keys may be in memory at once; less than all that differ, in the smaller table too.
SIZES = {} if FULL else {"OPEN_ROWS": 3_000}
#: Kilobytes that the larger table may take beyond the smaller one: its parts grow up to 500,000 rows, which takes some
#: 15,000 once and for all; its keys and hashes would take 500,000 (and 15,000 in an ordinary run).
SLACK = 30_000 if FULL else 4_000
SECONDS = 1_500 if FULL else 240

KEYS = {"integer": "n", "text": "md5(n::text)"}


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("key", list(KEYS))
async def test_tables_of_no_row_of_one_of_two_and_of_many_rows(world: World, key: str) -> None:
    await world.both(f"CREATE TABLE t (id {'int' if key == 'integer' else key} PRIMARY KEY, n int, v numeric)")
    for rows in (0, 1, 2, MANY):
        await world.both(f"TRUNCATE t; INSERT INTO t SELECT {KEYS[key]}, n, n / 10.0 FROM generate_series(1, {rows}) n")
        await world.both("ANALYZE t")
        report = await world.compare("t")
        assert (report.rows_source, report.rows_target, report.differences, report.unsettled) == (rows, rows, 0, 0)
        await world.right.execute("UPDATE t SET v = v + 1 WHERE n = 1")
        await world.left.execute(f"DELETE FROM t WHERE n > 1 AND n = {rows}")
        report = await world.compare("t")
        assert (report.missing, report.extra, report.mismatched) == (0, int(rows > 1), int(rows > 0))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("kind", ["mismatched", "missing"])
async def test_memory_is_flat_however_many_rows_differ(world: World, tmp_path: Path, kind: str) -> None:
    await world.both("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    peaks: list[int] = []
    with processes() as start:
        for rows in (FEW_DIFFERING, MANY_DIFFERING):
            await world.both("TRUNCATE t")
            await world.left.execute(f"INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, {rows}) AS n")
            if kind == "mismatched":
                await world.right.execute(f"INSERT INTO t SELECT n, 'w' || n FROM generate_series(1, {rows}) AS n")
            await world.both("ANALYZE t")
            order = Order(
                world.pair.monolith, world.pair.target, world.control.database, f"{rows}", tmp_path / f"{rows}", SIZES
            )
            process = start(whole, order)
            await asyncio.to_thread(process.join, SECONDS)
            assert process.exitcode == 0
            assert (
                await world.control.fetchval(f"SELECT {kind} FROM control.report WHERE complete ORDER BY id DESC")
                == rows
            )
            assert await world.control.fetchval("SELECT count(*) FROM control.difference WHERE confirmed") == rows
            await world.control.execute("TRUNCATE control.difference")
            peaks.append(int(order.noted()[0]))
    assert peaks[1] < peaks[0] + SLACK, f"kilobytes: {peaks}"
