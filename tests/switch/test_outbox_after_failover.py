"""An outbox whose source lost its last commits: versions that it draws again are no reason to drop newer changes."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from cutover.control.database import Control
from cutover.postgres import catalog, fence, outbox_sink, outbox_versions
from cutover.postgres.databases import Database
from cutover.streams.outbox import Backfill, Relay
from cutover.switch import servers
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import OUTBOX_PLAN, TABLES, drop_streams, installed
from tests.switch.test_outbox import relays
from tests.waiting import until

LOST = 5000


@pytest.fixture
async def outbox(monolith_db: Database, service_db: Database, control: Control) -> AsyncIterator[SwitchEnvironment]:
    """One row, carried over under a version that is far above what the source draws again; no relay runs."""
    env = await installed(monolith_db, service_db, control, OUTBOX_PLAN)
    async with service_db.session() as sink:
        await fence.make_always(sink, TABLES)
    await env.stream("forward").start(copy=True)
    await env.changed("forward").prepare()
    try:
        async with relays(env.pair):
            await Backfill(env.pair, "forward").run()
            await until(env.stream("forward").ready, "the stream is ready")
            await set_version(env, LOST)
            await write(env, "INSERT INTO trades (id, note) VALUES (1, 'lost with the server')")
            await carried(env)
        assert await servers.changed(env) == []
        await set_version(env, 10)  # as the standby has it
        yield env
    finally:
        await drop_streams(env)


async def set_version(env: SwitchEnvironment, number: int) -> None:
    await write(env, f"SELECT setval('{outbox_versions.version_sequence(env.pair.service).sql}', {number})")


async def write(env: SwitchEnvironment, sql: str) -> None:
    async with env.pair.monolith.session() as source:
        await source.execute(sql)


async def carried(env: SwitchEnvironment) -> None:
    stream = env.stream("forward")
    await stream.await_marker(await stream.put_marker(), 20)


async def drawn(env: SwitchEnvironment) -> int:
    async with env.pair.monolith.session() as source:
        return await outbox_versions.last_version(source, env.pair.service)


async def known(env: SwitchEnvironment) -> int:
    async with env.pair.target.session() as sink:
        return await outbox_sink.highest_version(sink, env.pair.service)


async def at_the_sink(env: SwitchEnvironment) -> list[str]:
    async with env.pair.target.session() as sink:
        return [row["note"] for row in await sink.fetch("SELECT note FROM trades ORDER BY id")]


async def test_after_the_server_is_accepted_an_update_there_arrives_at_the_other_side(
    outbox: SwitchEnvironment,
) -> None:
    assert await drawn(outbox) < await known(outbox)
    assert await servers.accept(outbox, "alice", "the standby was promoted") == []
    assert await drawn(outbox) > await known(outbox), "it may be given again, whatever is noted"
    await write(outbox, "UPDATE trades SET note = 'newer'")
    async with relays(outbox.pair):
        await carried(outbox)
    assert await at_the_sink(outbox) == ["newer"]


async def test_a_server_is_accepted_whose_outbox_is_gone(outbox: SwitchEnvironment) -> None:
    service = outbox.pair.service
    await write(outbox, f"DROP FUNCTION cutover.own_{service}; DROP TABLE cutover.outbox_{service}")
    await write(outbox, f"DROP SEQUENCE cutover.version_{service}")
    await outbox.control.execute("UPDATE control.server_identity SET timeline = timeline - 1")
    assert sorted(await servers.accept(outbox, "alice", "a backup was restored")) == sorted(
        (outbox.pair.monolith.name, outbox.pair.target.name)
    )


async def test_a_relay_that_opens_its_sessions_needs_nobody_for_that(outbox: SwitchEnvironment) -> None:
    async with relays(outbox.pair):

        async def above() -> bool:
            return await drawn(outbox) > await known(outbox)

        await until(above, "the source draws above what the sink knows")
        await write(outbox, "UPDATE trades SET note = 'newer'")
        await carried(outbox)
    assert await at_the_sink(outbox) == ["newer"]


async def test_a_relay_whose_sessions_come_back_on_another_timeline_looks_again(
    outbox: SwitchEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, timelines, looks = catalog.server_identity, 0, 0

    async def on_timeline(connection: asyncpg.Connection) -> tuple[str, int]:
        nonlocal looks
        looks += 1
        system, timeline = await real(connection)
        return system, timeline + timelines

    monkeypatch.setattr(catalog, "server_identity", on_timeline)
    relay = asyncio.create_task(Relay(outbox.pair, "forward").run())

    async def above() -> bool:
        return await drawn(outbox) > await known(outbox)

    async def broken_off() -> None:
        nonlocal looks
        looks = 0
        await write(
            outbox,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            f"AND application_name = 'cutover-relay/{outbox.pair.service}'",
        )

        async def looked() -> bool:
            await write(outbox, "UPDATE positions SET size = 1")  # nothing; and a marker shows that it carries
            return looks > 0

        await until(looked, "its sessions are open again")
        await carried(outbox)

    try:
        await until(above, "it has looked at its first opening")
        await carried(outbox)
        await set_version(outbox, 10)
        await broken_off()
        assert not await above(), "on the server that it knows nothing has to be read"
        timelines = 1
        await broken_off()
        assert await above()
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
