"""The walk over tables of any size and key: all of it is read, what differs is opened, and a kill costs one part."""

import asyncio
import contextlib
import random
from typing import Any

import asyncpg
import pytest

from cutover.errors import GateClosed, NotYet
from cutover.plan.models import Table
from cutover.postgres.buckets import Buckets, Reader, Region, Slices
from cutover.postgres.identifiers import TableName
from cutover.reconcile import ranges, spans
from cutover.reconcile.conflicts import resolve
from tests.reconcile.conftest import World, found_columns, no_stream

MANY = 2**17


async def small_parts(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, rows)


async def test_tables_of_no_row_of_one_and_of_many_rows(world: World) -> None:
    await world.both("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    for rows in (0, 1, MANY):
        await world.both(
            f"TRUNCATE t; INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, {rows}) AS n; ANALYZE t"
        )
        report = await world.compare("t")
        assert (report.rows_source, report.rows_target, report.differences) == (rows, rows, 0)
    assert report.bytes_moved < 200_000
    await world.right.execute(f"UPDATE t SET v = 'w' WHERE id % 20000 = 7; DELETE FROM t WHERE id = {MANY}")
    await world.left.execute("DELETE FROM t WHERE id = 1")
    report = await world.compare("t")
    expected: dict[str, str] = {str(n): "mismatched" for n in range(7, MANY, 20000)}
    assert await world.found(report) == {**expected, str(MANY): "missing", "1": "extra"}
    assert set((await found_columns(world, report)).values()) == {("v",)}


async def test_all_rows_differing_are_found_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "OPEN_ROWS", 500)
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.left.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 6000) AS n")
    await world.right.execute("INSERT INTO t SELECT n, -n FROM generate_series(1, 6000) AS n")
    report = await world.compare("t")
    assert (report.mismatched, report.missing, report.extra) == (6000, 0, 0)


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint"])
async def test_integers_up_to_their_limits_and_with_great_gaps(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    await small_parts(monkeypatch, 1000)
    top = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}[kind]
    await world.both(f"CREATE TABLE t (id {kind} PRIMARY KEY, v int)")
    await world.both(
        f"INSERT INTO t SELECT n, 0 FROM generate_series(1, 3000) AS n; "
        f"INSERT INTO t VALUES ({-top}, 0), ({-top + 1}, 0), ({top - 1}, 0), ({top - 2}, 0), ({-top // 2}, 0)"
    )
    await world.right.execute(
        f"UPDATE t SET v = 1 WHERE id IN ({-top}, 1500); DELETE FROM t WHERE id = {top - 1}; "
        f"INSERT INTO t VALUES ({top // 2}, 0)"
    )
    report = await world.compare("t")
    assert await world.found(report) == {
        str(-top): "mismatched", "1500": "mismatched", str(top - 1): "missing", str(top // 2): "extra",
    }  # fmt: skip
    assert report.rows_source == 3005


async def test_a_crowd_of_keys_beside_great_gaps_is_divided_until_it_fits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "OPEN_ROWS", 200)
    largest = 0
    opened = Reader.opened

    async def noting(self: Reader, *args: Any) -> set[bytes]:
        nonlocal largest
        found = await opened(self, *args)
        largest = max(largest, len(found))
        return found

    monkeypatch.setattr(Reader, "opened", noting)
    await world.both("CREATE TABLE t (id bigint PRIMARY KEY, v int)")
    await world.both("INSERT INTO t SELECT n, 0 FROM generate_series(1, 5000) AS n; INSERT INTO t VALUES (1e15, 0)")
    await world.right.execute("UPDATE t SET v = 1 WHERE id = 2500")
    assert await world.found(await world.compare("t")) == {"2500": "mismatched"}
    assert 0 < largest <= 200


@pytest.mark.parametrize("missing_at", ["source", "target"])
async def test_a_side_without_rows_does_not_make_parts_longer(
    world: World, monkeypatch: pytest.MonkeyPatch, missing_at: str
) -> None:
    await small_parts(monkeypatch, 1000)
    monkeypatch.setattr(ranges, "OPEN_ROWS", 500)
    most = 0
    buckets = Reader.buckets

    async def noting(self: Reader, region: Region, slices: Slices | None, count: int) -> Buckets:
        nonlocal most
        found = await buckets(self, region, slices, count)
        most = max(most, found.rows)
        return found

    monkeypatch.setattr(Reader, "buckets", noting)
    await world.both("CREATE TABLE t (k text, n int, PRIMARY KEY (k, n))")
    side = world.right if missing_at == "source" else world.left
    await side.execute("INSERT INTO t SELECT md5((n / 3)::text), n FROM generate_series(1, 6000) AS n")
    report = await world.compare("t")
    assert (report.missing, report.extra) == ((0, 6000) if missing_at == "source" else (6000, 0))
    assert most == 1000


async def test_a_unique_index_names_rows_where_there_is_no_primary_key(world: World) -> None:
    await world.both(
        "CREATE TABLE t (a int, b int NOT NULL, c text NOT NULL, v int); CREATE UNIQUE INDEX nullable ON t (a); "
        "CREATE UNIQUE INDEX part ON t (b) WHERE b > 0; CREATE UNIQUE INDEX whole ON t (b, c)"
    )
    await world.both(
        "INSERT INTO t SELECT NULL, n % 10, 'c' || n, 0 FROM generate_series(11, 999) AS n WHERE n % 10 = 0"
    )
    await world.right.execute("UPDATE t SET v = 1 WHERE c = 'c20'; DELETE FROM t WHERE c = 'c30'")
    report = await world.compare("t")
    assert await world.found(report) == {"0|c20": "mismatched", "0|c30": "missing"}
    assert report.warnings == ["the table has no primary key: rows were told apart by unique index public.whole"]


async def test_a_table_without_a_key_is_a_multiset(world: World) -> None:
    await world.both("CREATE TABLE t (v text, n numeric)")
    await world.both("INSERT INTO t SELECT 'v' || n % 50, 1.5 FROM generate_series(1, 1000) AS n")
    assert (await world.compare("t")).differences == 0
    await world.right.execute("INSERT INTO t VALUES ('v1', 1.5), ('new', 1.5)")
    await world.left.execute("UPDATE t SET n = 1.50 WHERE v = 'v2'")
    report = await world.compare("t")
    assert sorted((await world.found(report)).values()) == ["extra", "extra", "mismatched", "missing"]
    assert set((await found_columns(world, report)).values()) == {("copies",)}
    assert "has no key" in report.warnings[0]
    with pytest.raises(GateClosed, match="has no key"):
        await resolve(world.pair, "forward", TableName("public", "t"), Table(), [], world.control, no_stream)


async def test_partitions_are_read_through_their_table_with_their_indexes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await small_parts(monkeypatch, 2000)
    await world.both(
        "CREATE TABLE t (id bigint, at date, v int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); "
        "CREATE TABLE p1 PARTITION OF t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01'); "
        "CREATE TABLE p2 PARTITION OF t FOR VALUES FROM ('2024-02-01') TO ('2024-03-01'); "
        "CREATE TABLE rest PARTITION OF t DEFAULT"
    )
    await world.both("INSERT INTO t SELECT n, date '2024-01-01' + n % 90, 0 FROM generate_series(1, 20000) AS n")
    await world.both("ANALYZE t")
    await world.right.execute("UPDATE t SET v = 1 WHERE id IN (1, 50, 19999); DELETE FROM p1 WHERE id = 90")
    read = 0
    fetchrow = asyncpg.Connection.fetchrow

    async def explained(self: asyncpg.Connection, sql: str, *args: Any, **options: Any) -> Any:
        nonlocal read
        if "AS bucket" in sql and args:
            plan = "\n".join(r[0] for r in await self.fetch("EXPLAIN " + sql, *args))
            assert "Index" in plan
            assert "Seq Scan" not in plan
            read += 1
        return await fetchrow(self, sql, *args, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetchrow", explained)
    report = await world.compare("t")
    assert sorted(k.partition("|")[0] for k in await world.found(report)) == ["1", "19999", "50", "90"]
    assert read >= 16


@pytest.mark.parametrize("key", ["id int PRIMARY KEY", "id public.citext PRIMARY KEY", "id int"])
async def test_passes_killed_at_random_moments_resume(world: World, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    await small_parts(monkeypatch, 1000)
    for module in (ranges, spans):
        monkeypatch.setattr(module, "SHARE_ROWS", 1000)
    monkeypatch.setattr(ranges, "OPEN_ROWS", 300)
    await world.both(f"CREATE EXTENSION citext; CREATE TABLE t ({key}, v text)")
    await world.both("INSERT INTO t SELECT n, 'v' FROM generate_series(1, 8000) AS n; ANALYZE t")
    await world.right.execute("UPDATE t SET v = 'w' WHERE id::text::int % 1000 = 3; DELETE FROM t WHERE id::text = '5'")
    rng = random.Random(5)
    kills = 0
    while True:
        running = asyncio.create_task(world.compare("t", pass_id="p"))
        done, _ = await asyncio.wait({running}, timeout=rng.uniform(0.05, 0.5) * (1 + kills / 5))
        if done:
            break
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        kills += 1
    report = running.result()
    assert (report.rows_source, report.rows_target) == ((8000, 7999) if "PRIMARY" in key else (2 * 8000 // 2, 7999))
    assert report.differences == (9 if "PRIMARY" in key else 17)
    assert await world.control.fetchval("SELECT count(*) FROM control.pass_candidate") == 0


async def test_a_pass_begins_anew_where_it_stood_means_nothing_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await small_parts(monkeypatch, 1000)
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 5000) n"
    )

    def killed(progress: Any) -> None:
        if progress.chunks == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await world.compare("t", pass_id="p", progress=killed)
    await world.both("ALTER TABLE t DROP CONSTRAINT t_pkey")
    report = await world.compare("t", pass_id="p")
    assert (report.rows_source, report.rows_target, report.differences) == (5000, 5000, 0)


@pytest.mark.parametrize("key", ["id int PRIMARY KEY", "id public.citext PRIMARY KEY"])
async def test_a_part_that_takes_too_long_is_made_smaller(
    world: World, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(ranges, "SMALLEST_STEP", 500)
    await world.both(f"CREATE EXTENSION citext; CREATE TABLE t ({key}, v int)")
    await world.both("INSERT INTO t SELECT n, 0 FROM generate_series(1, 4000) AS n")
    await world.right.execute("UPDATE t SET v = 1 WHERE id::text = '2000'")
    buckets, limit = Reader.buckets, 1000

    async def slow(self: Reader, region: Region, slices: Slices | None, count: int) -> Buckets:
        found = await buckets(self, region, slices, count)
        if found.rows > limit:
            raise asyncpg.QueryCanceledError("canceling statement due to statement timeout")
        return found

    monkeypatch.setattr(Reader, "buckets", slow)
    report = await world.compare("t")
    assert await world.found(report) == {"2000": "mismatched"}
    assert (report.rows_source, report.rows_target) == (4000, 4000)
    limit = 0
    with pytest.raises(NotYet, match="was held up"):
        await world.compare("t")
