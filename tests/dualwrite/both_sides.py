"""A service with `stream: outbox` on both sides: its plan registered, and pools that follow its route."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from cutover import pairs
from cutover.control import plans
from cutover.control.database import Control
from cutover.dualwrite import RoutedPool, ServicePool
from cutover.flags import store
from cutover.plan.models import Plan
from cutover.postgres import epoch, fence, two_phase
from cutover.postgres.databases import Database, Pair, Side, other
from cutover.streams.outbox import OutboxStream, Relay
from cutover.streams.outbox.janitor import Janitor
from tests.waiting import until

MIGRATION = "ai-trader"
SERVICE = "trading_engine"
DDL = """
CREATE TABLE trades (id int PRIMARY KEY, name text UNIQUE, note text, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE positions (account text NOT NULL, symbol text NOT NULL, amount numeric(20, 8) NOT NULL,
    PRIMARY KEY (account, symbol));
"""
CONTENTS = ("SELECT * FROM trades ORDER BY id", "SELECT * FROM positions ORDER BY 1, 2")


def plan(**service: object) -> Plan:
    """The plan of the one service, with `stream: outbox` unless said otherwise."""
    rules = {"database": "service_db", "stream": "outbox", "tables": {"trades": {}, "positions": {}}, **service}
    return Plan.model_validate(
        {"migration": MIGRATION, "monolith": {"database": "monolith"}, "services": {SERVICE: rules}}
    )


@dataclass
class Both:
    """Both sides, with an administrator's hand on each."""

    control: Control
    control_db: Database
    databases: dict[Side, Database]
    pair: Pair
    stack: AsyncExitStack

    async def open(self, **options: Any) -> RoutedPool:
        databases = options.pop("databases", self.databases)
        options = {"patience": 3.0, "max_size": 5, **options}
        pool = await RoutedPool.open(
            migration=MIGRATION,
            services=[SERVICE],
            control=self.control_db,
            database={SERVICE: databases},
            application="test",
            **options,
        )
        self.stack.push_async_callback(pool.close)
        return pool

    async def service(self, level: str | None = "strong", **options: Any) -> ServicePool:
        """A pool of its own, without a janitor that would take the test's work away."""
        pool = await self.open(levels={SERVICE: level} if level else None, **options)
        for task in pool._following.outboxes[SERVICE].tasks:
            if task.get_name() == "cutover-janitor":
                task.cancel()
        return pool.service(SERVICE)

    def janitor(self) -> Janitor:
        return Janitor(self.pair, self.control)

    async def on(self, side: Side, sql: str, *args: object) -> Any:
        async with self.databases[side].session("test-admin") as connection:
            return await connection.fetchval(sql, *args)

    async def put_behind_the_fence(self, sql: str) -> None:
        """Writes at the service's side as nobody should."""
        async with self.databases["service"].session("test-admin") as connection:
            await connection.execute("SET cutover.applier = 'on'")
            await connection.execute(sql)

    async def contents(self, side: Side) -> list[list[tuple[object, ...]]]:
        async with self.databases[side].session("test-admin") as connection:
            return [[tuple(row) for row in await connection.fetch(sql)] for sql in CONTENTS]

    async def require_equal(self) -> None:
        assert await self.contents("service") == await self.contents("monolith"), "the sides differ"

    async def ids(self, side: Side) -> list[object]:
        return [row[0] for row in (await self.contents(side))[0]]

    async def branches(self, side: Side = "service") -> list[str]:
        async with self.databases[side].session("test-admin") as connection:
            return [branch.gid for branch in await two_phase.branches(connection, SERVICE)]

    async def start(self) -> None:
        """Starts the forward stream, without a copy."""
        await OutboxStream(self.pair, "forward").start(copy=False)

    async def drained(self) -> None:
        stream = OutboxStream(self.pair, "forward")
        async with self.relay():
            await stream.await_marker(await stream.put_marker(), 20)

    @asynccontextmanager
    async def relay(self) -> AsyncIterator[None]:
        running = asyncio.create_task(Relay(self.pair, "forward").run())
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def waiting_for_a_lock(self, side: Side) -> bool:
        """Whether a session there waits for a lock."""
        return bool(
            await self.on(
                side,
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()",
            )
        )

    async def switch_to(self, side: Side, number: int, pause: str | None = None) -> None:
        """What a switch does to the databases and the flags; the reverse stream is made first."""
        await OutboxStream(self.pair, "reverse" if side == "service" else "forward").start(copy=False)
        for place, closed in ((other(side), True), (side, False)):
            async with self.databases[place].session("test-admin") as connection, connection.transaction():
                members = await fence.relations(connection, self.pair.tables)
                await fence.ensure(connection, SERVICE, members, closed=closed)
                await epoch.set_epoch(connection, SERVICE, side, number)
        await store.flip(
            self.control, MIGRATION, SERVICE, primary_side=side, epoch=number, actor="test", pause_id=pause
        )


@asynccontextmanager
async def open_both(
    control: Control, control_db: Database, monolith: Database, service: Database, chosen: Plan | None = None
) -> AsyncIterator[Both]:
    """Tables on both sides, the service's fenced, the forward stream started without a copy; no relay runs."""
    chosen = chosen or plan()
    databases: dict[Side, Database] = {"monolith": monolith, "service": service}
    pair = pairs.pair(chosen, SERVICE, lambda name: monolith if name == "monolith" else service)
    await plans.register(control, chosen, "test")
    await store.ensure(control, MIGRATION, SERVICE)
    for side, database in databases.items():
        async with database.session("test-admin") as connection:
            await connection.execute(DDL)
            await epoch.install(connection, SERVICE, side)
            await fence.install(connection, SERVICE, pair.tables, closed=side == "service")
            if side == "service" and chosen.service(SERVICE).stream != "logical":  # whose first copy would meet it
                await fence.make_always(connection, pair.tables)
    async with AsyncExitStack() as stack:
        yield Both(control, control_db, databases, pair, stack)


async def add(connection: asyncpg.pool.PoolConnectionProxy, number: int, name: str | None = None) -> None:
    await connection.execute("INSERT INTO trades (id, name, note) VALUES ($1, $2, 'a')", number, name or f"n{number}")


async def until_true(what: str, condition: Any, seconds: float = 20.0) -> None:
    await until(condition, what, seconds)
