"""Two servers of different major versions: equal rows are equal, corrupt ones are found, in every type.

An ordinary run takes one pair of versions, CUTOVER_PROVE_VERSIONS=all every pair (`make test-versions`).
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from cutover.postgres import columns
from cutover.postgres.buckets import Reader
from cutover.postgres.hashing import agree
from cutover.postgres.shapes import shapes
from cutover.reconcile import ranges
from cutover.reconcile.sides import both_sides
from tests.reconcile.conftest import World
from tests.reconcile.corruption import draw, found, wrongly
from tests.reconcile.test_types import RANDOM, T
from tests.reconcile.values import pairs_at
from tests.servers import create_database
from tests.versions import USUAL, VERSIONS, run_cluster

ALL = os.environ.get("CUTOVER_PROVE_VERSIONS") == "all"
PAIRS = [(a, b) for a in VERSIONS for b in VERSIONS if a < b] if ALL else [(15, USUAL)]


@dataclass(frozen=True)
class Versions:
    """A world whose source is the older server."""

    world: World
    pairs: list[tuple[str, str, str | None]]


@pytest.fixture(scope="module")
def servers() -> Iterator[Any]:
    """`servers(name, major)`: a running cluster of that version, kept for the tests of this file."""
    running: dict[tuple[str, int], Any] = {}
    with ExitStack() as stack:

        def start(name: str, major: int) -> Any:
            if (name, major) not in running:
                running[name, major] = stack.enter_context(run_cluster(name, major))
            return running[name, major]

        yield start


@pytest_asyncio.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]} and {pair[1]}")
async def two(world: World, servers: Any, request: pytest.FixtureRequest) -> AsyncIterator[Versions]:
    older, newer = request.param
    source = await create_database(servers("monolith", older), "monolith")
    target = world.pair.target if newer == USUAL else await create_database(servers("services", newer), "service_db")
    pair = replace(world.pair, monolith=source, target=target)
    async with source.session("test") as left, target.session("test") as right:
        assert (left.get_server_version().major, right.get_server_version().major) == (older, newer)
        yield Versions(replace(world, pair=pair, left=left, right=right), await pairs_at(left, right))


async def test_corrupt_rows_are_found_between_two_versions_and_nothing_else(
    two: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 300)
    table = draw(3, "composite", two.pairs)
    await table.load(two.world.left, two.world.right)
    report = await two.world.compare("t")
    assert wrongly(await found(two.world, report), table.expected) == {}
    reverse = await two.world.compare("t", "reverse")
    assert (reverse.missing, reverse.extra, reverse.mismatched) == (report.extra, report.missing, report.mismatched)


async def test_equal_rows_of_every_type_are_equal_between_two_versions(two: Versions) -> None:
    table = draw(4, "text", two.pairs)
    table.target = table.source
    await table.load(two.world.left, two.world.right)
    report = await two.world.compare("t")
    assert (report.differences, report.unsettled, report.rows_target) == (0, 0, len(table.source))


async def many_values(world: World) -> None:
    """Thousands of values of each type that has a hash of its own."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY, " + ", ".join(f"v_{k} {k}" for k in RANDOM) + ")")
    await world.left.execute(f"INSERT INTO t SELECT n, {', '.join(RANDOM.values())} FROM generate_series(1, 5000) n")
    rows = await world.left.fetch("SELECT t::text AS row FROM t")
    await world.right.execute("INSERT INTO t SELECT (r::t).* FROM unnest($1::text[]) AS r", [r["row"] for r in rows])


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of buckets that differed were opened, by statement."""
    counts: list[int] = []
    opened = Reader.opened

    async def counted(self: Reader, *args: Any) -> set[bytes]:
        rows = await opened(self, *args)
        counts.append(len(rows))
        return rows

    monkeypatch.setattr(Reader, "opened", counted)
    return counts


async def test_hashes_that_the_probes_find_alike_are_alike_for_thousands_of_values(
    two: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = count_opened(monkeypatch)
    await many_values(two.world)
    report = await two.world.compare("t")
    assert (report.differences, report.rows_source, report.rows_target) == (0, 5000, 5000)
    assert opened == []  # no bucket differed


async def test_a_type_whose_hash_differs_between_the_versions_is_compared_by_its_text(
    two: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of a hash function in a newer version: this one asks each server for its own version."""
    old = columns.OWN["int8"]
    own = "current_setting('server_version_num')::int8"
    monkeypatch.setitem(columns.OWN, "int8", lambda value, seed, text: f"({old(value, seed, text)} # {own})")
    opened = count_opened(monkeypatch)
    await many_values(two.world)
    async with both_sides(two.world.pair, "forward", "test") as (left, right):
        alike = await shapes(left, right, T, two.world.pair.passes_over(T))
        chosen = await agree(left, right, alike, 7)
    assert "int8" not in chosen.own
    assert {"int4", "uuid", "text"} <= chosen.own
    await two.world.right.execute("UPDATE t SET v_int8 = v_int8 # 1 WHERE id IN (7, 4999)")
    report = await two.world.compare("t")
    assert {key[0] for key in await found(two.world, report)} == {"7", "4999"}
    assert 2 <= sum(opened) < 20


async def test_a_server_without_a_hash_function_is_no_obstacle(two: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that only one version has (here: none has it) is not used on either side."""
    monkeypatch.setitem(columns.OWN, "uuid", columns._plain("uuid_hash_of_a_version_to_come"))
    await many_values(two.world)
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await two.world.left.fetchval("SELECT uuid_hash_of_a_version_to_come(NULL::uuid, 1::int8)")
    assert (await two.world.compare("t")).differences == 0
