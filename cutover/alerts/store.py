"""Alerts: deduplicated into a table, written to the log, and posted to one webhook.

An alert repeats another one if migration, service, kind and subject are the same, the other one was last seen within
the window, and was no less severe; it is then counted, not sent again. Of the kinds in `ALWAYS` only the same event,
named by its subject, is a repetition. A webhook that was not delivered is tried again
with the next repetition. Nothing that the webhook does is ever raised.
"""

import asyncio
import logging
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, cast, get_args

import asyncpg

from cutover.alerts.webhook import Webhook
from cutover.control.audit import Connection
from cutover.control.database import Control
from cutover.control.documents import scrub
from cutover.errors import CutoverError
from cutover.telemetry.meters import instruments

Severity = Literal["info", "warning", "critical"]
WebhookState = Literal["none", "pending", "sent", "failed"]

WINDOW = timedelta(minutes=5)
#: Kinds that are never taken for a repetition without a subject that names the very event.
ALWAYS = frozenset({"rollback"})

_log = logging.getLogger("cutover.alerts")
_LEVELS: dict[Severity, int] = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


@dataclass(frozen=True)
class Alert:
    """What is told, to whom it may concern: never a row value, never a DSN."""

    kind: str
    severity: Severity
    migration: str
    service: str | None
    text: str
    link: str = ""
    #: What tells it from another one of its kind: a step, a table, the id of one event.
    subject: str = ""

    def body(self) -> dict[str, str | None]:
        """What a webhook is sent."""
        return {name: value for name, value in asdict(self).items() if name != "subject"}


@dataclass(frozen=True)
class AlertRow:
    """An alert as it is kept."""

    id: int
    alert: Alert
    count: int
    first_at: datetime
    last_at: datetime
    webhook: WebhookState
    webhook_error: str


@dataclass(frozen=True)
class Raised:
    """What became of an alert."""

    id: int
    #: True where it only repeats one within the window.
    deduplicated: bool
    #: How often it has been seen, this time included.
    count: int
    webhook: WebhookState


async def raise_alert(
    control: Control, alert: Alert, dedupe: timedelta = WINDOW, *, webhook: Webhook | None = None
) -> Raised:
    """Log, keep and post an alert. Raises Unreachable where the control database is; the log has it then."""
    alert = replace(alert, text=scrub(alert.text), link=scrub(alert.link), subject=scrub(alert.subject))
    try:
        row = await _keep(control, alert, dedupe, webhook is not None)
    except CutoverError:
        _write(alert, "not recorded")
        raise
    repeated = row["count"] > 1
    if not repeated:
        _write(alert, f"alert {row['id']}")
        labels = {"kind": alert.kind, "severity": alert.severity, "service": alert.service or ""}
        instruments().migration_alerts.add(1, labels)
    state = cast(WebhookState, row["webhook"])
    # `none`: who told it first had no webhook
    if webhook is not None and state != "sent":
        state = await _post(control, row["id"], alert, webhook)
    return Raised(row["id"], repeated, row["count"], state)


async def recent(control: Control, migration: str, *, limit: int = 50) -> list[AlertRow]:
    """The alerts of a migration that were seen last, newest first."""
    rows = await control.fetch(
        "SELECT id, kind, severity, migration, service, text, link, subject, count, first_at, last_at, webhook,"
        " webhook_error FROM control.alert WHERE migration = $1 ORDER BY last_at DESC, id DESC LIMIT $2",
        migration,
        limit,
    )
    return [
        AlertRow(
            row["id"],
            Alert(
                row["kind"],
                cast(Severity, row["severity"]),
                row["migration"],
                row["service"] or None,
                row["text"],
                row["link"],
                row["subject"],
            ),
            row["count"],
            row["first_at"],
            row["last_at"],
            cast(WebhookState, row["webhook"]),
            row["webhook_error"],
        )
        for row in rows
    ]


async def _keep(control: Control, alert: Alert, dedupe: timedelta, has_webhook: bool) -> asyncpg.Record:
    """Count the alert's standing row once more, or insert one."""
    service = alert.service or ""
    async with control.transaction() as connection:
        # Two that raise the same at once must meet in one row.
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 7239100005))",
            f"{alert.migration}/{service}/{alert.kind}/{alert.subject}",
        )
        row = None
        if alert.subject or alert.kind not in ALWAYS:
            row = await _count_once_more(connection, alert, dedupe)
        if row is None:
            row = await connection.fetchrow(
                "INSERT INTO control.alert (migration, service, kind, severity, text, link, webhook, subject)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id, count, webhook",
                alert.migration,
                service,
                alert.kind,
                alert.severity,
                alert.text,
                alert.link,
                "pending" if has_webhook else "none",
                alert.subject,
            )
    assert row is not None
    return row


async def _count_once_more(connection: Connection, alert: Alert, dedupe: timedelta) -> asyncpg.Record | None:
    severities = list(get_args(Severity))
    no_less = severities[severities.index(alert.severity) :]
    return await connection.fetchrow(
        "UPDATE control.alert SET count = count + 1, last_at = clock_timestamp(), text = $5, link = $6"
        " WHERE id = (SELECT id FROM control.alert WHERE migration = $1 AND service = $2 AND kind = $3 AND subject = $4"
        "  AND severity = ANY ($8::text[]) AND last_at > clock_timestamp() - $7::interval ORDER BY id DESC LIMIT 1)"
        " RETURNING id, count, webhook",
        alert.migration,
        alert.service or "",
        alert.kind,
        alert.subject,
        alert.text,
        alert.link,
        dedupe,
        no_less,
    )


async def _post(control: Control, alert_id: int, alert: Alert, webhook: Webhook) -> WebhookState:
    try:
        # One id for all attempts: a receiver that has it already may drop the second one.
        problem = await webhook.post(f"cutover-{alert.migration}-{alert_id}", alert.body())
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except Exception as e:
        # An alert must not bring down what it reports on, whatever an HTTP stack comes up with.
        problem = type(e).__name__
    state: WebhookState = "failed" if problem else "sent"
    if problem:
        _log.warning("webhook of alert %s (%s) failed: %s", alert_id, alert.kind, problem)
    try:
        await control.execute(
            "UPDATE control.alert SET webhook = $2, webhook_error = $3, webhook_at = clock_timestamp() WHERE id = $1",
            alert_id,
            state,
            problem,
        )
    except CutoverError as e:
        _log.warning("the webhook's outcome for alert %s was not recorded: %s", alert_id, e)
    return state


def _write(alert: Alert, where: str) -> None:
    _log.log(
        _LEVELS[alert.severity],
        "%s: %s/%s: %s (%s)%s",
        alert.kind,
        alert.migration,
        alert.service or "-",
        alert.text,
        where,
        f" {alert.link}" if alert.link else "",
    )
