"""Fixtures for all tests: real servers, fresh databases."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cutover.devstack.cluster import Cluster
from cutover.postgres.databases import Database
from tests.servers import Clusters, create_database, drop_database, run_clusters

if TYPE_CHECKING:
    from cutover.control.database import Control

FreshDatabase = Callable[..., Awaitable[Database]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none of them is left alone on one core at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Two real PostgreSQL clusters, `monolith` and `services`."""
    with run_clusters() as running:
        yield running


@pytest_asyncio.fixture
async def fresh_database(clusters: Clusters) -> AsyncIterator[FreshDatabase]:
    """`await fresh_database(clusters.services, "analytics_db")`: an empty database, dropped at the test's end."""
    made: list[tuple[Cluster, Database]] = []

    async def create(cluster: Cluster, name: str, template: Database | None = None) -> Database:
        database = await create_database(cluster, name, template)
        made.append((cluster, database))
        return database

    yield create
    for cluster, database in reversed(made):
        await drop_database(cluster, database)


@pytest_asyncio.fixture
async def monolith_db(clusters: Clusters, fresh_database: FreshDatabase) -> Database:
    """A fresh empty database on the monolith's cluster."""
    return await fresh_database(clusters.monolith, "monolith")


@pytest_asyncio.fixture
async def service_db(clusters: Clusters, fresh_database: FreshDatabase) -> Database:
    """A fresh empty database on the services' cluster."""
    return await fresh_database(clusters.services, "service_db")


@pytest_asyncio.fixture(scope="session")
async def control_template(clusters: Clusters) -> Database:
    """A migrated control database that nobody writes: copying it takes half as long as migrating."""
    from cutover.control.database import Control

    template = await create_database(clusters.services, "control_template")
    opened = await Control.open(template)
    try:
        await opened.migrate()
    finally:
        await opened.close()
    return template


@pytest_asyncio.fixture
async def control_db(clusters: Clusters, fresh_database: FreshDatabase, control_template: Database) -> Database:
    """A fresh control database, migrated, on the services' cluster as in the development stack."""
    return await fresh_database(clusters.services, "control", control_template)


@pytest_asyncio.fixture
async def control(control_db: Database) -> AsyncIterator["Control"]:
    """A migrated control database."""
    from cutover.control.database import Control

    opened = await Control.open(control_db)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture(scope="session")
def temporal_cli() -> Path:
    """The Temporal binary, found (or fetched) as `cutover dev` does it."""
    from cutover.devstack.temporal import ensure

    return ensure()
