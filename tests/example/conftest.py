"""The example's monolith, filled and ready."""

import pytest_asyncio

from cutover.postgres.databases import Database
from examples.ai_trader.generate import fill
from examples.ai_trader.prepare import create_monolith


@pytest_asyncio.fixture
async def filled(monolith_db: Database) -> Database:
    """A monolith with the example's schema and 5,000 rows."""
    await create_monolith(monolith_db)
    await fill(monolith_db, 5_000, 1, lambda table, done, total: None)
    return monolith_db
