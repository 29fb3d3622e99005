"""Phase 3 of one service: read switch, soak, write switch, deprecation, and the way back from each (5.5 to 5.7).

The way forward: gate `read` → read flag → soak → gate `write` → reverse stream ready → the fenced
section (one activity) → stage `switched` → deprecation → stage `deprecated` → handed over to cleanup.
`rollback` is heard wherever the run waits; one that arrives in the fenced section takes effect right
after it. Compensations are registered before their step and run in reverse; then the run waits at
gate `switch-again` and starts over from the read gate, without a new backfill.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from temporalio import workflow
from temporalio.exceptions import is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import FlagChange, GivenUpQuery, Position, SampleRequest, SwitchOrder, SwitchReport
    from workflows import timeouts
    from workflows.deadlines import DEPRECATION
    from workflows.failures import PLAN_REPLACED, RollbackRequested, StepFailed
    from workflows.gates import Gate
    from workflows.messages import Action, Approval, Message, RefusedMessage, ServiceStart
    from workflows.preparation import automatic_items, open_tasks
    from workflows.run import Run
    from workflows.soak import SoakBreached, Soaking
    from workflows.summaries import Summarising
    from workflows.writeswitch import WriteSwitch

#: Stages that say that the writes have moved.
MOVED = ("switched", "deprecated")
MAY_START = ("ready", "rolled-back", *MOVED)


@workflow.defn(name="SwitchoverWorkflow")
class SwitchoverWorkflow(Soaking, WriteSwitch, Summarising, Run[ServiceStart]):
    """`{"plan": "ai-trader", "service": "trading_engine"}` once the service is at stage `ready`."""

    title = "Switchover"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, ServiceStart)
        self.compensations: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self.handed_over: Approval | None = None
        self.may_hand_over = False
        self.rolling_back = False
        self.ending = False
        #: The service's side is the writable one, so a rollback pauses writes.
        self.moved = False
        self.last_switch: SwitchReport | None = None

    @workflow.signal(name="hand_over", description="Cleanup takes the service over; the way back ends here")
    def on_hand_over(self, *payloads: Any) -> None:
        self._signal("hand_over", payloads)

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        resume = self.start.resume
        if resume == "soak":
            self._register_reads_back()
        elif resume:
            self.moved = True
            self._register_back()
        else:
            resume = await self._where_to_begin()
        if resume in ("soak", "found", "deprecation", "hand-over"):
            self.begin_summaries()
        try:
            while resume != "released":
                resume = await self._forwards_or_back(resume)
        except BaseException as error:
            if is_cancelled_exception(error):
                await asyncio.shield(asyncio.create_task(self._cancelled()))
            raise
        await self.tell_stage("released")
        await self.end("nothing: handed over to cleanup")
        return "released"

    async def _forwards_or_back(self, resume: str) -> str:
        """From there to the hand-over, or the way back; where to go on, "released" at the end."""
        try:
            if resume == "found":
                # The switch was made, and its run ended before it could say so.
                await self.finish_switch("service", f"found-{workflow.uuid4()}")
                await self.set_stage("switched", "found switched")
                resume = "deprecation"
            if resume == "read":
                await self._switch_reads()
                resume = "soak"
            if resume == "soak":
                await self.soak()
                await self._switch_writes()
                resume = "deprecation"
            if resume == "deprecation":
                await self._deprecate()
            await self._await_hand_over()
        except RollbackRequested as requested:
            await self._roll_back(requested.message)
        except SoakBreached as breached:
            await self._soak_breached(breached)
        else:
            return "released"
        return "read"

    async def _where_to_begin(self) -> str:
        """Refuse without stage `ready`; a run started again after a cancellation goes on where the service stands."""
        position = await self._position()
        if position.stage in ("released", "archived"):
            self.fail(f"{self.service} was handed over to cleanup; nothing is left to switch", "GateClosed")
        self.require(
            position.stage in MAY_START or position.primary_side == "service",
            f"{self.service} is not ready for a switchover: its stage is {position.stage or 'not begun'!r}, 'ready' is "
            f"needed (cutover start replication {self.start.plan} {self.service})",
        )
        if position.primary_side != "service":
            if position.stage in MOVED:
                # The writes went back, and the run that brought them ended before it could say so.
                await self.set_stage("rolled-back", "found rolled back")
            return "read"
        self.moved = True
        self._register_back()
        if position.stage == "deprecated":
            return "hand-over"
        return "deprecation" if position.stage == "switched" else "found"

    async def _position(self) -> Position:
        """Where the service stands; a switch that was left half done is ended first, one way or another."""
        position = await self.do("reading where the service stands", s.POSITION, self.ref)
        if not position.unfinished:
            return position
        order = SwitchOrder(ref=self.ref, switch_id=position.unfinished, to_side=position.unfinished_to)
        await self.do("ending the switch that was left half done", s.FENCED_SECTION, order)
        return await self.do("reading where the service stands", s.POSITION, self.ref)

    # --- forward ---------------------------------------------------------------------------------

    async def _switch_reads(self) -> None:
        self.compensations.clear()
        self.say("the gate of the read switch", phase="read gate")
        await open_tasks(self, "switchover", self.ref, self.service)
        await self.gate(Gate("read", f"Send the reads of {self.service} to its new database?", 1, s.MEASURE_READ))
        self._register_reads_back()
        self.say("the read switch", phase="read switch")
        flag = FlagChange(ref=self.ref, read_from_new=True)
        acks = await self.do("the read switch and its acknowledgements", s.SET_READ_FLAG, flag)
        self.begin_summaries()
        self.progress["read switch"] = f"{acks.acked} instances acknowledged, {acks.lapsed} leases ran out"

    async def _switch_writes(self) -> None:
        approved = await self.write_gate()
        self._register_back()
        await self.do("taking foreign keys across services off the monolith", s.DETACH_KEYS, self.ref)
        report = await self.switch_writes("service", approved)
        self.last_switch, self.moved = report, True
        await self.set_stage("switched", f"epoch {report.epoch}, pause {report.pause_ms:.0f} ms")

    def _register_reads_back(self) -> None:
        self.compensations.append(("reads back to the monolith", self._reads_back))

    def _register_back(self) -> None:
        if not self.compensations:
            self._register_reads_back()
        self.compensations.append(("foreign keys back on the monolith", self._keys_back))
        self.compensations.append(("the unused stream of the way back taken down", self._way_back_down))
        self.compensations.append(("writes back to the monolith", self._writes_back))

    # --- back ------------------------------------------------------------------------------------

    async def _roll_back(self, message: Message) -> None:
        """Run the compensations in reverse, alert, and wait for an approval to switch again."""
        reason = f": {message.reason}" if message.reason else ""
        await self._go_back(f"rollback by {message.by}{reason}", "critical")
        await self.set_stage("rolled-back", f"by {message.by}{reason}"[:200])
        self.rolling_back = False
        self.say("an approval to switch again", state="ROLLED_BACK", phase="rolled back")
        await self.gate(
            Gate("switch-again", f"{self.service} was rolled back by {message.by}{reason}. Begin its switchover again?")
        )

    async def _go_back(self, why: str, severity: str) -> None:
        """What was done is undone. Nothing can interrupt this but a parked step."""
        self.rolling_back = self.shielded = True
        self.may_hand_over = False
        self.say(f"the way back ({why})", state="RUNNING", phase="rolling back")
        while self.compensations:
            name, undo = self.compensations[-1]
            await undo()
            self.progress["rolled back"] = name
            self.compensations.pop()
        self.rollback_wanted = None
        self.moved = False
        self.deadlines.pop(DEPRECATION, None)
        await self.end_summaries()
        await self.alert("rollback", severity, f"{self.service}: {why}")
        self.shielded = False

    async def _keys_back(self) -> None:
        await self.do("putting foreign keys back on the monolith", s.RESTORE_KEYS, self.ref)

    async def _way_back_down(self) -> None:
        await self.take_down("service")

    async def _reads_back(self) -> None:
        await self.do("reads back to the monolith", s.SET_READ_FLAG, FlagChange(ref=self.ref, read_from_new=False))

    async def _writes_back(self) -> None:
        position = await self._position()
        if position.primary_side != "service":
            return
        if position.stage not in MOVED:
            # the switch was ended just now, or by a person's hand, and its old stream still stands
            await self.finish_switch("service", f"found-{workflow.uuid4()}")
        self.last_switch = await self.switch_writes("monolith", "")

    async def _soak_breached(self, breached: SoakBreached) -> None:
        await self._go_back(f"the soak was breached: {breached.text}", "critical")
        self.rolling_back = False
        self.phase = "soak breached"
        await self.park("soak", f"{breached.text}; reads are back at the monolith, 'retry' starts at the read gate")

    async def _cancelled(self) -> None:
        """A cancelled run leaves one writable side; what was done is undone unless the writes have moved already."""
        self.shielded = self.ending = True
        await self.end_summaries()
        text = f"{self.service}: the switchover run was cancelled; "
        try:
            position = await self._position()
            side = position.primary_side
            if position.stage in MOVED:
                self.compensations.insert(0, ("stage 'rolled-back'", self._stage_back))
            left = await self._undone() if side == "monolith" else []
            text += f"writable side: {side}" + (f"; not undone: {'; '.join(left)}" if left else "")
        except StepFailed as failed:
            text += f"how it stands is not known ({failed.text}): see cutover doctor, and start it again"
        self.say(f"nothing: {text}", state="NEEDS_ATTENTION", phase="cancelled")
        await self.alert("switchover-cancelled", "critical", text, best_effort=True)

    async def _stage_back(self) -> None:
        await self.set_stage("rolled-back", "its run was cancelled")

    async def _undone(self) -> list[str]:
        """Each compensation once; what failed, and why."""
        failures: list[str] = []
        for name, undo in reversed(self.compensations):
            try:
                await undo()
            except StepFailed as failed:
                failures.append(f"{name} ({failed.text})")
        return failures

    async def park(self, step: str, text: str, *, skippable: bool = False) -> str:
        """A run that was cancelled waits for nobody: there a step that would park has failed."""
        if self.ending:
            raise StepFailed("Cancelled", f"{step}: {text}")
        return await super().park(step, text, skippable=skippable)

    # --- deprecation -----------------------------------------------------------------------------

    async def _deprecate(self) -> None:
        """Keep the monolith current for as long as the plan says, looking around every hour."""
        self.say("the deprecation to end", phase="deprecation")
        while workflow.now() < (end := self.deadline(DEPRECATION)):
            self.say(f"the deprecation to last until {end.isoformat(timespec='seconds')}", state="WAITING")
            await self.wait(
                lambda: False, min(timeouts.summary_interval(self.rules.hour), end - workflow.now()), "deprecation"
            )
            await self._look_around()
            if workflow.info().is_continue_as_new_suggested():
                await self.hand_on(resume="deprecation")
        await self.may_proceed()
        await self.step("automatic checklist", self._automatic_items)
        await self.set_stage("deprecated")

    async def _automatic_items(self) -> None:
        """Of the whole phase. A summary or sample that is missing just now is taken, before anybody is asked."""
        try:
            await automatic_items(self, "switchover", self.ref)
        except StepFailed:
            await self.call(s.SUMMARISE, self.ref)
            await self._look_around()
            await automatic_items(self, "switchover", self.ref)

    async def _await_hand_over(self) -> None:
        """Rollback stays possible until a person gives the way back up in cleanup."""
        self.may_hand_over = True
        self.phase = "deprecated"
        while True:
            self.say("cleanup to take the service over; 'rollback' is possible until then", state="WAITING")
            interval = timeouts.summary_interval(self.rules.hour)
            if not await self.wait(lambda: self.handed_over is not None, interval, "hourly look"):
                await self._look_around()
                if workflow.info().is_continue_as_new_suggested():
                    await self.hand_on(resume="hand-over")
                continue
            # anybody can send a signal; what counts is what people approved, and until then the way back stands
            message, self.handed_over = self.handed_over, None
            assert message is not None
            query = GivenUpQuery(ref=self.ref, evidence=message.evidence)
            standing = await self.do("looking whether the way back was given up", s.GIVEN_UP, query)
            await self.may_proceed()
            why = await self._let_go(message) if standing.ok else standing.detail
            if not why:
                return
            self.refuse("hand_over", f"hand_over: {why}")

    async def _let_go(self, message: Approval) -> str:
        """The way back ends with stage `released`; where that is refused it stands as before: why."""
        self.handed_over, self.may_hand_over = message, False
        await self.end_summaries()
        self.say("stage 'released' to be recorded", state="RUNNING")
        try:
            await self.record_stage("released")
        except StepFailed as failed:
            self.handed_over, self.may_hand_over = None, True
            self.begin_summaries()
            return failed.text
        return ""

    def told_to_stay(self) -> bool:
        return self.handed_over is not None

    async def _look_around(self) -> None:
        """A sample; a breach alerts and leaves the decision to a person."""
        try:
            sample = await self.call(s.SAMPLE, SampleRequest(ref=self.ref))
        except StepFailed as failed:
            if failed.kind == PLAN_REPLACED:
                self.plan_news = True
                return
            await self.alert("watch-failed", "warning", failed.text, best_effort=True)
            return
        self.progress["thresholds breached"] = ", ".join(sample.breached) or "none"
        self.progress["reverse lag seconds"] = sample.lag_seconds
        await self.heed_failover(sample)
        if sample.breached:
            names = ", ".join(sample.breached)
            await self.alert("threshold", "warning", f"breached: {names}", subject=names, best_effort=True)

    # --- messages --------------------------------------------------------------------------------

    def can_roll_back(self) -> bool:
        return bool(self.compensations) and not self.rolling_back and self.handed_over is None

    def refuse_rollback(self) -> str:
        if self.handed_over is not None:
            return f"the way back of {self.service} was given up by {self.handed_over.by}"
        if self.rolling_back:
            return f"{self.service} is being rolled back already"
        return f"nothing of {self.service} has been switched; reads and writes are at the monolith"

    def rollback_note(self) -> str:
        if not self.can_roll_back():
            return ""
        if self.must_finish():
            return "Rollback possible once this step has succeeded; 'retry' it first."
        if not self.moved:
            return "Rollback possible now; before the write switch it pauses no writes."
        end = self.deadlines.get(DEPRECATION)
        last = self.last_switch.write_pause_ms if self.last_switch else 0.0
        pause = f"{last:.0f} ms" if last else "a few ms"
        until = f"until {end.isoformat(timespec='seconds')} and after it " if end else ""
        return f"Rollback possible {until}until cleanup; it would pause writes about {pause}."

    def consider(self, action: Action, payloads: Sequence[Any]) -> Callable[[], str]:
        if action != "hand_over":
            return super().consider(action, payloads)
        message = self.parse_hand_over(payloads)
        if self.handed_over is not None:
            return lambda: "handed over already"
        if not self.may_hand_over or self.rollback_wanted is not None:
            raise RefusedMessage(f"hand_over: not now; the run waits for {self.line()}"[:500])

        def change() -> str:
            self.handed_over = message
            self.decided("hand_over", message, evidence=message.evidence)
            return "handed over to cleanup"

        return change
