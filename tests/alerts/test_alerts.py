"""Alerts: kept once, logged once, posted once, and never brought down by a webhook."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Literal, cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities.context import Context
from activities.messages import MessageActivities
from cutover.alerts import store
from cutover.alerts.store import Alert
from cutover.alerts.webhook import Webhook
from cutover.control.database import Control
from cutover.errors import ConfigError
from cutover.settings import Settings
from cutover.telemetry import meters
from workers.worker import activity_objects

M, S = "ai-trader", "trading_engine"
ROLLBACK = Alert("rollback", "critical", M, S, "rolled back to the monolith", "https://example.org/run/1")


class Receiver:
    """A small HTTP server on loopback that keeps what it is sent."""

    def __init__(self, mode: Literal["ok", "error", "hang"]) -> None:
        self.mode = mode
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=sesame"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append((headers, body))
            if self.mode == "hang":
                await reader.read()
            else:
                status = "204 No Content" if self.mode == "ok" else "500 Oops"
                writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def receiver(mode: Literal["ok", "error", "hang"] = "ok") -> AsyncIterator[Receiver]:
    made = Receiver(mode)
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


async def test_an_alert_is_kept_logged_and_posted(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    async with receiver() as hook:
        with caplog.at_level(logging.INFO, "cutover.alerts"):
            raised = await store.raise_alert(control, ROLLBACK, webhook=Webhook(hook.url))
    assert (raised.deduplicated, raised.count, raised.webhook) == (False, 1, "sent")
    (row,) = await store.recent(control, M)
    assert (row.alert, row.count, row.webhook, row.webhook_error) == (ROLLBACK, 1, "sent", "")
    ((headers, body),) = hook.requests
    assert json.loads(body) == {
        "kind": "rollback",
        "severity": "critical",
        "migration": M,
        "service": S,
        "text": "rolled back to the monolith",
        "link": "https://example.org/run/1",
    }
    assert "webhook-signature" not in headers
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    assert "rolled back" in caplog.text


async def test_a_repetition_within_the_window_is_counted_and_not_sent_again(control: Control) -> None:
    async with receiver() as hook:
        webhook = Webhook(hook.url)
        lag = Alert("lag", "critical", M, S, "late")
        results = await asyncio.gather(*(store.raise_alert(control, lag, webhook=webhook) for _ in range(4)))
        assert sorted(result.count for result in results) == [1, 2, 3, 4]
        await store.raise_alert(control, lag, timedelta(0), webhook=webhook)
        await store.raise_alert(control, Alert("slot", "warning", M, S, "late"), webhook=webhook)
        await store.raise_alert(control, Alert("lag", "critical", M, None, "all"), webhook=webhook)
    rows = await store.recent(control, M)
    assert sorted(row.count for row in rows) == [1, 1, 1, 4]
    assert all(row.webhook == "sent" for row in rows)


async def test_what_was_first_told_where_no_webhook_was_set_is_posted_by_the_next_who_has_one(control: Control) -> None:
    case = Alert("conflict-case", "warning", M, S, "rows wait for a person", subject="trades, case 1")
    assert (await store.raise_alert(control, case)).webhook == "none"
    async with receiver() as hook:
        webhook = Webhook(hook.url)
        for _ in range(2):
            told = await store.raise_alert(control, case, webhook=webhook)
            assert (told.deduplicated, told.webhook) == (True, "sent")
    assert len(hook.requests) == 1
    (row,) = await store.recent(control, M)
    assert row.webhook == "sent"


async def test_a_more_severe_alert_is_not_swallowed_by_a_milder_one(control: Control) -> None:
    await store.raise_alert(control, Alert("lag", "warning", M, S, "late"))
    worse = await store.raise_alert(control, Alert("lag", "critical", M, S, "very late"))
    milder = await store.raise_alert(control, Alert("lag", "warning", M, S, "late"))
    assert (worse.deduplicated, milder.deduplicated, milder.id) == (False, True, worse.id)


async def test_what_happened_to_something_else_is_no_repetition(control: Control) -> None:
    async with receiver() as hook:
        for step in ("preflight", "roles", "preflight"):
            alert = Alert("parked", "warning", M, S, f"{step}: failed", subject=step)
            await store.raise_alert(control, alert, webhook=Webhook(hook.url))
    rows = await store.recent(control, M)
    assert {(row.alert.text, row.count) for row in rows} == {("preflight: failed", 2), ("roles: failed", 1)}
    assert len(hook.requests) == 2


async def test_a_second_rollback_is_never_taken_for_a_repetition_of_the_first(control: Control) -> None:
    async with receiver() as hook:
        for _ in range(2):
            await store.raise_alert(control, ROLLBACK, webhook=Webhook(hook.url))
        for event in ("run/1", "run/2", "run/2"):
            alert = replace(ROLLBACK, subject=event)
            await store.raise_alert(control, alert, webhook=Webhook(hook.url))
    assert len(hook.requests) == 4
    assert sorted(row.count for row in await store.recent(control, M)) == [1, 1, 1, 2]


async def test_alerts_are_counted_by_the_meter_without_their_repetitions(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(store, "instruments", lambda: meters.build(provider.get_meter("test")))
    for service in (S, S, None):
        await store.raise_alert(control, Alert("lag", "warning", M, service, "a text that stays out of it"))
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points = {str(point.attributes): getattr(point, "value", 0) for point in metric.data.data_points}
    assert (metric.name, sorted(points.values())) == ("migration_alerts", [1, 1])
    assert "stays out" not in data.to_json()
    provider.shutdown()


async def test_a_server_error_is_recorded_and_tried_again_with_the_next_repetition(control: Control) -> None:
    async with receiver("error") as hook:
        failing = Alert("lag", "warning", M, S, "late")
        first = await store.raise_alert(control, failing, webhook=Webhook(hook.url))
        assert first.webhook == "failed"
        (row,) = await store.recent(control, M)
        assert row.webhook_error == "answered with status 500"
        hook.mode = "ok"
        second = await store.raise_alert(control, failing, webhook=Webhook(hook.url))
    assert (second.deduplicated, second.webhook) == (True, "sent")
    assert len({headers["webhook-id"] for headers, _ in hook.requests}) == 1


async def test_a_webhook_that_hangs_costs_its_timeout_and_nothing_else(control: Control) -> None:
    async with receiver("hang") as hook:
        begun = time.monotonic()
        raised = await store.raise_alert(control, ROLLBACK, webhook=Webhook(hook.url, timeout=0.3))
        assert time.monotonic() - begun < 3
    assert raised.webhook == "failed"
    (row,) = await store.recent(control, M)
    assert row.webhook_error == "no answer within 0.3 s"


async def test_an_address_without_a_server_is_recorded_without_the_address(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    raised = await store.raise_alert(control, ROLLBACK, webhook=Webhook("http://127.0.0.1:1/hook?token=sesame"))
    assert raised.webhook == "failed"
    (row,) = await store.recent(control, M)
    assert row.webhook_error == "ConnectError"
    assert "sesame" not in caplog.text
    assert "sesame" not in repr(Webhook("http://127.0.0.1:1/hook?token=sesame"))


@pytest.mark.parametrize("secret", ["plain secret", "whsec_" + base64.b64encode(b"plain secret").decode()])
async def test_a_secret_signs_as_standard_webhooks_has_it(control: Control, secret: str) -> None:
    async with receiver() as hook:
        await store.raise_alert(control, ROLLBACK, webhook=Webhook(hook.url, secret))
    ((headers, body),) = hook.requests
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"plain secret", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60


def test_the_webhook_comes_from_the_settings_or_says_what_is_wrong() -> None:
    assert Webhook.from_settings(Settings({})) is None
    made = Webhook.from_settings(
        Settings({"CUTOVER_WEBHOOK_URL": "https://example.org", "CUTOVER_WEBHOOK_SECRET": "x"})
    )
    assert made == Webhook("https://example.org", "x")
    with pytest.raises(ConfigError, match="CUTOVER_WEBHOOK_URL is no web address"):
        Webhook.from_settings(Settings({"CUTOVER_WEBHOOK_URL": "example.org"}))
    with pytest.raises(ConfigError, match="CUTOVER_WEBHOOK_SECRET"):
        Webhook.from_settings(
            Settings({"CUTOVER_WEBHOOK_URL": "https://example.org", "CUTOVER_WEBHOOK_SECRET": "whsec_%%"})
        )


async def test_a_dsn_in_an_alert_is_cut_out(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cutover.alerts"):
        await store.raise_alert(control, Alert("x", "info", M, S, "postgresql://joe:hunter2@db/x is down"))
    (row,) = await store.recent(control, M)
    assert row.alert.text == "postgresql://*** is down"
    assert "hunter2" not in caplog.text


def test_every_activity_that_alerts_has_the_webhook() -> None:
    hook = Webhook("https://example.org")
    for made in activity_objects(cast(Context, None), hook):
        assert getattr(made, "webhook", hook) is hook, type(made).__name__


async def test_a_rollback_alert_of_an_activity_that_is_tried_again_is_one_event_and_another_rollback_is_another(
    control: Control,
) -> None:
    async with receiver() as hook:
        messages = MessageActivities(Context(Settings({}), control), Webhook(hook.url))
        request = m.AlertRequest(ref=m.Ref(migration=M, service=S), kind="rollback", severity="critical", text="back")
        for activity_id in ("7", "7", "12"):
            environment = ActivityEnvironment()
            environment.info = replace(environment.info, activity_id=activity_id)
            await environment.run(messages.raise_alert, request)
    assert len(hook.requests) == 2
    assert sorted(row.count for row in await store.recent(control, M)) == [1, 2]
