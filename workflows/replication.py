"""Phase 2 of one service: stream, backfill, first passes, dwell, gate `ready`; then it keeps watching.

Steps: 1 baseline of the clients' statistics, before anything changes them. 2 stream with backfill.
3 fences armed ALWAYS, which only the first copy has to be let through. 4 slot of the changed keys.
5 schedules of reconciliation. 6 a first full pass on every table. 7 at least `dual_write.at_least`
with samples of the thresholds. 8 gate `ready`, by evidence alone. 9 watch until cleanup releases it.
"""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import GivenUpQuery, ResolveRequest, SampleRequest
    from workflows import timeouts
    from workflows.deadlines import DWELL
    from workflows.failures import PLAN_REPLACED, StepFailed
    from workflows.gates import Gate
    from workflows.messages import ServiceStart, Waited
    from workflows.passing import Passing
    from workflows.preparation import open_tasks
    from workflows.relaying import Relaying

STARTS_FROM = ("prepared", "")
BACKFILL_POLL = timedelta(seconds=1)
BACKFILL_POLL_AT_MOST = timedelta(seconds=60)

#: Stages at which a restarted run goes straight to watching.
BEYOND_READY = ("ready", "switched", "deprecated", "rolled-back")
RELEASED = ("released", "archived")


@workflow.defn(name="ReplicationWorkflow")
class ReplicationWorkflow(Relaying, Passing[ServiceStart]):
    """`{"plan": "ai-trader", "service": "trading_engine"}` once the migration is prepared."""

    title = "Replication"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, ServiceStart)
        self.released = False
        self.scheduled = False

    @workflow.signal(name="released", description="Cleanup takes the service over; nothing is left to watch")
    def on_released(self, payload: Any = None) -> None:
        self.released = True

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        resume = self.start.resume
        if not resume:
            resume = await self._where_to_begin()
        if resume == "start":
            await self._replicate()
        elif resume != "end":
            self.begin_relaying()
        self.scheduled = resume != "end"
        if resume == "start":
            await self.set_stage("replicating")
            resume = "dwell"
        if resume == "dwell":
            await self._dwell()
            await self._become_ready()
        if resume != "end":
            await self._watch()
        await self.end("nothing: released by cleanup")
        return "released"

    async def _where_to_begin(self) -> str:
        """A run that was started again goes on where the control database says the service stands."""
        stages = await self.do("reading the stages", s.STAGES, self.ref)
        stage = stages.services.get(self.service, "")
        self.require(
            stages.migration not in ("", "registered") or bool(stage),
            f"migration {self.start.plan!r} is not prepared yet: run the preparation first "
            f"(cutover start preparation {self.start.plan})",
        )
        if stage in RELEASED:
            return "end"
        if stage in BEYOND_READY:
            return "watch"
        return "dwell" if stage == "replicating" else "start"

    async def _replicate(self) -> None:
        self.say("the copy to be made", phase="backfill")
        # without it the soak cannot tell whether writes became slower, which counts as a breach there
        await self.optional(
            "baseline of the clients' statistics",
            lambda: self.call(s.RECORD_BASELINE, self.ref, summary="baseline of the clients' statistics"),
        )
        await self.do("starting the stream", s.START_STREAM, self.ref)
        self.begin_relaying()
        await self.step("backfill", self._backfill)
        await self.do("arming the fences", s.ARM_FENCES, self.ref)
        await self.do("slot of the changed keys", s.PREPARE_CHANGED_KEYS, self.ref)
        await self.do("schedules of reconciliation", s.CREATE_SCHEDULES, self.ref)
        self.scheduled = True
        self.say("a first full pass over every table", phase="first reconciliation")
        for table in self._tables():
            # the gate `ready` runs a pass of its own over a table without a fresh one
            await self.optional(f"first full pass over {table}", lambda: self._reconcile(table))  # noqa: B023

    def _tables(self) -> list[str]:
        rules = self.rules.service(self.service)
        return [one.name for one in rules.tables] if rules else []

    async def _backfill(self) -> None:
        """Until every table is copied. What has been copied is not copied again by a run that goes on with it."""
        while not await self._copied():
            await self._confirm_release()
            await self.hand_on(resume="start")

    async def _copied(self) -> bool:
        """Copied by the databases themselves, or by an activity of ours beside the looking."""
        if not self.carries:
            return await self._await_copied(None)
        copy = asyncio.create_task(self.call(s.COPY_ROWS, self.ref, summary="the first copy"))
        try:
            return await self._await_copied(copy)
        finally:
            copy.cancel()
            await asyncio.gather(copy, return_exceptions=True)

    async def _await_copied(self, copy: asyncio.Task[None] | None) -> bool:
        """Poll, with growing pauses; False where the history has grown long. Raises what the copy raised."""
        self.waited = self.waited or Waited(began=workflow.now())
        began = self.waited.began
        while True:
            if copy is not None and copy.done():
                copy.result()
                copy = None
            progress = await self.call(s.BACKFILL_PROGRESS, self.ref)
            for one in progress.tables:
                share = f"{one.rows} of about {max(one.rows_estimated, one.rows)} rows, {one.bytes} bytes"
                self.progress[f"backfill {one.table}"] = f"{one.state}: {share}"
            if progress.complete:
                self.progress.pop("backfill done about", None)
                self.progress["backfill"] = f"complete: {progress.rows} rows"
                self.waited = None
                return True
            if progress.rows and progress.rows_estimated > progress.rows:
                left = (workflow.now() - began) * ((progress.rows_estimated - progress.rows) / progress.rows)
                self.progress["backfill done about"] = (workflow.now() + left).isoformat(timespec="seconds")
            self.progress["backfill"] = f"{progress.rows} of about {progress.rows_estimated} rows"
            self.say("the backfill to be copied", state="WAITING")
            # a tenth of what it has taken so far: never late by more than that, and few events over a day
            pause = min(max((workflow.now() - began) / 10, BACKFILL_POLL), BACKFILL_POLL_AT_MOST)
            await self.wait(lambda: copy is not None and copy.done(), pause, "backfill is polled")  # noqa: B023
            if workflow.info().is_continue_as_new_suggested():
                return False

    async def after_adoption(self) -> None:
        """Passes are made on the cadence of the plan in force."""
        await super().after_adoption()
        if self.scheduled and not self.released:
            await self.do("schedules of reconciliation", s.CREATE_SCHEDULES, self.ref)

    async def _reconcile(self, table: str) -> None:
        result = await self.make_pass(table)
        self.progress[f"differences {table}"] = result.differences
        if result.differences:
            request = ResolveRequest(ref=self.ref, table=table, report_id=result.report_id)
            resolved = await self.call(s.RESOLVE_CONFLICTS, request, summary=table)
            self.progress[f"repaired {table}"] = resolved.refused or resolved.repaired

    async def _dwell(self) -> None:
        """Write to both sides for as long as the plan says, looking around now and then."""
        end = self.deadline(DWELL)
        self.say(f"the dual-write phase to last until {end.isoformat(timespec='seconds')}", phase="dual-write")
        while workflow.now() < end:
            await self.may_proceed()
            await self._confirm_release()
            end = self.deadline(DWELL)
            interval = timeouts.dwell_interval(self.rules.dual_write_at_least, self.rules.watch_every)
            self.say(f"the dual-write phase to last until {end.isoformat(timespec='seconds')}", state="WAITING")
            await self.wait(lambda: self.adopted, min(interval, end - workflow.now()), "dual-write phase")
            if self.adopted:
                continue
            await self._look_around()
            end = self.deadline(DWELL)
            if workflow.info().is_continue_as_new_suggested():
                await self.hand_on(resume="dwell")

    async def _become_ready(self) -> None:
        self.say("the evidence to hold", phase="ready?")
        await open_tasks(self, "dual_write", self.ref, self.service)
        await self.gate(
            Gate("ready", "No confirmed difference, thresholds kept: ready for the switchover?", 0, s.MEASURE_READY)
        )
        await self.set_stage("ready")

    async def _watch(self) -> None:
        """Until cleanup releases the service: thresholds are sampled, loose keys' queues processed."""
        self.phase = "watching"
        while True:
            await self.settle_adoption()
            await self._confirm_release()
            if self.released:
                return
            interval = max(self.rules.watch_every, timedelta(seconds=1))
            self.say("cleanup to release the service; watching the stream and its thresholds", state="WAITING")
            if await self.wait(lambda: self.released or self.adopted, interval, "watching"):
                continue
            await self._look_around()
            if workflow.info().is_continue_as_new_suggested():
                await self.hand_on(resume="watch")

    async def _confirm_release(self) -> None:
        """Anybody can send a signal, at any time; what counts is that people have given up the way back."""
        if not self.released:
            return
        query = GivenUpQuery(ref=self.ref)
        standing = await self.do("looking whether the way back was given up", s.GIVEN_UP, query)
        if not standing.ok:
            self.released = False
            self.refuse("released", f"released: {standing.detail}")

    def told_to_stay(self) -> bool:
        return self.released

    async def _look_around(self) -> None:
        """One sample. A breach alerts and goes on: what gates is measured at the gates."""
        try:
            sample = await self.call(s.SAMPLE, SampleRequest(ref=self.ref))
            await self.call(s.PROCESS_LOOSE_KEYS, self.ref)
        except StepFailed as failed:
            if failed.kind == PLAN_REPLACED:
                self.plan_news = True
                return
            self.progress["last sample"] = f"failed: {failed.text}"
            await self.alert("watch-failed", "warning", failed.text, best_effort=True)
            return
        self.progress["lag seconds"] = sample.lag_seconds
        self.progress["open differences"] = sample.differences
        self.progress["thresholds breached"] = ", ".join(sample.breached) or "none"
        if sample.breached:
            names = ", ".join(sample.breached)
            await self.alert("threshold", "warning", f"thresholds breached: {names}", subject=names, best_effort=True)
        self.show()
