"""Rows that differ in every way, and repairs of them."""

from collections.abc import Sequence
from typing import Any

from cutover.control import conflicts as cases
from cutover.control import reports
from cutover.control.reports import Difference
from cutover.plan.models import Table
from cutover.postgres.identifiers import TableName
from cutover.reconcile import conflicts
from cutover.reconcile.conflicts import Resolution
from tests.reconcile.conftest import World, no_stream


async def differences(world: World, table: str = "t") -> list[Difference]:
    await world.compare(table)
    return await reports.open_differences(world.control, "m", "svc", table)


async def repair(world: World, rules: Table, found: Sequence[Difference], **options: Any) -> Resolution:
    direction = options.pop("direction", "forward")
    settle = options.pop("settle", no_stream)
    table = TableName("public", options.pop("table", "t"))
    return await conflicts.resolve(world.pair, direction, table, rules, found, world.control, settle, **options)


async def different(world: World) -> None:
    await world.both(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, n numeric, at timestamptz, "
        "doc jsonb, bin bytea, arr int[], twice numeric GENERATED ALWAYS AS (n * 2) STORED)"
    )
    await world.both(
        "INSERT INTO t (v, n, at, doc, bin, arr) SELECT 'v', 1.50, '2024-01-01', '{\"a\": 1.0}', '\\x00ff', '{1}' "
        "FROM generate_series(1, 20)"
    )
    await world.left.execute("UPDATE t SET v = NULL, n = 1.500, doc = '{\"a\": 1.00}', arr = '[0:0]={1}' WHERE id = 1")
    await world.left.execute("UPDATE t SET at = '2024-03-03 10:00:00.123456' WHERE id = 2")
    await world.right.execute("UPDATE t SET at = '2024-02-02', v = 'right' WHERE id = 3")
    await world.right.execute("UPDATE t SET v = 'tie' WHERE id = 4")
    await world.right.execute("DELETE FROM t WHERE id = 5")
    await world.left.execute("DELETE FROM t WHERE id = 6")


async def decide(world: World, key: str, decision: cases.Decision = "primary") -> int:
    opened = await cases.list_open(world.control, "m", "svc")
    (case,) = [one for one in opened if one.key_json == f'["{key}"]']
    await cases.decide(world.control, "m", case.id, "alice", decision)
    return case.id
