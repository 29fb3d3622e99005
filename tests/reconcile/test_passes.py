"""A pass beside a living stream, killed in the middle, and over tables that differ everywhere."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from cutover.control import reports
from cutover.errors import NotYet, StaleAttempt, Unreachable
from cutover.plan.models import Reconcile
from cutover.postgres.databases import Pair
from cutover.reconcile import ranges
from cutover.reconcile.pace import Pace
from cutover.reconcile.passes import Progress
from tests.reconcile.conftest import World, no_stream


async def small_steps(monkeypatch: pytest.MonkeyPatch, rows: int = 500) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, rows)


async def test_live_writes_give_no_false_difference_and_hide_no_true_one(
    world: World, live: Callable[..., Any]
) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int, flag boolean DEFAULT false)")
    await world.left.execute("INSERT INTO t SELECT n, 0 FROM generate_series(1, 20000) AS n")
    stream = await live("t")
    await world.right.execute("UPDATE t SET v = -1 WHERE id = 700; DELETE FROM t WHERE id = 19000")
    await world.right.execute("INSERT INTO t VALUES (30000, 1)")
    stop = asyncio.Event()
    writes = 0

    async def write(seed: int) -> None:
        nonlocal writes
        rng = random.Random(seed)
        async with world.pair.monolith.session("writer") as connection:
            while not stop.is_set():
                key = rng.choice([n for n in (rng.randrange(1, 20000), 5, 6) if n not in (700, 19000)])
                match rng.randrange(4):
                    case 0:
                        await connection.execute("UPDATE t SET flag = NOT flag WHERE id = $1", key)
                    case 1:
                        await connection.execute("DELETE FROM t WHERE id = $1", key)
                    case 2:
                        await connection.execute("INSERT INTO t VALUES ($1, 1) ON CONFLICT DO NOTHING", key)
                    case _:
                        await connection.execute("UPDATE t SET v = v + 1 WHERE id = $1", key)
                writes += 1

    writers = [asyncio.create_task(write(seed)) for seed in range(3)]
    try:
        for _ in range(5):
            report = await world.compare("t", settle=stream.settle)
            assert await world.found(report) == {"700": "mismatched", "19000": "missing", "30000": "extra"}
    finally:
        stop.set()
        await asyncio.gather(*writers)
    assert writes > 200
    await stream.settle()
    report = await world.compare("t", settle=stream.settle)
    assert (report.differences, report.unsettled) == (3, 0)


async def test_a_row_that_toggles_is_never_a_confirmed_difference(world: World) -> None:
    """Both sides show the same two values at every look, written anew each time: that is a row in flight."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v boolean); INSERT INTO t VALUES (1, true)")
    await world.right.execute("UPDATE t SET v = false")
    world.rules = world.rules.model_copy(update={"reconcile": Reconcile.model_construct(**_seconds(0.5))})

    async def rewrite() -> None:
        await world.left.execute("UPDATE t SET v = false; UPDATE t SET v = true")
        await world.right.execute("UPDATE t SET v = true; UPDATE t SET v = false")

    report = await world.compare("t", settle=rewrite)
    assert (report.differences, report.unsettled, report.rate) == (0, 1, 0.0)


async def test_differences_that_the_stream_mends_in_time_are_dropped(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.left.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 5000) AS n")

    async def arrives() -> None:
        await world.right.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 5000) AS n ON CONFLICT DO NOTHING")

    report = await world.compare("t", settle=arrives)
    assert (report.differences, report.unsettled) == (0, 0)


async def test_a_stream_that_never_settles_leaves_candidates_unsettled(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    await world.left.execute("INSERT INTO t VALUES (1), (2)")
    world.rules = world.rules.model_copy(update={"reconcile": Reconcile.model_construct(**_seconds(0.3))})

    async def lags() -> None:
        raise NotYet("the marker did not arrive")

    report = await world.compare("t", settle=lags)
    assert (report.differences, report.unsettled) == (0, 2)


async def test_a_killed_pass_goes_on_at_its_last_finished_range(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await small_steps(monkeypatch)
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.both("INSERT INTO t SELECT n, n FROM generate_series(1, 10000) AS n")
    await world.right.execute("UPDATE t SET v = 0 WHERE id IN (3, 4000, 9999); DELETE FROM t WHERE id = 250")
    read: list[int] = []
    for attempt in range(8):

        def killed_after_some(progress: Progress, attempt: int = attempt) -> None:
            read.append(progress.rows_source)
            if attempt < 7 and len(read) % 4 == 0:
                raise KeyboardInterrupt

        try:
            report = await asyncio.wait_for(
                _guarded(world.compare("t", pass_id="p1", progress=killed_after_some)), timeout=30
            )
        except _Killed:
            continue
        break
    assert read == sorted(read)
    assert len(read) < 40  # ranges that were finished were not read again
    assert (report.rows_source, report.rows_target) == (10000, 9999)
    expected = {**dict.fromkeys(("3", "4000", "9999"), "mismatched"), "250": "missing"}
    assert await world.found(report) == expected
    again = await world.compare("t", pass_id="p1", settle=_never)
    assert again.id == report.id
    assert await world.control.fetchval("SELECT count(*) FROM control.report WHERE complete") == 1
    assert await world.control.fetchval("SELECT count(*) FROM control.pass_candidate") == 0


async def test_a_newer_run_of_a_pass_fences_the_older_one_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await small_steps(monkeypatch)
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    await world.both("INSERT INTO t SELECT n FROM generate_series(1, 3000) AS n")
    await world.right.execute("DELETE FROM t WHERE id = 7")
    newer: list[reports.TableReport] = []

    async def sleeps_through() -> None:
        if not newer:
            newer.append(await world.compare("t", pass_id="p2", settle=no_stream))

    with pytest.raises(StaleAttempt):
        await world.compare("t", pass_id="p2", settle=sleeps_through)
    assert newer[0].missing == 1
    assert newer[0].rows_source == 3000


async def test_one_side_down_in_the_middle_is_unreachable_and_the_pass_resumes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await small_steps(monkeypatch)
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    await world.both("INSERT INTO t SELECT n FROM generate_series(1, 30000) AS n")
    cuts: list[asyncio.Future[Any]] = []

    def cut(progress: Progress) -> None:
        if progress.chunks == 2:
            cuts.append(asyncio.ensure_future(world.right.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cutover-compare%'"
            )))  # fmt: skip

    with pytest.raises(Unreachable):
        await world.compare("t", pass_id="p3", progress=cut, pace=Pace(busy=0.2))
    await asyncio.gather(*cuts)
    stood = await world.control.fetchval("SELECT rows_source FROM control.pass WHERE id = 'p3'")
    assert 1000 <= stood < 30000
    report = await world.compare("t", pass_id="p3")
    assert (report.rows_source, report.rows_target, report.differences) == (30000, 30000, 0)
    away = Pair("m", "svc", world.pair.monolith, type(world.pair.target)("gone", "postgresql://x@127.0.0.1:1/x"), ())
    world.pair = away
    with pytest.raises(Unreachable, match="'gone'"):
        await world.compare("t")


class _Killed(Exception):
    pass


async def _guarded(run: Any) -> Any:
    with contextlib.suppress(KeyboardInterrupt):
        return await run
    raise _Killed


async def _never() -> None:
    raise AssertionError("a finished pass has nothing to settle")


def _seconds(value: float) -> dict[str, Any]:
    from datetime import timedelta

    return {"every": timedelta(seconds=value), "max_lag": timedelta(seconds=value)}
