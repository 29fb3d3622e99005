"""Twelve kinds of corruption in every type of column, under every type of key: all of it is found, and nothing else.

CUTOVER_PROVE_SEEDS draws more tables than the few of an ordinary run (`make prove-reconcile`).
"""

import os

import pytest

from cutover.reconcile import ranges
from tests.reconcile.conftest import World
from tests.reconcile.corruption import KEYS, draw, found, wrongly
from tests.reconcile.values import pairs_at

SEEDS = range(1, 1 + int(os.environ.get("CUTOVER_PROVE_SEEDS", "1")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("key", list(KEYS))
async def test_every_corruption_is_found_by_its_key_and_columns_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, key: str, seed: int
) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 300)
    table = draw(seed, key, await pairs_at(world.left, world.right))
    await table.load(world.left, world.right)
    report = await world.compare("t")
    expected = table.expected
    assert wrongly(await found(world, report), expected) == {}, f"seed {seed}, key {key}"
    kinds = [kind for kind, _ in expected.values()]
    assert (report.rows_source, report.rows_target) == (len(table.source), len(table.target)), f"seed {seed}"
    assert (report.missing, report.extra, report.mismatched, report.unsettled) == (
        kinds.count("missing"), kinds.count("extra"), kinds.count("mismatched"), 0,
    ), f"seed {seed}"  # fmt: skip
    assert len(kinds) > 500


@pytest.mark.parametrize("key", ["text", "composite"])
async def test_the_same_tables_without_corruption_are_equal(world: World, key: str) -> None:
    table = draw(9, key, await pairs_at(world.left, world.right))
    table.target = table.source
    await table.load(world.left, world.right)
    report = await world.compare("t")
    assert (report.differences, report.unsettled, report.rows_source) == (0, 0, len(table.source))
