"""Fixtures of streams."""

import itertools
from collections.abc import AsyncIterator

import pytest_asyncio

from cutover.postgres.databases import Database
from tests.streams.outbox_world import World, open_world

_numbers = itertools.count(1)


@pytest_asyncio.fixture
async def world(monolith_db: Database, service_db: Database) -> AsyncIterator[World]:
    """Two databases with the outbox's tables, not streaming yet."""
    async with open_world(monolith_db, service_db, f"svc{next(_numbers)}") as opened:
        yield opened


@pytest_asyncio.fixture
async def flowing(world: World) -> World:
    """The forward stream is started, without a copy; no relay runs."""
    await world.stream().start(copy=False)
    return world
