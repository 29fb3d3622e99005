"""The monitor at work: what goes wrong while it watches is alerted and shown within ten seconds."""

import asyncio
import time

import asyncpg
import pytest
from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities import watching
from activities.context import Context
from activities.watching import WatchActivities
from cutover.alerts.store import recent
from cutover.alerts.webhook import Webhook
from cutover.control import stages
from cutover.control.database import Control
from cutover.errors import Unreachable
from cutover.monitor import permanent
from cutover.postgres import fence
from cutover.postgres.databases import Database
from tests.monitor.conftest import Watched
from tests.relay import Relay
from tests.switch.conftest import TABLES, Work
from tests.waiting import until

SECONDS = 10.0


def request(work: Work, shown: list[str] | None = None) -> m.WatchRequest:
    return m.WatchRequest(ref=work.ref.model_copy(update={"service": None}), shown=shown)


async def test_an_alarm_is_alerted_and_given_to_the_run_within_ten_seconds(watched: Watched, work: Work) -> None:
    monitor = WatchActivities(work.context)
    first: m.Watched = await work.run(monitor.watch, request(work))
    assert (first.services, first.findings, first.ended) == (1, [], False)
    shift = asyncio.create_task(work.run(monitor.watch, request(work, [])))
    await asyncio.sleep(watching.EVERY / 2)  # in the middle between two looks
    assert not shift.done()
    await watched.on("service", fence.open_sql(TABLES))
    begun = time.monotonic()
    seen: m.Watched = await asyncio.wait_for(shift, SECONDS)
    assert time.monotonic() - begun < SECONDS
    assert {one.key.split("/")[1] for one in seen.findings} == {"writable-side", "fence"}
    alerts = {row.alert.kind: row.alert for row in await recent(watched.env.control, "test")}
    assert set(alerts) == {"writable-side", "fence"}
    assert alerts["fence"].severity == "critical"
    assert "Shut it: ALTER TABLE" in alerts["fence"].text
    # what is shown already is looked at again and again, and its end is told
    shift = asyncio.create_task(work.run(monitor.watch, request(work, [one.key for one in seen.findings])))
    await watched.on("service", fence.close_sql(TABLES, always=True))
    assert (await asyncio.wait_for(shift, SECONDS)).findings == []


async def test_a_shift_ends_and_so_does_the_watch_with_the_migration(
    watched: Watched, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = WatchActivities(work.context)
    monkeypatch.setattr(watching, "SHIFT", 0.0)
    assert await work.run(monitor.watch, request(work, [])) == m.Watched(services=1)
    await stages.set_stage(watched.env.control, "test", None, "cleaned")
    assert (await work.run(monitor.watch, request(work, []))).ended


async def test_a_worker_that_ends_hands_the_watch_on(watched: Watched, work: Work) -> None:
    environment = ActivityEnvironment()
    shift = asyncio.ensure_future(environment.run(WatchActivities(work.context).watch, request(work, [])))
    await asyncio.sleep(0.2)
    environment.worker_shutdown()
    assert (await asyncio.wait_for(shift, 10)).findings == []


async def test_a_control_database_that_is_away_is_told_by_the_webhook_once(
    watched: Watched, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[object] = []

    async def post(_: Webhook, message_id: str, body: object) -> str:
        posted.append(body)
        return ""

    async def away(*_: object) -> None:
        raise Unreachable("control database 'control' cannot be reached: ConnectionError")

    monitor = WatchActivities(work.context, Webhook("http://127.0.0.1:9"))
    monkeypatch.setattr(Webhook, "post", post)
    await work.run(monitor.watch, request(work))
    with monkeypatch.context() as patch:
        for name in ("fetch", "fetchrow", "transaction"):
            patch.setattr(Control, name, away if name != "transaction" else _gone)
        for _ in range(2):
            (found,) = (await work.run(monitor.watch, request(work))).findings
            assert "'control' cannot be reached" in found.text
    assert len(posted) == 1

    async def quiet() -> bool:
        return not (await work.run(monitor.watch, request(work))).findings

    await until(quiet, "all is well again")


async def test_a_worker_that_has_never_reached_the_control_database_says_that_nothing_is_watched(
    watched: Watched, work: Work, control_db: Database
) -> None:
    async with Relay(control_db) as way:
        control = await Control.open(way.database)
        try:
            monitor = WatchActivities(Context(work.context.settings, control))
            await way.cut()
            (found,) = (await work.run(monitor.watch, request(work))).findings
            assert (found.key, found.severity) == ("/unreadable/control", "critical")
            assert found.text.endswith("→ bring it back: nothing is watched without it")
            await way.mend()
            seen = await work.run(monitor.watch, request(work, [found.key]))
            assert (seen.services, seen.findings) == (1, [])
        finally:
            await control.close()


async def test_a_look_that_fails_as_a_whole_is_told_without_the_servers_words_and_ends(
    watched: Watched, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise asyncpg.InsufficientPrivilegeError("permission denied: row (secret)")

    monitor, service = WatchActivities(work.context), watched.env.pair.service
    with monkeypatch.context() as patch:
        patch.setattr(permanent, "look", refused)
        (found,) = (await work.run(monitor.watch, request(work))).findings
    assert (found.key, found.severity) == (f"{service}/unreadable/look", "critical")
    assert "refuses a statement or does not answer (InsufficientPrivilegeError, SQLSTATE 42501)" in found.text
    assert "secret" not in found.text
    assert found.text.endswith("→ set it right: this service is not watched without it")
    (row,) = await recent(watched.env.control, "test")
    assert (row.alert.kind, row.alert.subject, row.alert.service) == ("unreadable", "look", service)
    assert "set it right" in row.alert.text
    assert (await work.run(monitor.watch, request(work, [found.key]))).findings == []


def _gone(*_: object) -> None:
    raise Unreachable("control database 'control' cannot be reached: ConnectionError")
