"""A control database that takes no writes: the monitor goes on, and what it finds reaches the run and the webhook."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError

from activities import models as m
from activities.errors import translated
from activities.watching import WatchActivities
from cutover.alerts.webhook import Webhook
from cutover.monitor import permanent
from cutover.postgres import fence
from cutover.postgres.databases import Database
from tests.monitor.conftest import Watched
from tests.monitor.test_watching import request
from tests.switch.conftest import TABLES, Work
from tests.waiting import until


async def set_read_only(database: Database, state: str) -> None:
    """For every session from now on; those that are open are ended."""
    async with database.session("psql") as connection:
        await connection.execute("SET default_transaction_read_only = off")
        name = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {state}")
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest_asyncio.fixture
async def read_only(watched: Watched, control_db: Database) -> AsyncIterator[None]:
    await set_read_only(control_db, "on")
    yield
    await set_read_only(control_db, "off")


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    async def post(_: Webhook, message_id: str, body: object) -> str:
        found.append(message_id)
        return ""

    monkeypatch.setattr(Webhook, "post", post)
    return found


async def test_a_fence_that_is_lifted_is_told_where_no_alert_can_be_kept(
    watched: Watched, work: Work, read_only: None, posted: list[str]
) -> None:
    await watched.on("service", fence.open_sql(TABLES))
    monitor = WatchActivities(work.context, Webhook("http://127.0.0.1:9"))

    async def found() -> bool:
        seen: m.Watched = await work.run(monitor.watch, request(work))
        return "writable-side" in {one.key.split("/")[1] for one in seen.findings}

    await until(found, "the pool has other connections, and the second writable side is seen")
    assert any("writable-side" in one for one in posted)


async def test_a_look_that_fails_in_a_way_nobody_foresaw_is_a_finding(
    watched: Watched, work: Work, posted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise asyncpg.DiskFullError("could not extend file: a row")

    monkeypatch.setattr(permanent, "look", full)
    monitor = WatchActivities(work.context, Webhook("http://127.0.0.1:9"))
    (found,) = (await work.run(monitor.watch, request(work))).findings
    assert "unreadable" in found.key
    assert "DiskFullError, SQLSTATE 53100" in found.text
    assert "a row" not in found.text


@pytest.mark.parametrize(
    "error", [asyncpg.ReadOnlySQLTransactionError, asyncpg.DiskFullError, asyncpg.OutOfMemoryError]
)
def test_a_database_without_room_or_writes_is_waited_out(error: type[asyncpg.PostgresError]) -> None:
    with pytest.raises(ApplicationError) as told, translated():
        raise error("a row")
    assert told.value.type == "NotYet"
    assert not told.value.non_retryable
    assert "a row" not in str(told.value)
