"""What is told of repairs, and of what waits for a person: once, and critically when nobody decides in time."""

from datetime import timedelta

from cutover.alerts.store import Alert, raise_alert
from cutover.alerts.webhook import Webhook
from cutover.control import conflicts
from cutover.control.database import Control

#: The same open cases, seen again within this time, are no news: passes find them every few minutes.
REMEMBERED = timedelta(hours=1)


async def tell_repair(
    control: Control, migration: str, service: str, table: str, text: str, *, webhook: Webhook | None = None
) -> None:
    """A warning with what a repair has done so far; "" tells nothing.

    After each batch, so that a kill loses none: alerts that repeat are counted, not sent.
    """
    if text:
        alert = Alert("conflict", "warning", migration, service, f"{service}.{table}: {text}", subject=table)
        await raise_alert(control, alert, webhook=webhook)


async def tell_failover(
    control: Control, migration: str, service: str, text: str, *, webhook: Webhook | None = None
) -> None:
    """Critical: a server is another one than noted, so nothing is switched or repaired until a person has looked."""
    await raise_alert(control, Alert("failover", "critical", migration, service, text), webhook=webhook)


async def tell_waiting(
    control: Control, migration: str, service: str, table: str, *, webhook: Webhook | None = None
) -> None:
    """A warning where cases of the table wait; read back, so that a kill between case and alert loses nothing."""
    waiting = await conflicts.waiting(control, migration, service, table)
    if waiting is None:
        return
    text = (
        f"{table}: {waiting.count} rows differ that no rule may mend; they wait for a person: "
        f"cutover conflicts list {migration} --service {service}"
    )
    alert = Alert("conflict-case", "warning", migration, service, text, subject=f"{table}, case {waiting.newest}")
    await raise_alert(control, alert, REMEMBERED, webhook=webhook)


async def escalate(
    control: Control, migration: str, service: str | None = None, *, webhook: Webhook | None = None
) -> int:
    """A critical alert for each table with cases past their deadline; how many cases there are. May be called often:
    it is one alert until another case becomes overdue."""
    late = await conflicts.overdue(control, migration, service)
    for one in late:
        text = (
            f"{one.table}: {one.count} rows that differ were not decided in time (case {one.oldest} since "
            f"{one.since:%Y-%m-%d %H:%M} UTC); the switch of {one.service} stays closed until they are: "
            f"cutover conflicts list {migration} --service {one.service}"
        )
        subject = f"{one.table}, case {one.newest}"
        alert = Alert("conflict-overdue", "critical", migration, one.service, text, subject=subject)
        await raise_alert(control, alert, REMEMBERED, webhook=webhook)
    return sum(one.count for one in late)
