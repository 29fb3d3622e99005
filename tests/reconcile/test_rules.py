"""What the plan lets a comparison pass over: in that column alone, in every place that compares."""

from dataclasses import replace

import pytest

from cutover.control import reports
from cutover.errors import GateClosed
from cutover.plan.models import Compare, EqualRule
from cutover.postgres.identifiers import TableName
from cutover.reconcile.conflicts import resolve
from tests.reconcile.conftest import World, found_columns, no_stream

#: Rule, type, two values that it makes equal, and one that stays a difference.
RULES: list[tuple[EqualRule, str, str | None, str | None, str]] = [
    ("number", "numeric", "1.50", "1.5", "1.51"),
    ("number", "numeric(9,4)", "0", "0", "0.0001"),
    ("number", "double precision", "0", "-0", "1e-300"),
    ("number", "real", "0", "-0", "1e-30"),
    ("number", "jsonb", '{"a": [1.50, "1.50"], "b.0": 2.00}', '{"a": [1.5, "1.50"], "b.0": 2}', '{"a": 1.5}'),
    ("number", "jsonb", '"1.50"', '"1.50"', '"1.5"'),
    ("number", "jsonb", '["\\"1.50", 10, 0.0]', '["\\"1.50", 10, 0]', '["\\"1.5", 10, 0]'),
    ("case", "text", "Straße", "straße", "strasse"),
    ("case", "public.citext", "ABC", "abc", "abd"),
    ("empty", "varchar(5)", None, "", " "),
    ("millisecond", "timestamptz", "2024-01-01 00:00:00.123456+00", "2024-01-01 00:00:00.123+00", "2024-01-01 00:00Z"),
    ("second", "timestamp", "2024-01-01 00:00:01.9", "2024-01-01 00:00:01", "2024-01-01 00:00:02"),
    ("bounds", "int[]", "[0:1]={1,2}", "{1,2}", "{2,1}"),
    ("bounds", "text[]", '[2:2][-1:0]={{a,"[0:1]="}}', '{{a,"[0:1]="}}', '{a,"[0:1]="}'),
]


async def fill(world: World) -> dict[str, EqualRule]:
    columns = ", ".join(f"c{n} {kind}" for n, (_, kind, *_) in enumerate(RULES))
    await world.both(f"CREATE EXTENSION citext; CREATE TABLE t (id int PRIMARY KEY, {columns}, other text)")
    for n, (_, kind, first, second, third) in enumerate(RULES):
        insert = f"INSERT INTO t (id, c{n}) VALUES ($1, $2::text::{kind})"
        for connection, values in ((world.left, (first, first)), (world.right, (second, third))):
            await connection.execute(insert, n, values[0])
            await connection.execute(insert, 100 + n, values[1])
    return {f"c{n}": rule for n, (rule, *_) in enumerate(RULES)}


def with_rules(world: World, **rules: object) -> None:
    world.pair = replace(world.pair, compare={TableName("public", "t"): Compare.model_validate(rules)})


async def test_what_a_rule_counts_as_equal_is_passed_over_and_nothing_else(world: World) -> None:
    equal = await fill(world)
    strict = await found_columns(world, await world.compare("t"))
    alike = {n for n, (_, _, first, second, _) in enumerate(RULES) if first == second}
    assert strict.keys() == {str(n) for n in range(len(RULES)) if n not in alike} | {
        str(100 + n) for n in range(len(RULES))
    }
    with_rules(world, equal=equal)
    assert await found_columns(world, await world.compare("t")) == {str(100 + n): (f"c{n}",) for n in range(len(RULES))}


async def test_excluded_and_generated_columns_are_left_out_and_the_report_says_so(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int, seen timestamptz)")
    await world.left.execute("ALTER TABLE t ADD twice int GENERATED ALWAYS AS (v * 2) STORED, ADD only_here int")
    await world.right.execute("ALTER TABLE t ADD twice int GENERATED ALWAYS AS (v * 3) STORED")
    await world.both("INSERT INTO t VALUES (1, 1, clock_timestamp()), (2, 2, clock_timestamp())")
    with_rules(world, exclude=["seen", "only_here"])
    await world.right.execute("UPDATE t SET v = 3 WHERE id = 2")
    report = await world.compare("t")
    assert await found_columns(world, report) == {"2": ("v",)}
    assert report.left_out == [
        "only_here (excluded by the plan)", "seen (excluded by the plan)", "twice (generated)"
    ]  # fmt: skip
    stored = await reports.latest(world.control, "m", "svc", "t")
    assert stored is not None
    assert (stored.left_out, stored.bytes_moved > 0) == (report.left_out, True)


async def test_a_repair_leaves_excluded_columns_alone_and_brings_them_with_new_rows(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v numeric, seen int, pad bpchar)")
    await world.left.execute("INSERT INTO t VALUES (1, 1.50, 10, 'x '), (2, 2, 20, 'y '), (3, 3, 30, 'z ')")
    await world.right.execute("INSERT INTO t VALUES (1, 1.5, 11, 'x '), (2, 9, 22, 'y')")
    with_rules(world, exclude=["seen"], equal={"v": "number"})
    report = await world.compare("t")
    assert await world.found(report) == {"2": "mismatched", "3": "missing"}
    differences = await reports.open_differences(world.control, "m", "svc", "t")
    done = await resolve(
        world.pair, "forward", TableName("public", "t"), world.rules, differences, world.control, no_stream
    )
    assert done.repaired == 2
    rows = await world.right.fetch("SELECT id, v::text, seen, textin(bpcharout(pad)) FROM t ORDER BY id")
    assert [tuple(r) for r in rows] == [(1, "1.5", 11, "x "), (2, "2", 22, "y "), (3, "3", 30, "z ")]
    assert (await world.compare("t")).differences == 0


WRONG: list[tuple[object, str]] = [
    ({"equal": {"v": "case"}}, r"column 'v' is integer: the plan's rule `equal: case` is for text"),
    ({"equal": {"gone": "case"}}, r"table t has no column 'gone'"),
    ({"exclude": ["gone"]}, r"table t has no column 'gone'"),
    ({"exclude": ["id"]}, r"column 'id' is part of the key"),
    ({"equal": {"id": "number"}}, r"column 'id'"),
]


async def test_rules_that_do_not_fit_the_table_close_the_gate(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, v int)")
    for rules, message in WRONG:
        world.pair = replace(world.pair, compare={TableName("public", "t"): Compare.model_validate(rules)})
        with pytest.raises(GateClosed, match=message):
            await world.compare("t")
