"""Which index names a row: the primary key wherever there is one, whatever other indexes the table has."""

from collections.abc import Callable
from typing import Any

import pytest

from cutover.errors import GateClosed
from cutover.postgres import compare
from cutover.postgres.identifiers import TableName
from cutover.postgres.shapes import shapes
from tests.reconcile.conftest import World

T = TableName("public", "t")

#: Unique indexes over the primary key's own columns, whose names sort behind `a_code`, that of another key.
_BESIDE = (
    "CREATE UNIQUE INDEX z ON t (id)",
    "ALTER TABLE t ADD UNIQUE (id) INCLUDE (v)",
    "CREATE UNIQUE INDEX b ON t (id); CREATE UNIQUE INDEX z ON t (id) INCLUDE (v); CREATE UNIQUE INDEX y ON t (v, id)",
)


async def made(world: World, beside: str) -> None:
    await world.both(
        "CREATE TABLE t (id int PRIMARY KEY, code int NOT NULL, v int NOT NULL); "
        f"CREATE UNIQUE INDEX a_code ON t (code); {beside}"
    )
    await world.both("INSERT INTO t SELECT n, n + 1000, 0 FROM generate_series(1, 10) AS n")


@pytest.mark.parametrize("beside", _BESIDE)
async def test_a_row_is_named_by_the_primary_key_though_other_indexes_have_its_columns_too(
    world: World, beside: str
) -> None:
    await made(world, beside)
    settings: dict[str, Any] = dict(compare.READ_SETTINGS)
    left = await world.pair.monolith.connect("test", **settings)
    right = await world.pair.target.connect("test", **settings)
    try:
        for shape in await shapes(left, right, T, world.pair.passes_over(T)):
            assert ([k.name for k in shape.key], shape.keyed_by) == (["id"], "the primary key")
    finally:
        await left.close()
        await right.close()


@pytest.mark.parametrize("beside", _BESIDE)
async def test_a_changed_key_is_looked_up_under_the_primary_key_and_its_difference_is_found(
    world: World, changed: Callable[..., Any], beside: str
) -> None:
    await made(world, beside)
    followed = await changed("t")
    assert await followed.verified(await world.compare("t"))
    await world.left.execute("UPDATE t SET v = 1 WHERE id = 3")
    verdict = await followed.verify()
    assert (verdict.equal, verdict.keys, verdict.differing) == (False, 1, {T: 1})
    await world.right.execute("UPDATE t SET v = 1 WHERE id = 3")
    assert (await followed.verify()).equal


async def test_changes_are_not_followed_where_the_rows_are_compared_by_another_key(
    world: World, changed: Callable[..., Any]
) -> None:
    """A partitioned table's primary key is none yet while a partition is without its part."""
    await world.both(
        "CREATE TABLE t (k int NOT NULL, code int NOT NULL, v int, UNIQUE (code, k)) PARTITION BY LIST (k); "
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); ALTER TABLE ONLY t ADD PRIMARY KEY (k)"
    )
    with pytest.raises(GateClosed, match=r"t: .*primary key \(k\).*unique index public\.t_code_k_key"):
        await changed("t")
