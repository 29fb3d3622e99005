"""The activities of an outbox service on real servers: relays until they are cancelled, the first copy beside them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities import relaying
from activities.context import Context
from activities.relaying import RelayActivities
from activities.replication import ReplicationActivities
from cutover.control import plans
from cutover.control.database import Control
from cutover.devstack.cluster import free_port
from cutover.pairs import pair
from cutover.plan.dsn import variable
from cutover.plan.load import load_text
from cutover.postgres import epoch, fence
from cutover.postgres.databases import Database
from cutover.settings import Settings
from cutover.streams.outbox import OutboxStream
from tests.waiting import until

PLAN = """
migration: {migration}
monolith: {{database: monolith}}
services:
  {service}:
    database: service_db
    stream: outbox
    consistency: best_effort
    truncate: refuse
    tables: {{trades: {{}}}}
"""


@asynccontextmanager
async def at_work(relays: RelayActivities, ref: m.Ref) -> AsyncIterator[None]:
    """The relay activity, cancelled at the block's end as a run does."""
    environment = ActivityEnvironment()
    running = asyncio.ensure_future(environment.run(relays.relay, ref))
    try:
        yield
        assert not running.done(), running
    finally:
        environment.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_rows_are_copied_and_carried_by_the_plans_level_until_the_relays_are_cancelled(
    monolith_db: Database, service_db: Database, control: Control
) -> None:
    service = f"s{uuid4().hex[:8]}"
    plan = load_text(PLAN.format(migration=f"m-{service}", service=service))
    await plans.register(control, plan, "test")
    settings = Settings({variable("monolith"): monolith_db.dsn, variable("service_db"): service_db.dsn})
    both = pair(plan, service, settings.database)
    for side in ("monolith", "service"):
        async with both.at(side).session() as connection:
            await connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, note text)")
            await epoch.install(connection, service, side)
            await fence.install(connection, service, both.tables, closed=side == "service")
    context = Context(settings, control)
    ref = m.Ref(migration=plan.migration, plan_hash=plan.hash, service=service)
    replication, relays = ReplicationActivities(context), RelayActivities(context)
    environment = ActivityEnvironment()
    stream = await context.stream(ref, "forward")
    assert isinstance(stream, OutboxStream)
    async with both.monolith.session() as source, both.target.session() as sink:
        await source.execute("INSERT INTO trades SELECT n, 'before' FROM generate_series(1, 1000) n")
        try:
            await environment.run(replication.start_stream, ref)
            async with at_work(relays, ref):
                assert not (await environment.run(replication.backfill_progress, ref)).complete
                await environment.run(relays.copy_rows, ref)
                await until(stream.ready, "the copy is complete")
                assert (await environment.run(replication.backfill_progress, ref)).rows == 1000
                assert await sink.fetchval("SELECT best_effort FROM cutover.outbox_stream")
                with pytest.raises(Exception, match="refused"):
                    await source.execute("TRUNCATE trades")
                await source.execute("UPDATE trades SET note = 'after' WHERE id <= 10")
                await stream.await_marker(await stream.put_marker(), 20)
                assert await sink.fetchval("SELECT count(*) FROM trades WHERE note = 'after'") == 10
            assert not (await stream.health()).ok  # its leases were given back
            async with at_work(relays, ref):
                await until(stream.ready, "the next relays are at work")
        finally:
            await stream.drop()


async def test_relays_that_do_not_reach_a_database_are_left_to_another_worker(
    monolith_db: Database, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "UNREACHABLE_SECONDS", 0.3)
    service = f"s{uuid4().hex[:8]}"
    plan = load_text(PLAN.format(migration=f"m-{service}", service=service))
    await plans.register(control, plan, "test")
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    settings = Settings({variable("monolith"): monolith_db.dsn, variable("service_db"): nowhere})
    ref = m.Ref(migration=plan.migration, plan_hash=plan.hash, service=service)
    async with asyncio.timeout(20):
        with pytest.raises(ApplicationError, match="has not reached both databases") as raised:
            await ActivityEnvironment().run(RelayActivities(Context(settings, control)).relay, ref)
    assert (raised.value.type, raised.value.non_retryable) == ("Unreachable", False)
