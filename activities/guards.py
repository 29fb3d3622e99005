"""What closes gates besides evidence: a changed schema, a fence that does not stand, another server. And it is told."""

from activities import models as m
from activities.context import Context
from cutover.alerts.cases import tell_failover
from cutover.alerts.store import Alert, raise_alert
from cutover.monitor import catalogs, fences
from cutover.monitor.fences import Look
from cutover.switch import servers
from cutover.switch.environment import SwitchEnvironment

TEXT_LIMIT = 500


async def guard_catalogs(context: Context, ref: m.Ref) -> list[str]:
    """Problems of a gate in words, and an alert `ddl`, where a schema is not as it was taken."""
    pair = await context.pair(ref)
    found = await catalogs.drift(context.control, pair)
    if not found.changed:
        return []
    text = f"{pair.service}: the schema changed: {found.text}; gates are closed: {catalogs.remedy(pair)}"
    await raise_alert(
        context.control, Alert("ddl", "critical", pair.migration, pair.service, text), webhook=context.webhook
    )
    return [f"the schema changed: {found.text}; {catalogs.remedy(pair)}"]


async def guard_fences(context: Context, ref: m.Ref) -> Look:
    """One look at the fences; an alert `fence` where one does not stand, or was missing and has been made."""
    pair = await context.pair(ref)
    found = await fences.look(context.control, pair)
    alert = found.alert(pair)
    if alert is not None:
        await raise_alert(context.control, alert, webhook=context.webhook)
    return found


async def guard_servers(context: Context, ref: m.Ref) -> list[str]:
    """One look at the servers' identities; an alert `failover`, and the fence put back, where one is another."""
    env = SwitchEnvironment(await context.plan(ref), await context.pair(ref), context.control)
    problems = await servers.changed(env)
    if problems:
        text = "; ".join(problems)[:TEXT_LIMIT]
        await tell_failover(context.control, ref.migration, context.service(ref), text, webhook=context.webhook)
    return problems


async def guarded(context: Context, ref: m.Ref) -> list[str]:
    """Problems of every kind, for a gate of one service."""
    return [
        *await guard_catalogs(context, ref),
        *(await guard_fences(context, ref)).problems,
        *await guard_servers(context, ref),
    ]
