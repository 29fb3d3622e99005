"""What cannot be compared is refused in words that say what to do, and a pass goes on once it can be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from cutover.errors import ConfigError, CutoverError, GateClosed, Refused, Unreachable
from cutover.plan.models import Compare
from cutover.postgres.databases import Database, Direction
from cutover.postgres.identifiers import TableName
from cutover.reconcile import ranges
from cutover.reconcile.passes import Progress, finish_pass, open_pass, walk_span
from tests.reconcile.conftest import World, found_columns
from tests.servers import Clusters

ROLE = "bad_input_reader"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 500)


async def filled(world: World, rows: int = 4000) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.both(f"INSERT INTO t SELECT n, 0 FROM generate_series(1, {rows}) AS n")
    await world.right.execute("UPDATE t SET v = 1 WHERE id IN (5, 3999)")


async def refused(world: World, table: str, error: type[CutoverError], *parts: str) -> None:
    with pytest.raises(error) as caught:
        await world.compare(table)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("missing_at", ["source", "target"])
async def test_an_unknown_table_is_named_with_what_it_may_have_been(world: World, missing_at: str) -> None:
    there = world.right if missing_at == "source" else world.left
    await there.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    await world.both("CREATE TABLE order_lines (id int PRIMARY KEY)")
    await refused(world, "orders", ConfigError, "no table 'orders'", "order_lines")


@pytest.mark.parametrize("missing_at", ["source", "target"])
async def test_a_column_that_one_side_alone_has_is_named_with_the_side(world: World, missing_at: str) -> None:
    await filled(world)
    have, side = (world.right, "target") if missing_at == "source" else (world.left, "source")
    await have.execute("ALTER TABLE t ADD note text")
    await refused(world, "t", GateClosed, "table t is not the same", f"column 'note' is only at the {side}")
    world.pair = replace(world.pair, compare={TableName("public", "t"): Compare(exclude=["note"])})
    assert (await world.compare("t")).left_out == ["note (excluded by the plan)"]


MUTE = """
CREATE TYPE mute;
CREATE FUNCTION mute_in(cstring) RETURNS mute LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION mute_out(mute) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'anyelement_out';
CREATE TYPE mute (INPUT = mute_in, OUTPUT = mute_out, LIKE = text);
"""


async def test_a_type_without_a_text_form_is_refused_by_name_until_its_column_is_excluded(world: World) -> None:
    await world.both(f"{MUTE} CREATE TABLE t (id int PRIMARY KEY, v int, spot mute)")
    await world.both("INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b')")
    await refused(world, "t", GateClosed, "spot", "no text form", "exclude")
    world.pair = replace(world.pair, compare={TableName("public", "t"): Compare(exclude=["spot"])})
    await world.right.execute("UPDATE t SET v = 3 WHERE id = 2")
    report = await world.compare("t")
    assert await found_columns(world, report) == {"2": ("v",)}
    assert report.left_out == ["spot (excluded by the plan)"]


@asynccontextmanager
async def reading_as_a_role(world: World, side: str) -> AsyncIterator[World]:
    """The pass reads one side as a role that may read nothing yet."""
    connection = world.left if side == "monolith" else world.right
    database = world.pair.monolith if side == "monolith" else world.pair.target
    await connection.execute(f"CREATE ROLE {ROLE} LOGIN")
    scheme, _, rest = database.dsn.partition("://")
    weak = Database(database.name, f"{scheme}://{ROLE}@{rest.rpartition('@')[2]}")
    try:
        pair = replace(world.pair, monolith=weak) if side == "monolith" else replace(world.pair, target=weak)
        yield replace(world, pair=pair)
    finally:
        await connection.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


@pytest.mark.parametrize("side", ["monolith", "target"])
async def test_a_privilege_taken_away_in_the_middle_is_refused_and_the_pass_goes_on_when_it_is_back(
    world: World, side: str
) -> None:
    await filled(world)
    owner = world.left if side == "monolith" else world.right
    async with reading_as_a_role(world, side) as weak:
        await refused(weak, "t", Refused, "permission denied for table t", "grant the privilege")
        await owner.execute(f"GRANT SELECT ON t TO {ROLE}")

        async def taken_away(progress: Progress) -> None:
            if progress.chunks == 3:
                await owner.execute(f"REVOKE SELECT ON t FROM {ROLE}")

        job = weak.job("t", pass_id="p")
        assert await open_pass(job) == 1
        with pytest.raises(Refused, match="permission denied for table t"):
            await walk_span(job, 1, taken_away)
        await owner.execute(f"GRANT SELECT ON t TO {ROLE}")
        seen: list[int] = []

        async def noted(progress: Progress) -> None:
            seen.append(progress.rows_source)

        await walk_span(job, 1, noted)
        assert seen[0] > 1500  # what stood was not read again
        report = await finish_pass(job)
        assert (report.rows_source, report.rows_target) == (4000, 4000)
        assert await world.found(report) == {"5": "mismatched", "3999": "mismatched"}


async def test_row_security_that_would_hide_rows_is_refused(world: World) -> None:
    await filled(world)
    await world.right.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    async with reading_as_a_role(world, "target") as weak:
        await world.right.execute(f"GRANT SELECT ON t TO {ROLE}")
        await refused(weak, "t", Refused, "row-level security", "BYPASSRLS")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
async def test_a_server_killed_in_the_middle_is_unreachable_and_the_pass_goes_on_when_it_is_back(
    world: World, clusters: Clusters, direction: Direction
) -> None:
    """The monolith's, which is the source of one direction and the sink of the other."""
    await filled(world)

    async def killed(progress: Progress) -> None:
        if progress.chunks == 3:
            await asyncio.to_thread(clusters.monolith.kill9)

    job = world.job("t", direction, pass_id="p")
    assert await open_pass(job) == 1
    try:
        with pytest.raises(Unreachable, match="'monolith'"):
            await walk_span(job, 1, killed)
        with pytest.raises(Unreachable, match="'monolith' cannot be reached"):
            await walk_span(job, 1)
    finally:
        await asyncio.to_thread(clusters.monolith.start)
    seen: list[int] = []

    async def noted(progress: Progress) -> None:
        seen.append(progress.rows_source)

    await walk_span(job, 1, noted)
    assert seen[0] > 1500
    report = await finish_pass(job)
    assert (report.rows_source, report.rows_target) == (4000, 4000)
    assert await world.found(report) == {"5": "mismatched", "3999": "mismatched"}
