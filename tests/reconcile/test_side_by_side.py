"""Rows of both sides beside each other: composite keys, what is not compared, values that stay in the databases."""

from dataclasses import replace
from typing import Any

import pytest

from cutover.errors import ConfigError, GateClosed
from cutover.plan.models import Compare
from cutover.postgres import values
from cutover.postgres.identifiers import TableName
from cutover.reconcile.side_by_side import RowPair, side_by_side
from tests.reconcile.conftest import World

T = TableName("public", "t")


async def look(world: World, *keys: tuple[str, ...], show: tuple[str, ...] = (), **options: Any) -> list[RowPair]:
    return await side_by_side(world.pair, options.pop("direction", "forward"), T, list(keys), show=show, **options)


async def test_a_composite_key_names_its_row_and_is_shown(world: World) -> None:
    await world.both('CREATE TABLE t (a int, "b c" text, v text, PRIMARY KEY (a, "b c"))')
    await world.both("INSERT INTO t VALUES (1, 'x', 'one'), (1, 'y', 'two')")
    await world.right.execute("UPDATE t SET v = 'three' WHERE \"b c\" = 'y'")
    first, second, third = await look(world, ("1", "x"), ("1", "y"), ("2", "x"))
    assert (first.differs, second.differs, third.differs) == (False, True, False)
    assert [(c.name, c.differs) for c in second.columns] == [("a", False), ("b c", False), ("v", True)]
    assert second.columns[1].source == values.Value("y", 1, False)
    with pytest.raises(ConfigError, match=r"the key has 2 columns \(a, b c\) and 1 values were given"):
        await look(world, ("1",))


async def test_masked_values_never_leave_the_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, name text, pin bytea, doc jsonb, paid boolean)")
    await world.both("INSERT INTO t VALUES (1, 'Ada Lovelace', '\\x5ec2e7', '{\"iban\": \"DE02\"}', true)")
    received: list[Any] = []
    made = values.Value.__init__

    def noted(self: values.Value, *arguments: Any) -> None:
        received.extend(arguments)
        made(self, *arguments)

    monkeypatch.setattr(values.Value, "__init__", noted)
    (row,) = await look(world, ("1",), show=("paid",))
    assert {c.name: c.source and (c.source.masked, c.source.length) for c in row.columns} == {
        "id": (False, 1), "name": (True, 12), "pin": (True, 8), "doc": (True, 16), "paid": (False, 1),
    }  # fmt: skip
    assert "t" in received
    assert not {"Ada Lovelace", "\\x5ec2e7", '{"iban": "DE02"}'} & set(map(str, received))
    digests = {c.name: (c.source and c.source.text, c.target and c.target.text) for c in row.columns}
    assert digests["name"][0] == digests["name"][1] != digests["doc"][0]


async def test_null_is_told_from_the_empty_text_and_long_values_are_cut(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    await world.left.execute("INSERT INTO t VALUES (1, NULL, repeat('x', 5000))")
    await world.right.execute("INSERT INTO t VALUES (1, '', repeat('x', 5000))")
    (row,) = await look(world, ("1",), show=("b",))
    a, b = row.columns[1:]
    assert (a.source, a.target and a.target.length, a.differs) == (values.Value(None, None, True), 0, True)
    assert (b.differs, b.source and (b.source.length, b.source.cut, len(b.source.text or ""))) == (
        False, (5000, True, values.SHOWN),
    )  # fmt: skip


async def test_what_the_plan_passes_over_does_not_count_and_what_it_excludes_is_named(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, n numeric, seen timestamptz, twice int)")
    await world.left.execute("INSERT INTO t VALUES (1, 1.50, now(), 1)")
    await world.right.execute("INSERT INTO t VALUES (1, 1.5, now() - interval '1 day', 1)")
    (row,) = await look(world, ("1",))
    assert [c.name for c in row.columns if c.differs] == ["n", "seen"]
    rules = Compare.model_validate({"exclude": ["seen"], "equal": {"n": "number"}})
    world.pair = replace(world.pair, compare={T: rules})
    (row,) = await look(world, ("1",))
    assert not row.differs
    assert [(c.name, c.left_out) for c in row.columns if c.differs is None] == [("seen", "excluded by the plan")]


async def test_in_reverse_the_service_is_the_source(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    await world.right.execute("INSERT INTO t VALUES (1, 1)")
    (forward,), (reverse,) = await look(world, ("1",)), await look(world, ("1",), direction="reverse")
    assert (forward.in_source, forward.in_target) == (False, True) == (reverse.in_target, reverse.in_source)


async def test_a_table_without_a_key_has_no_two_rows(world: World) -> None:
    await world.both("CREATE TABLE t (v int)")
    with pytest.raises(GateClosed, match="no two rows to set side by side"):
        await look(world, ("1",))
