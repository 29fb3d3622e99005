"""Alarms of what flows: slots, streams, the proof of the way back, transactions in doubt, sequences."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cutover.control import notes
from cutover.control.database import Control
from cutover.devstack.cluster import Cluster
from cutover.errors import Unreachable
from cutover.monitor import flow, permanent
from cutover.postgres import changes, epoch, replication, two_phase
from cutover.streams.base import Lag
from cutover.streams.logical import LogicalStream
from cutover.switch import rebuild
from tests.monitor.conftest import Watched
from tests.relay import Relay
from tests.servers import Clusters
from tests.switch.test_outbox import relays
from tests.waiting import until


def subscription(watched: Watched) -> str:
    stream = watched.env.stream("forward")
    assert isinstance(stream, LogicalStream)
    return stream.subscription


async def release(watched: Watched) -> str:
    """The subscription disabled, its slot held by nobody."""
    name = subscription(watched)
    await watched.env.stream("forward").stop()

    async def free() -> bool:
        async with watched.env.pair.monolith.session() as connection:
            return not await connection.fetchval(
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active", name
            )

    await until(free, "the walsender has ended")
    return name


async def carried(watched: Watched) -> None:
    stream = watched.env.stream("forward")
    await stream.await_marker(await stream.put_marker(), 10)


async def test_a_slot_that_is_gone_and_one_made_anew_in_its_place(watched: Watched) -> None:
    await carried(watched)
    name = await release(watched)
    await watched.on("monolith", f"SELECT pg_drop_replication_slot('{name}')")
    (found,) = await watched.found("slot")
    assert (found.severity, found.subject) == ("critical", name)
    assert "is gone" in found.text
    assert found.remedy.endswith("--rebuild-stream")
    await watched.on("monolith", f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    await watched.on("service", replication.enable_sql(name))
    await carried(watched)
    (found,) = await watched.found("slot")
    assert "was dropped and made anew" in found.text
    await rebuild.rebuild(watched.env, lambda _: None)
    await watched.quiet()


async def test_a_slot_that_is_made_anew_between_two_looks(watched: Watched) -> None:
    for _ in range(5):
        await carried(watched)
    await watched.quiet()
    name = await release(watched)
    await watched.on("monolith", f"SELECT pg_drop_replication_slot('{name}')")
    await watched.on("monolith", f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    await watched.on("service", replication.enable_sql(name))
    await carried(watched)
    (found,) = await watched.found("slot")
    assert "was dropped and made anew" in found.text
    (again,) = await watched.found("slot")
    assert again.subject == found.subject


async def test_the_slot_of_the_changed_keys_is_watched_too(watched: Watched) -> None:
    name = changes.slot_name(watched.env.pair.service, "forward")
    await watched.on("monolith", f"SELECT pg_drop_replication_slot('{name}')")
    (found,) = await watched.found("slot")
    assert found.subject == name
    await watched.env.changed("forward").prepare()
    await watched.quiet()


async def test_a_slot_of_changed_keys_that_is_being_made_is_no_alarm(watched: Watched) -> None:
    """Its notes come first, then the slot, which waits for every open transaction."""
    name = changes.slot_name(watched.env.pair.service, "forward")
    await watched.on("monolith", f"SELECT pg_drop_replication_slot('{name}')")
    await notes.forget(watched.env.control, "test", watched.env.pair.service, notes.of_slot(name))
    await watched.quiet()


async def test_a_slot_that_the_server_has_given_up(watched: Watched, clusters: Clusters) -> None:
    name = await release(watched)
    await watched.on("monolith", "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
    try:

        async def lost() -> bool:
            await watched.on("monolith", "SELECT pg_switch_wal(), txid_current()", "CHECKPOINT")
            async with watched.env.pair.monolith.session() as connection:
                facts = await replication.slot_facts(connection, name)
                return facts is not None and facts.wal_status == "lost"

        await until(lost, "the slot is lost")
        found = {one.subject: one for one in await watched.found("slot")}
        assert "is lost" in found[name].text
        assert "changes are missing for good" in found[name].text
    finally:
        await watched.on("monolith", "ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    await rebuild.rebuild(watched.env, lambda _: None)
    await watched.quiet()


async def test_a_slot_that_is_about_to_be_lost_is_told_while_there_is_time(
    watched: Watched, clusters: Clusters
) -> None:
    """Its log is beyond what the server may keep, and goes with the next checkpoint."""
    name = await release(watched)
    await watched.on("monolith", "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
    try:

        async def beyond() -> bool:
            await watched.on("monolith", "SELECT pg_switch_wal(), txid_current()")
            async with watched.env.pair.monolith.session() as connection:
                facts = await replication.slot_facts(connection, name)
                return facts is not None and facts.wal_status == "unreserved"

        await until(beyond, "the slot is beyond what may be kept")
        found = {one.subject: one for one in await watched.found("slot")}
        assert found[name].severity == "critical"
        assert "is about to be lost" in found[name].text
    finally:
        await watched.on("monolith", "ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
    await watched.on("service", replication.enable_sql(name))
    await watched.mended("slot")


async def test_a_subscription_that_was_disabled(watched: Watched) -> None:
    name = subscription(watched)
    await watched.on("service", f"ALTER SUBSCRIPTION {name} DISABLE")
    (found,) = await watched.found("stream")
    assert f"subscription {name!r} is disabled" in found.text
    await watched.on("service", found.remedy.partition("_db': ")[2])
    await watched.mended("stream")
    await watched.quiet()


async def test_an_apply_worker_that_fails_again_and_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "PROOF_SECONDS", 0.2)  # it would be waited for in vain
    async with watched.env.pair.target.session() as ours, ours.transaction():
        await ours.execute("SET LOCAL cutover.applier = 'on'")
        await ours.execute("INSERT INTO trades (id, price) VALUES (7000, 1)")
    await watched.on("monolith", "INSERT INTO trades (id, price) VALUES (7000, 2)")

    async def told() -> bool:
        found = await watched.found("stream")
        return bool(found) and "apply worker" in found[0].text and "log of" in found[0].remedy

    await until(told, "the worker's failing is told", 60)
    async with watched.env.pair.target.session() as ours, ours.transaction():
        await ours.execute("SET LOCAL cutover.applier = 'on'")
        await ours.execute("DELETE FROM trades WHERE id = 7000")
    await watched.mended("stream")


async def test_a_stream_that_was_dropped(watched: Watched) -> None:
    await watched.env.stream("forward").drop()
    (found,) = await watched.found("stream")
    assert "the forward stream is missing" in found.text
    await rebuild.rebuild(watched.env, lambda _: None)
    await watched.quiet()


async def test_a_forward_stream_that_stands_still_though_nothing_is_wrong_with_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "PROOF_SECONDS", 0.2)
    async with watched.env.pair.target.session("psql") as holding:
        transaction = holding.transaction()
        await transaction.start()
        await holding.execute("LOCK TABLE trades IN SHARE MODE")
        await watched.on("monolith", "UPDATE trades SET price = 3")
        assert await watched.found("stream") == [], "a little behind is no alarm"
        assert await watched.found("stream") == []
        monkeypatch.setattr(flow, "CARRY_SECONDS", 0.0)
        (found,) = await watched.found("stream")
        assert (found.severity, found.subject) == ("critical", "forward does not carry")
        assert "a marker of" in found.text
        assert "pg_stat_activity" in found.remedy
        await transaction.rollback()
    await watched.mended("stream")
    await watched.quiet()


async def test_a_stream_that_is_always_a_little_behind_carries(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look's own marker is too late for it; the one that was noted before has arrived by the next look."""
    monkeypatch.setattr(flow, "CARRY_SECONDS", 0.0)
    original = LogicalStream.lag

    async def behind(stream: LogicalStream, timeout: float) -> Lag:
        return replace(await original(stream, timeout), seconds=None)

    monkeypatch.setattr(LogicalStream, "lag", behind)
    for _ in range(4):
        assert await watched.found("stream") == []
        await carried(watched)


async def test_an_outbox_that_nobody_relays(outbox: Watched) -> None:
    (found,) = await outbox.found("stream")
    assert "no relay looks after" in found.text
    assert "cutover worker" in found.remedy
    async with relays(outbox.env.pair):
        await outbox.mended("stream")
        assert (await outbox.look()).findings == []


async def test_a_way_back_that_is_not_proved_and_one_that_is_gone(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await watched.switch("service")
    await watched.quiet()
    monkeypatch.setattr(flow, "PROOF_SECONDS", 0.5)
    marker = epoch.marker_table(watched.env.pair.service)
    async with watched.env.pair.monolith.session() as holding:
        transaction = holding.transaction()
        await transaction.start()
        await holding.execute(f"LOCK TABLE {marker.sql} IN SHARE MODE")
        (found,) = await watched.found("way-back")
        assert "did not carry a marker within 0.5 s" in found.text
        await transaction.rollback()
    await watched.mended("way-back")
    await watched.env.stream("reverse").drop()
    (found,) = await watched.found("way-back")
    assert "there is no lossless way back" in found.text
    assert found.remedy.endswith("--rebuild-stream")


@pytest.mark.parametrize("ours", [True, False])
async def test_a_transaction_in_doubt(watched: Watched, monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    service = watched.env.pair.service
    gid = two_phase.branch_id(service, 0) if ours else f"of-somebody-{uuid.uuid4().hex}"
    side = "service" if ours else "monolith"
    write = "SET LOCAL cutover.applier = 'on'; INSERT INTO trades (id, price) VALUES (8000, 1)"
    await watched.on(side, f"BEGIN; {write}; PREPARE TRANSACTION '{gid}'")  # type: ignore[arg-type]
    assert await watched.found("in-doubt") == []
    monkeypatch.setattr(flow, "IN_DOUBT", 0.0)
    if ours:
        assert await watched.found("in-doubt") == [], "a janitor's business still"
        monkeypatch.setattr(flow, "OURS_IN_DOUBT", 0.0)
    (found,) = await watched.found("in-doubt")
    assert found.subject == f"{gid} at the {side}"
    assert ("janitor" in found.remedy) == ours
    await watched.on(side, f"ROLLBACK PREPARED '{gid}'")  # type: ignore[arg-type]
    await watched.quiet()


async def test_somebody_elses_transaction_on_other_tables_is_none_of_ours(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    gid = uuid.uuid4().hex
    await watched.on("monolith", "CREATE TABLE elsewhere (id int)")
    await watched.on("monolith", f"BEGIN; INSERT INTO elsewhere VALUES (1); PREPARE TRANSACTION '{gid}'")
    monkeypatch.setattr(flow, "IN_DOUBT", 0.0)
    assert await watched.found("in-doubt") == []
    await watched.on("monolith", f"ROLLBACK PREPARED '{gid}'")


async def test_a_sequence_that_rows_have_overtaken(watched: Watched) -> None:
    await watched.on("monolith", "INSERT INTO trades (id, price) VALUES (5000, 1)")
    (found,) = await watched.found("sequences")
    assert found.subject == "trades_id_seq"
    assert "5000" not in str(found)
    cure = found.remedy.partition("'monolith': ")[2]
    await watched.on("monolith", cure)
    await watched.quiet()
    await watched.on("monolith", "INSERT INTO trades (price) VALUES (2)", "DELETE FROM trades WHERE id > 5000")
    await watched.quiet()
    async with watched.env.pair.monolith.session() as connection:
        before = await connection.fetchval("SELECT last_value FROM trades_id_seq")
        await watched.on("monolith", cure)
        assert await connection.fetchval("SELECT last_value FROM trades_id_seq") == before == 5001


async def test_a_database_that_cannot_be_read_is_found_and_the_rest_is_looked_at(watched: Watched) -> None:
    async with Relay(watched.env.pair.target) as relay:
        far = replace(watched.env, pair=replace(watched.env.pair, target=relay.database))
        away = Watched(far)
        await away.quiet()
        await watched.on("monolith", "INSERT INTO trades (id, price) VALUES (5000, 1)")
        await relay.cut()
        looked = await away.look()
        assert [(one.watch, one.severity) for one in looked.findings] == [
            ("sequences", "critical"),
            ("unreadable", "critical"),
        ]
        assert "cannot be reached" in looked.findings[1].text
        await relay.mend()
        assert {one.watch for one in (await away.look()).findings} == {"sequences"}


async def test_a_server_that_hangs_holds_no_look_up(watched: Watched, clusters: Clusters) -> None:
    """Stopped with SIGSTOP it accepts connections and says nothing."""
    began = asyncio.get_running_loop().time()
    with stopped(clusters.monolith):
        looked = await watched.look()
    assert "unreadable" in {one.watch for one in looked.findings}
    assert asyncio.get_running_loop().time() - began < 10
    await watched.mended("unreadable")


async def test_a_control_database_that_cannot_be_read(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise Unreachable("control database 'control' cannot be reached: ConnectionError")

    monkeypatch.setattr(Control, "fetchrow", away)
    looked = await permanent.look(watched.env.control, watched.env.plan, watched.env.pair)
    (found,) = looked.findings
    assert found.watch == "unreadable"
    assert "'control' cannot be reached" in found.text


@contextmanager
def stopped(cluster: Cluster) -> Iterator[None]:
    """The server's first process and all that it serves stand still for the block."""
    first = int((cluster.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    pids = [first, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
