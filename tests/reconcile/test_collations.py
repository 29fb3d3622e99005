"""Texts under ICU collations, where a server at hand has ICU: order and equality of a collation decide nothing."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from cutover.devstack.cluster import Cluster
from cutover.postgres.identifiers import TableName
from cutover.postgres.shapes import shapes
from cutover.reconcile import ranges
from cutover.reconcile.sides import both_sides
from tests.reconcile.conftest import World, found_columns
from tests.reconcile.corruption import draw, found, wrongly
from tests.servers import create_database
from tests.versions import run_cluster

#: A version of which servers with ICU are found or fetched; the package that other tests run on has none.
WITH_ICU = 15
CASELESS = "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with run_cluster("monolith", WITH_ICU) as cluster:
        yield cluster


@dataclass(frozen=True)
class Icu:
    """Both sides on the server with ICU, and the source there with the target on the usual one, which has none."""

    both: World
    source_alone: World


@pytest_asyncio.fixture
async def icu(world: World, server: Cluster) -> AsyncIterator[Icu]:
    source, target = [await create_database(server, name) for name in ("monolith", "service_db")]
    async with source.session("test") as left, target.session("test") as right:
        if not await left.fetchval("SELECT EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i')"):
            pytest.skip(f"PostgreSQL {WITH_ICU} at hand was built without ICU, so its collations are not covered here")
        pair = replace(world.pair, monolith=source, target=target)
        yield Icu(
            replace(world, pair=pair, left=left, right=right),
            replace(world, pair=replace(pair, target=world.pair.target), left=left),
        )


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 50)


async def ordered(world: World) -> bool:
    async with both_sides(world.pair, "forward", "test") as (left, right):
        table = TableName("public", "t")
        return (await shapes(left, right, table, world.pair.passes_over(table)))[0].ordered


@pytest.mark.parametrize("key", ["text", "composite"])
async def test_a_key_that_sorts_by_icu_here_and_by_bytes_there_is_compared_completely(icu: Icu, key: str) -> None:
    world = icu.source_alone
    table = draw(5, key, [], each=4, sound=600)
    await table.load(world.left, world.right)
    await world.left.execute('ALTER TABLE t ALTER key0 TYPE text COLLATE "de-x-icu"')
    here, there = [[r[0] for r in await c.fetch("SELECT key0 FROM t ORDER BY key0")] for c in (world.left, world.right)]
    assert [k for k in here if k in there] != [k for k in there if k in here]  # the two orders do differ
    assert not await ordered(world)
    assert wrongly(await found(world, await world.compare("t")), table.expected) == {}


async def test_a_key_that_sorts_by_the_same_icu_collation_on_both_sides_is_walked_in_its_order(icu: Icu) -> None:
    world = icu.both
    table = draw(6, "text", [], each=4, sound=600)
    await table.load(world.left, world.right)
    await world.both('ALTER TABLE t ALTER key0 TYPE text COLLATE "de-x-icu"')
    assert await ordered(world)
    assert wrongly(await found(world, await world.compare("t")), table.expected) == {}


async def test_two_icu_collations_of_one_key_are_not_taken_for_one_order(icu: Icu) -> None:
    world = icu.both
    table = draw(7, "text", [], each=4, sound=600)
    await table.load(world.left, world.right)
    await world.left.execute('ALTER TABLE t ALTER key0 TYPE text COLLATE "de-x-icu"')
    await world.right.execute(
        "CREATE COLLATION capitals_first (provider = icu, locale = 'de-u-kf-upper'); "
        "ALTER TABLE t ALTER key0 TYPE text COLLATE capitals_first"
    )
    assert not await ordered(world)
    assert wrongly(await found(world, await world.compare("t")), table.expected) == {}


async def test_what_a_nondeterministic_collation_takes_for_equal_is_a_difference(icu: Icu) -> None:
    world = icu.both
    await world.both(f"{CASELESS}; CREATE TABLE t (id int PRIMARY KEY, v text COLLATE caseless, w varchar(9))")
    await world.both("INSERT INTO t SELECT n, 'a' || n, 'same' FROM generate_series(1, 400) AS n")
    assert await world.left.fetchval("SELECT v = upper(v) FROM t WHERE id = 1")  # equal, as this column sees it
    await world.right.execute("UPDATE t SET v = upper(v) WHERE id IN (7, 399)")
    report = await world.compare("t")
    assert await found_columns(world, report) == {"7": ("v",), "399": ("v",)}


async def test_keys_that_a_nondeterministic_collation_takes_for_equal_are_one_mismatched_row(icu: Icu) -> None:
    world = icu.both
    await world.both(f"{CASELESS}; CREATE TABLE t (id text COLLATE caseless PRIMARY KEY, v int)")
    await world.both("INSERT INTO t SELECT 'key ' || n, 0 FROM generate_series(1, 400) AS n")
    await world.right.execute("UPDATE t SET id = upper(id) WHERE id = 'key 8'; DELETE FROM t WHERE id = 'KEY 9'")
    await world.right.execute("UPDATE t SET v = 1 WHERE id = 'Key 10'")
    report = await world.compare("t")
    assert await world.found(report) == {"key 8": "mismatched", "key 9": "missing", "key 10": "mismatched"}
    assert await found_columns(world, report) == {"key 8": ("id",), "key 10": ("v",)}
