"""A pass in spans: every key in exactly one, walked by several at once, killed, gone on with, and fenced off."""

import asyncio
import random

import pytest

from cutover.errors import GateClosed, StaleAttempt
from cutover.reconcile import ranges, spans
from cutover.reconcile.passes import finish_pass, open_pass, walk_span
from cutover.reconcile.spans import Span
from tests.reconcile.conftest import World

KEYS = {
    "integer": ("id int PRIMARY KEY", "n"),
    "sparse": ("id bigint PRIMARY KEY", "CASE WHEN n % 2 = 0 THEN -n::bigint * 1000000007 ELSE n END"),
    "text": ('id text COLLATE "C" PRIMARY KEY', "md5(n::text)"),
    "uuid": ("id uuid PRIMARY KEY", "md5(n::text)::uuid"),
    "any collation": ("id text PRIMARY KEY", "md5(n::text)"),
    "no key": ("id int", "n % 900"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_ROWS", 1000)
    monkeypatch.setattr(spans, "SHARE_ROWS", 1000)
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 300)


async def filled(world: World, kind: str, rows: int = 8000) -> None:
    key, value = KEYS[kind]
    await world.both(f"CREATE TABLE t ({key}, v text)")
    await world.both(f"INSERT INTO t SELECT {value}, 'v' FROM generate_series(1, {rows}) AS n")
    await world.both("ANALYZE t")


@pytest.mark.parametrize("kind", list(KEYS))
async def test_spans_walked_at_once_in_any_order_find_every_difference_once(world: World, kind: str) -> None:
    await filled(world, kind)
    await world.right.execute("UPDATE t SET v = 'w' WHERE ctid IN (SELECT ctid FROM t ORDER BY md5(id::text) LIMIT 30)")
    job = world.job("t", pass_id="p")
    count = await open_pass(job)
    assert count >= 4
    assert await open_pass(job) == count
    numbers = list(range(1, count + 1))
    random.Random(7).shuffle(numbers)
    await asyncio.gather(*(walk_span(job, number) for number in numbers))
    report = await finish_pass(job)
    rows = await world.left.fetchval("SELECT count(*) FROM (SELECT DISTINCT id, v FROM t) d" if kind == "no key" else
                                     "SELECT count(*) FROM t")  # fmt: skip
    assert report.rows_source == rows
    assert report.differences > 0 if kind == "no key" else report.mismatched == 30
    again = await world.compare("t")
    assert (again.missing, again.extra, again.mismatched) == (report.missing, report.extra, report.mismatched)


async def test_rows_beyond_the_spans_of_the_source_are_found_at_the_sink(world: World) -> None:
    await filled(world, "integer")
    await world.right.execute("INSERT INTO t VALUES (-5, 'x'), (99999, 'x'); DELETE FROM t WHERE id IN (1, 8000)")
    report = await world.compare("t")
    assert await world.found(report) == {"-5": "extra", "99999": "extra", "1": "missing", "8000": "missing"}


async def test_a_table_that_is_empty_at_one_side_is_walked_in_spans(world: World) -> None:
    await filled(world, "integer", 3000)
    await world.right.execute("TRUNCATE t")
    report = await world.compare("t")
    assert (report.rows_source, report.rows_target, report.missing) == (3000, 0, 3000)


async def test_a_span_that_was_killed_goes_on_and_the_others_are_not_read_again(world: World) -> None:
    await filled(world, "integer")
    await world.right.execute("DELETE FROM t WHERE id IN (10, 7990)")
    job = world.job("t", pass_id="p")
    count = await open_pass(job)
    chunks = 0

    async def killed(progress: object) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await walk_span(job, 1, killed)
    stood = await world.control.fetchval("SELECT rows_source FROM control.pass WHERE id = 'p'")
    assert 300 <= stood < 1200
    with pytest.raises(GateClosed, match="were not walked to their end"):
        await finish_pass(job)
    for number in range(1, count + 1):
        await walk_span(job, number)
    report = await finish_pass(job)
    assert (report.rows_source, report.rows_target) == (8000, 7998)
    assert await world.found(report) == {"10": "missing", "7990": "missing"}


async def test_a_walk_that_another_has_overtaken_writes_nothing(world: World) -> None:
    await filled(world, "integer")
    job = world.job("t", pass_id="p")
    await open_pass(job)
    overtaken = asyncio.Event()

    async def sleeps(progress: object) -> None:
        if not overtaken.is_set():
            overtaken.set()
            await walk_span(job, 1)

    with pytest.raises(StaleAttempt, match="span 1"):
        await walk_span(job, 1, sleeps)
    assert await world.control.fetchval("SELECT done FROM control.pass_span WHERE number = 1")
    rows = await world.control.fetchval("SELECT rows_source FROM control.pass")
    span = Span.read(await world.control.fetchval("SELECT span FROM control.pass_span WHERE number = 1"))
    assert rows == await world.left.fetchval("SELECT count(*) FROM t WHERE id <= $1", int((span.high or ("0",))[0]))


async def test_the_number_of_spans_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_ROWS", 1)
    await filled(world, "integer", 2000)
    assert 1 < await open_pass(world.job("t")) <= spans.MOST_SPANS


@pytest.mark.parametrize(
    "span",
    [Span(True, None, ("a", "ü\n")), Span(True, ("1",), None), Span(True), Span(False, share=3, of=8)],
)
def test_a_span_is_read_back_as_it_was_kept(span: Span) -> None:
    assert Span.read(span.json) == span
