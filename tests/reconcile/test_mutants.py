"""A comparison that leaves out one of the engine's precautions misses a difference that the engine finds."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cutover.postgres import columns, hashing
from cutover.postgres.buckets import Reader, Region
from cutover.postgres.hashing import Hashing
from cutover.reconcile import confirm, ranges
from tests.reconcile.conftest import World
from tests.reconcile.corruption import draw, found, wrongly
from tests.reconcile.test_types import opened
from tests.reconcile.values import pairs_at

Mutate = Callable[[pytest.MonkeyPatch], None]


def no_column_seed(patch: pytest.MonkeyPatch) -> None:
    drawn = hashing.seed_of
    patch.setattr(hashing, "seed_of", lambda seed, label: drawn(seed, label.partition(" ")[0]))


def no_key_in_the_rows_hash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Hashing, "_keyed", lambda self, shape, seed: seed)


def key_only_xored(patch: pytest.MonkeyPatch) -> None:
    keyed = Hashing._keyed
    patch.setattr(Hashing, "_keyed", lambda self, shape, seed: f"({keyed(self, shape, '7')}) # ({seed})")
    patch.setattr(hashing, "TOTAL", "bit_xor({})")


def own_hash_of_numeric(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(columns.NEWER, "numeric")
    patch.setitem(columns._OWN_OF, 1700, "numeric")
    patch.setitem(columns.OWN, "numeric", columns._plain("hash_numeric_extended"))
    patch.setitem(columns.PROBES, "numeric", ("1", "2.5"))


def own_hash_of_bigint(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(columns.OWN, "int8", columns._plain("hashint8extended"))


def own_hash_of_float(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(columns.OWN, "float8", columns._plain("hashfloat8extended"))


def own_hash_of_timestamps(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(columns.NEWER, "timestamp")
    patch.setitem(columns.OWN, "timestamp", columns._plain("timestamp_hash_extended"))


def null_as_nothing(patch: pytest.MonkeyPatch) -> None:
    of = Hashing.column
    patch.setattr(Hashing, "column", lambda self, c: of(self, replace(c, text=f"coalesce({c.text}, '')", own="")))


DEFINITION = """
CREATE TABLE t (id int PRIMARY KEY, a text, b text, n numeric, big bigint, f float8, at timestamp);
INSERT INTO t SELECT n, 'a' || n, 'b' || n, 1.5, 1, 0, '2000-01-01 00:00:00.000001' FROM generate_series(1, 2000) AS n;
UPDATE t SET a = '' WHERE id = 7
"""
#: What each mutant misses: a change at the target, the keys that it touches.
MUTANTS: list[tuple[Mutate, str, set[str]]] = [
    (no_column_seed, "UPDATE t SET a = b, b = a WHERE id = 5", {"5"}),
    (no_key_in_the_rows_hash, "UPDATE t SET a = 'a' || (11 - id), b = 'b' || (11 - id) WHERE id IN (5, 6)", {"5", "6"}),
    (key_only_xored, "UPDATE t SET a = 'a' || (11 - id), b = 'b' || (11 - id) WHERE id IN (5, 6)", {"5", "6"}),
    (own_hash_of_numeric, "UPDATE t SET n = 1.50 WHERE id = 5; UPDATE t SET n = -1.5 WHERE id = 6", {"5", "6"}),
    (own_hash_of_bigint, "UPDATE t SET big = 4294967296 WHERE id = 5", {"5"}),
    (own_hash_of_float, "UPDATE t SET f = '-0' WHERE id = 5", {"5"}),
    (own_hash_of_timestamps, "UPDATE t SET at = at + interval '4294.967295 s' WHERE id = 5", {"5"}),
    (null_as_nothing, "UPDATE t SET a = NULL WHERE id = 7", {"7"}),
]


@pytest.mark.parametrize(("mutate", "change", "keys"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS])
async def test_a_mutant_of_the_hash_is_caught(
    world: World, monkeypatch: pytest.MonkeyPatch, mutate: Mutate, change: str, keys: set[str]
) -> None:
    monkeypatch.setattr(ranges, "BUCKET_ROWS", 5_000)  # so that neighbours are in one bucket
    await world.both(DEFINITION)
    await world.right.execute(change)
    assert set(await world.found(await world.compare("t"))) == keys
    mutate(monkeypatch)
    assert set(await world.found(await world.compare("t"))) < keys


#: Mutants by which a corrupt row has the hash of the sound one, whatever shares its bucket.
OF_ONE_ROW = [no_column_seed, own_hash_of_numeric, own_hash_of_bigint, own_hash_of_float, own_hash_of_timestamps,
              null_as_nothing]  # fmt: skip


@pytest.mark.parametrize("mutate", OF_ONE_ROW)
async def test_a_mutant_of_the_hash_is_caught_by_the_seeded_corruption(
    world: World, monkeypatch: pytest.MonkeyPatch, mutate: Mutate
) -> None:
    kinds = ("numeric", "bigint", "double precision", "timestamp", "text")
    pairs = [pair for pair in await pairs_at(world.left, world.right) if pair[0] in kinds]
    table = draw(1, "integer", pairs, sound=20)
    await table.load(world.left, world.right)
    expected = table.expected
    assert wrongly(await found(world, await world.compare("t")), expected) == {}
    mutate(monkeypatch)
    missed = wrongly(await found(world, await world.compare("t")), expected)
    assert missed
    assert {now for now, _ in missed.values()} == {None}


async def test_a_collision_does_not_last_for_each_pass_has_its_own_seed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hashes of one bit, of which every second one is the same by chance."""
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
    await world.right.execute("UPDATE t SET v = 1")
    row = Hashing.row
    monkeypatch.setattr(Hashing, "row", lambda self, shape: f"(({row(self, shape)}) & 1)")

    async def until_it_is(differences: int) -> int:
        for _ in range(60):
            report = await world.compare("t")
            if report.differences == differences:
                return report.seed
        raise AssertionError(f"sixty passes, and none found {differences} differences")

    collided = await until_it_is(0)
    await until_it_is(1)
    monkeypatch.setattr(secrets, "randbits", lambda bits: collided)  # the mutant: one seed for all passes
    assert [(await world.compare("t")).differences for _ in range(10)] == [0] * 10


async def test_without_a_marker_what_the_stream_still_carries_would_be_a_difference(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    await world.left.execute("INSERT INTO t VALUES (2)")

    async def arrives() -> None:
        await world.right.execute("INSERT INTO t VALUES (2) ON CONFLICT DO NOTHING")

    assert (await world.compare("t")).missing == 1  # the mutant: nothing is awaited
    assert (await world.compare("t", settle=arrives)).differences == 0


async def test_rows_that_come_twice_are_summed_and_an_xor_would_lose_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a broken unique index: the same key twice, on both sides."""
    await world.both(DEFINITION)
    await world.right.execute("UPDATE t SET a = 'other' WHERE id = 5")
    left, right, shape, chosen = await opened(world)
    twice = replace(shape, relation="(SELECT * FROM public.t UNION ALL SELECT * FROM public.t)")

    async def differing() -> dict[int, int]:
        here = await Reader(left, twice, chosen).buckets(Region(), None, 16)
        there = await Reader(right, twice, chosen).buckets(Region(), None, 16)
        assert here.rows == there.rows == 4000
        return here.differing(there)

    try:
        assert len(await differing()) == 1
        monkeypatch.setattr(hashing, "TOTAL", "bit_xor({})")
        assert await differing() == {}
    finally:
        await left.close()
        await right.close()


async def test_without_confirmation_rows_in_flight_would_be_differences(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 50) n"
    )
    await world.right.execute("UPDATE t SET v = -1 WHERE id = 7")

    async def in_flight(**options: Any) -> tuple[int, int]:
        """Row 9 changes at the source before each look and arrives only after the last one."""
        await world.left.execute("UPDATE t SET v = v + 1 WHERE id = 9")
        looks = 0

        async def settle() -> None:
            nonlocal looks
            looks += 1
            if looks < 3:
                await world.left.execute("UPDATE t SET v = v + 1 WHERE id = 9")
            else:
                value = await world.left.fetchval("SELECT v FROM t WHERE id = 9")
                await world.right.execute("UPDATE t SET v = $1 WHERE id = 9", value)

        report = await world.compare("t", settle=settle, **options)
        return report.mismatched, report.unsettled

    assert await in_flight() == (1, 0)
    monkeypatch.setattr(confirm, "unchanged", lambda now, before: True)
    assert await in_flight() == (2, 0)
