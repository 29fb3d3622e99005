"""The permanent monitor at work: every service every few seconds, for a shift; what is found is told at once."""

import asyncio
import logging
import time

import asyncpg
from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy

from activities import ids
from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.registration import implements
from cutover.alerts.store import WINDOW, Alert, raise_alert
from cutover.alerts.webhook import Webhook
from cutover.control import stages
from cutover.errors import ConfigError, CutoverError, Refused
from cutover.monitor import permanent
from cutover.monitor.findings import Finding, by_importance
from cutover.pairs import pair as pair_of
from cutover.plan.models import Plan
from cutover.postgres.databases import FAILURES

_log = logging.getLogger(__name__)

#: Seconds from the beginning of one look to that of the next.
EVERY = 3.0
#: Seconds after which the run is told that all is as it was.
SHIFT = 120.0
#: Seconds that the telling of one finding may take.
TELLING = 5.0
TEXT_LIMIT = 400


async def ensure(client: Client, migration: str, plan_hash: str, task_queue: str) -> None:
    """The migration's monitor runs; one that runs already is left alone."""
    await client.start_workflow(
        "MonitorWorkflow",
        {"plan": migration, "plan_hash": plan_hash},
        id=ids.monitor(migration),
        task_queue=task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary=f"monitor of {migration}",
    )


class WatchActivities:
    """See the module."""

    def __init__(self, context: Context, webhook: Webhook | None = None) -> None:
        self.context = context
        self.webhook = webhook
        self._posted: dict[str, float] = {}

    @implements(s.WATCH)
    async def watch(self, request: m.WatchRequest) -> m.Watched:
        """Looks until something else is found than the run shows, or the shift or the worker ends."""
        ending = asyncio.create_task(activity.wait_for_worker_shutdown())
        end = time.monotonic() + SHIFT
        try:
            while True:
                begun = time.monotonic()
                seen = await self._round(request.ref)
                changed = request.shown is None or sorted(one.key for one in seen.findings) != sorted(request.shown)
                if changed or seen.ended or ending.done() or time.monotonic() > end:
                    return seen
                await asyncio.wait([ending], timeout=max(EVERY - (time.monotonic() - begun), 0.1))
        finally:
            ending.cancel()

    async def _round(self, ref: m.Ref) -> m.Watched:
        """One look at each service, all at once; each is told of as soon as it has been looked at."""
        try:
            rows = await stages.get_stages(self.context.control, ref.migration)
            if None in rows and rows[None].stage == "cleaned":
                return m.Watched(ended=True)
            await self.context.require_in_force(ref)
            plan = await self.context.plan(ref)
        except (Refused, ConfigError):
            raise  # for the run: another plan, or what a person has to set right before anything can be looked at
        except FAILURES as error:
            try:
                # known from an earlier look, or still to be read; without it there is nothing else to look at
                plan = await self.context.plan(ref)
            except FAILURES:
                return await self._blind(ref, _words(error))
        found = await asyncio.gather(*(self._look(ref, plan, name) for name in plan.services))
        listed = by_importance(one for findings in found for one in findings)
        return m.Watched(services=len(found), findings=[_told(one) for one in listed])

    async def _blind(self, ref: m.Ref, text: str) -> m.Watched:
        finding = Finding("unreadable", "critical", "", "control", text, "bring it back: nothing is watched without it")
        await self._tell(finding.alert(ref.migration))
        return m.Watched(findings=[_told(finding)])

    async def _look(self, ref: m.Ref, plan: Plan, service: str) -> list[Finding]:
        pair = pair_of(plan, service, self.context.settings.database)
        try:
            findings = (await permanent.look(self.context.control, plan, pair, mend=True)).findings
        except (Refused, ConfigError):
            raise
        except FAILURES as error:
            remedy = "set it right: this service is not watched without it"
            findings = [Finding("unreadable", "critical", service, "look", _words(error), remedy)]
        for one in findings:
            await self._tell(one.alert(ref.migration))
        return findings

    async def _tell(self, alert: Alert) -> None:
        """Where the control database does not take it (away, read-only, full), the log and the webhook have it."""
        try:
            async with asyncio.timeout(TELLING):
                await raise_alert(self.context.control, alert, webhook=self.webhook)
        except FAILURES as error:
            _log.warning("an alert could not be kept (%s): %s", alert.kind, _words(error))
            await self._post(alert)

    async def _post(self, alert: Alert) -> None:
        key, now = f"{alert.service}/{alert.kind}/{alert.subject}", time.monotonic()
        if self.webhook is None or now - self._posted.get(key, -WINDOW.total_seconds()) < WINDOW.total_seconds():
            return
        self._posted[key] = now
        if problem := await self.webhook.post(f"cutover-{alert.migration}-{key}-{int(now)}", alert.body()):
            _log.warning("the webhook of an alert that could not be kept (%s) failed: %s", alert.kind, problem)


def _words(error: Exception) -> str:
    """Never a server's own text, which may quote a row."""
    if isinstance(error, CutoverError):
        return str(error)
    state = f", SQLSTATE {error.sqlstate}" if isinstance(error, asyncpg.PostgresError) else ""
    return f"a database refuses a statement or does not answer ({type(error).__name__}{state})"


def _told(one: Finding) -> m.Found:
    text = f"{one.service}: {one.text} → {one.remedy}" if one.service else f"{one.text} → {one.remedy}"
    return m.Found(key=f"{one.service}/{one.watch}/{one.subject}", severity=one.severity, text=text[:TEXT_LIMIT])
