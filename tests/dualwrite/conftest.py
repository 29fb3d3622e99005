"""A service with one table on both sides, fenced as in a migration, and pools that follow its route."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest_asyncio

from cutover.control.database import Control
from cutover.dualwrite import RoutedPool, ServicePool
from cutover.flags import store
from cutover.postgres import epoch, fence, own_schema
from cutover.postgres.databases import Database, Side
from cutover.postgres.identifiers import TableName
from tests.dualwrite.both_sides import Both, open_both, plan

MIGRATION = "ai-trader"
SERVICE = "trading_engine"
TRADES = (TableName("public", "trades"),)


@dataclass
class World:
    """Both sides of one service, its route, and a hand on each."""

    control: Control
    control_db: Database
    databases: dict[Side, Database]
    open: Callable[..., Coroutine[Any, Any, RoutedPool]]

    async def on(self, side: Side, sql: str, *args: object) -> Any:
        """Runs one statement straight on a side, as an administrator."""
        async with self.databases[side].session("test") as connection:
            return await connection.fetchval(sql, *args)

    async def ids(self, side: Side) -> list[int]:
        async with self.databases[side].session("test") as connection:
            return [row["id"] for row in await connection.fetch("SELECT id FROM trades ORDER BY id")]

    async def set_fence(self, side: Side, *, closed: bool, primary: Side, at: int) -> None:
        """What the switch does on one side, in one transaction."""
        async with self.databases[side].session("test") as connection, connection.transaction():
            await connection.execute(fence.lock_sql(TRADES))
            await connection.execute(fence.close_sql(TRADES, always=True) if closed else fence.open_sql(TRADES))
            await epoch.set_epoch(connection, SERVICE, primary, at)

    async def announce(self, pause: str = "p1", limit: float = 5.0) -> None:
        await store.announce_pause(self.control, MIGRATION, SERVICE, pause, timedelta(seconds=limit))

    async def switch_databases(self, to: Side, at: int) -> None:
        """Fence and unfence, without a word to the flags."""
        old: Side = "monolith" if to == "service" else "service"
        await self.set_fence(old, closed=True, primary=to, at=at)
        await self.set_fence(to, closed=False, primary=to, at=at)

    async def flip(self, to: Side, at: int, pause: str | None = "p1") -> None:
        await store.flip(self.control, MIGRATION, SERVICE, primary_side=to, epoch=at, actor="test", pause_id=pause)

    async def clean_up(self) -> None:
        """What cleanup does to a service that was switched: nothing of ours is left at its side, and no flag."""
        await self.switch_databases("service", 1)
        await self.flip("service", 1, pause=None)
        async with self.databases["service"].session("test") as connection:
            await fence.remove(connection, TRADES)
            await epoch.remove(connection, SERVICE)
            assert await own_schema.drop_if_unused(connection) == ""
        await store.drop(self.control, MIGRATION, SERVICE, actor="cleanup")


@pytest_asyncio.fixture
async def world(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> AsyncIterator[World]:
    databases: dict[Side, Database] = {"monolith": monolith_db, "service": service_db}
    sides: tuple[Side, Side] = ("monolith", "service")
    for side in sides:
        async with databases[side].session("test") as connection:
            await connection.execute("CREATE TABLE trades (id int PRIMARY KEY, side text DEFAULT current_database())")
            await epoch.install(connection, SERVICE, side)
            await fence.install(connection, SERVICE, TRADES, closed=side == "service")
    await store.ensure(control, MIGRATION, SERVICE)
    async with AsyncExitStack() as pools:

        async def open_pool(**options: Any) -> RoutedPool:
            options = {"patience": 5.0, "max_size": 5, **options}
            pool = await RoutedPool.open(
                migration=MIGRATION,
                services=[SERVICE],
                control=options.pop("control", control_db),
                database={SERVICE: databases},
                application="test",
                **options,
            )
            pools.push_async_callback(pool.close)
            return pool

        yield World(control, control_db, databases, open_pool)


@pytest_asyncio.fixture
async def both(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> AsyncIterator[Both]:
    """A service with `stream: outbox` whose stream is started; no relay runs."""
    async with open_both(control, control_db, monolith_db, service_db) as opened:
        await opened.start()
        yield opened


@pytest_asyncio.fixture
async def strong(
    control: Control, control_db: Database, monolith_db: Database, service_db: Database
) -> AsyncIterator[Both]:
    """A service whose plan says strong; its stream is started, and no relay runs."""
    chosen = plan(consistency="strong")
    async with open_both(control, control_db, monolith_db, service_db, chosen) as opened:
        await opened.start()
        yield opened


@pytest_asyncio.fixture
async def pool(world: World) -> RoutedPool:
    return await world.open()


@pytest_asyncio.fixture
async def trading(pool: RoutedPool) -> ServicePool:
    return pool.service(SERVICE)


async def insert(trading: ServicePool, number: int) -> None:
    await trading.execute("INSERT INTO trades (id) VALUES ($1)", number, table="trades")


async def in_transaction(connection: asyncpg.pool.PoolConnectionProxy, number: int) -> None:
    await connection.execute("INSERT INTO trades (id) VALUES ($1)", number)
