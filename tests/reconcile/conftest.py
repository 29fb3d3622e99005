"""A pair of databases with the same tables, and ways to run a pass over them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest_asyncio

from cutover.control import reports
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.plan.models import Reconcile, Table
from cutover.postgres.databases import Database, Direction, Pair
from cutover.postgres.identifiers import TableName, quote, quote_literal
from cutover.reconcile.changed import ChangedKeys
from cutover.reconcile.passes import Job, Progress, run_pass

_names = itertools.count(1)


async def no_stream() -> None:
    """`settle` where nothing flows: both sides stand still."""


@dataclass
class World:
    """Both databases with an open session each, and the control database."""

    pair: Pair
    control: Control
    left: asyncpg.Connection
    right: asyncpg.Connection
    rules: Table

    async def both(self, sql: str, *args: Any) -> None:
        for connection in (self.left, self.right):
            await connection.execute(sql, *args)

    def with_tables(self, *tables: str) -> "World":
        named = tuple(TableName("public", t) for t in tables)
        self.pair = replace(self.pair, tables=named)
        return self

    def job(self, table: str, direction: Direction = "forward", **options: Any) -> Job:
        options = {"control": self.control, "plan_hash": "h", "settle": no_stream, **options}
        return Job(self.pair, direction, TableName("public", table), self.rules, **options)

    async def compare(
        self, table: str, direction: Direction = "forward", progress: Callable[[Progress], Any] | None = None,
        orphans: int = 0, **options: Any,
    ) -> TableReport:  # fmt: skip
        async def told(seen: Progress) -> None:
            if progress:
                progress(seen)

        return await run_pass(self.job(table, direction, **options), told, orphans)

    async def found(self, report: TableReport) -> dict[str, str]:
        """Differing keys of the table's newest report by kind; composite keys joined with `|`."""
        differences = await reports.open_differences(self.control, "m", "svc", report.table, limit=100_000)
        return {"|".join(key_of(d.key_json)): d.kind for d in differences}


async def found_columns(world: World, report: TableReport) -> dict[str, tuple[str, ...]]:
    """Mismatched keys of the table's newest report with the columns that differ."""
    differences = await reports.open_differences(world.control, "m", "svc", report.table, limit=100_000)
    return {"|".join(key_of(d.key_json)): d.columns for d in differences if d.kind == "mismatched"}


def key_of(text: str) -> tuple[str, ...]:
    from cutover.postgres.keys import key_from_json

    return key_from_json(text)


@pytest_asyncio.fixture
async def world(monolith_db: Database, service_db: Database, control: Control) -> AsyncIterator[World]:
    pair = Pair("m", "svc", monolith_db, service_db, ())
    rules = Table(reconcile=Reconcile(every=timedelta(seconds=5), max_lag=timedelta(seconds=5)))
    async with monolith_db.session("test") as left, service_db.session("test") as right:
        yield World(pair, control, left, right, rules)


@dataclass
class LiveStream:
    """A logical subscription from the left to the right database, with markers."""

    world: World
    name: str

    async def settle(self) -> None:
        marker = f"marker {next(_names)}"
        async with self.world.pair.monolith.session("marker") as at_source:
            await at_source.execute("INSERT INTO cutover.marker_svc VALUES ($1)", marker)
        async with self.world.pair.target.session("marker") as at_sink:
            await until(
                lambda: at_sink.fetchval("SELECT EXISTS (SELECT FROM cutover.marker_svc WHERE id = $1)", marker)
            )


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Polls until the condition holds; fails after the deadline."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition did not come to hold in time"
        await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def live(world: World) -> AsyncIterator[Callable[..., Any]]:
    """`await live("t", "u", copy=True)`: starts a stream of these tables."""
    started: list[str] = []

    async def start(*tables: str, copy: bool = True) -> LiveStream:
        world.with_tables(*tables)
        await world.both("CREATE SCHEMA IF NOT EXISTS cutover; CREATE TABLE cutover.marker_svc (id text PRIMARY KEY)")
        listed = ", ".join([*(f"public.{quote(t)}" for t in tables), "cutover.marker_svc"])
        await world.left.execute(f"CREATE PUBLICATION svc_pub FOR TABLE {listed}")
        name = f"reconcile_sub_{next(_names)}"
        await world.right.execute(
            f"CREATE SUBSCRIPTION {name} CONNECTION {quote_literal(world.pair.monolith.dsn)} "
            f"PUBLICATION svc_pub WITH (origin = none, copy_data = {copy})"
        )
        started.append(name)
        await until(
            lambda: world.right.fetchval("SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"), seconds=60
        )
        return LiveStream(world, name)

    yield start
    for name in started:
        await world.right.execute(f"DROP SUBSCRIPTION {name}")


@pytest_asyncio.fixture
async def changed(world: World) -> AsyncIterator[Callable[..., Any]]:
    """`await changed("t")`: publication and slot for these tables; nothing flows between the sides."""
    opened: list[ChangedKeys] = []

    async def prepare(*tables: str) -> ChangedKeys:
        world.with_tables(*tables)
        await world.left.execute("CREATE SCHEMA cutover; CREATE TABLE cutover.marker_svc (id text PRIMARY KEY)")
        listed = ", ".join(f"public.{quote(t)}" for t in tables)
        await world.left.execute(
            f"CREATE PUBLICATION svc_pub FOR TABLE {listed}, cutover.marker_svc "
            "WITH (publish_via_partition_root = true)"
        )
        followed = ChangedKeys(world.pair, "forward", world.control)
        await followed.prepare()
        opened.append(await followed.__aenter__())
        return followed

    yield prepare
    for followed in opened:
        await followed.__aexit__()
