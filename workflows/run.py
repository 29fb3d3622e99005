"""The base of every workflow: status, gates, parking, pausing, steps.

A concrete run has `@workflow.init` and calls `begin` first. All waiting goes through `wait`, so that
messages are recorded, and a rollback, a cancellation or an adopted plan is heard wherever a run waits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import ids, signatures
    from activities.models import AlertRequest, Decision, GateRequest, Readings, Ref, StageChange
    from activities.signatures import Signature
    from workflows import deadlines, timeouts
    from workflows.calling import Calling
    from workflows.desk import Parked
    from workflows.failures import PLAN_REPLACED, Rejected, StepFailed
    from workflows.gates import Gate, OpenGate, person
    from workflows.messages import RefusedMessage, StartT

In = TypeVar("In")
Out = TypeVar("Out")

#: Stages of a service that a cleanup run may be waiting for.
OF_CLEANUP = ("released", "rolled-back")


class Run(Calling, Generic[StartT]):
    """One durable run. `Desk` holds its state and answers messages; this class waits and acts."""

    start: StartT

    def __init__(self, payload: Any, model: type[StartT]) -> None:
        super().__init__(payload, model)
        self._beside: dict[str, asyncio.Task[None]] = {}

    async def begin(self) -> None:
        """Check the input and bind to the plan. A run that may not start fails here, having done nothing."""
        if self.input_problem:
            self.fail(self.input_problem, "BadInput")
        plan = self.start.plan
        self.say("the plan to be read from the control database", state="RUNNING")
        try:
            self.go_by(await self.bind_plan())
        except StepFailed as failed:
            self.fail(failed.text, failed.kind)
        if self.service and self.rules.service(self.service) is None:
            known = ", ".join(one.name for one in self.rules.services)
            self.fail(f"plan {plan!r} has no service {self.service[:60]!r}; it has: {known}", "Refused")

    def fail(self, text: str, kind: str) -> None:
        """End the run as failed. Only for refusals before anything was done."""
        self.say(f"nothing: refused: {text}", state="NEEDS_ATTENTION")
        raise ApplicationError(text, type=kind, non_retryable=True) from None

    # --- waiting ---------------------------------------------------------------------------------

    async def wait(self, until: Callable[[], bool], length: timedelta | None = None, summary: str = "") -> bool:
        """Wait for a condition; False when the time is over.

        Records messages as they arrive, and takes over a plan that is adopted meanwhile.
        """
        end = workflow.now() + length if length is not None else None
        while True:
            await self._record_decisions()
            if self.plan_news:
                await self.heed_adoption()
            self.check_interrupt()
            if until():
                return True
            left = end - workflow.now() if end is not None else None
            if left is not None and left <= timedelta(0):
                return False
            try:
                await workflow.wait_condition(
                    lambda: until() or bool(self.unrecorded) or self._interrupted() or self._news(),
                    timeout=left,
                    timeout_summary=summary or None,
                )
            except TimeoutError:
                continue

    async def sleep(self, length: timedelta, summary: str) -> None:
        """A durable timer that messages can interrupt but not shorten."""
        await self.wait(lambda: False, length, summary)

    def _news(self) -> bool:
        return self.plan_news and not self.shielded

    async def may_proceed(self) -> None:
        """Between two steps: hold while paused, and go by the plan in force."""
        self.check_interrupt()
        while self.paused_by and not self.shielded:
            with self.saying(f"'resume' (paused by {self.paused_by})", "PAUSED"):
                await self.wait(lambda: not self.paused_by or self.shielded)
        await self._record_decisions()
        await self.settle_adoption()

    async def settle_adoption(self) -> None:
        """Take over an adopted plan, and do what it asks for beyond other rules."""
        if self._news():
            await self.heed_adoption()
        if self.adopted and not self.shielded:
            self.adopted = False
            await self.after_adoption()

    async def after_adoption(self) -> None:
        """What a run has to do once when it has taken another plan over; called between two steps."""

    async def _record_decisions(self) -> None:
        """Write what people decided to the control database, in order; a refused approval stops counting."""
        while self.unrecorded:
            decision: Decision = self.unrecorded[0]
            try:
                await self.call(signatures.RECORD_DECISION, decision, heed_interrupts=False)
            except StepFailed as failed:
                self.refuse(decision.action, f"{decision.action} of {decision.by}: {failed.text}")
                gate = self.gates.get(decision.gate)
                if gate is not None and decision.action == "approve":
                    gate.approvals.pop(person(decision.by), None)
                self.plan_news = self.plan_news or failed.kind == PLAN_REPLACED
            self.unrecorded.pop(0)

    # --- steps -----------------------------------------------------------------------------------

    async def step(self, name: str, work: Callable[[], Awaitable[Out]]) -> Out:
        """A step that may not be skipped: it parks when it fails for good, until `retry` succeeds."""
        result = await self._step(name, work, skippable=False)
        assert result is not None
        return result[0]

    async def optional(self, name: str, work: Callable[[], Awaitable[Out]]) -> Out | None:
        """A step that a person may skip; None when skipped."""
        result = await self._step(name, work, skippable=True)
        return result[0] if result else None

    async def _step(self, name: str, work: Callable[[], Awaitable[Out]], *, skippable: bool) -> tuple[Out] | None:
        while True:
            await self.may_proceed()
            self.say(f"{name} to finish", state="RUNNING")
            try:
                return (await work(),)
            except StepFailed as failed:
                if failed.kind == PLAN_REPLACED and await self.heed_adoption():
                    continue
                if await self.park(name, failed.text, skippable=skippable) == "skip":
                    return None

    async def do(self, name: str, signature: Signature[In, Out], argument: In) -> Out:
        """The usual step: one activity."""
        return await self.step(name, lambda: self.call(signature, argument, summary=name))

    async def park(self, step: str, text: str, *, skippable: bool = False) -> str:
        """Hold until a person answers `retry` or, where allowed, `skip`. A rollback is raised."""
        self.parked = Parked(step=step, text=text, skippable=skippable)
        back = self.can_roll_back() and not self.must_finish()
        answers = "'retry'" + (" or 'skip'" if skippable else "") + (" or 'rollback'" if back else "")
        try:
            with self.saying(f"{answers}: {step}: {text}", "NEEDS_ATTENTION"):
                where = f"{workflow.info().workflow_id}: {step}"
                await self.alert("parked", "warning", f"{step}: {text}", subject=where, best_effort=True)
                await self.wait(lambda: self.parked is None or bool(self.parked.answer))
                return self.parked.answer
        finally:
            self.parked = None

    async def alert(self, kind: str, severity: Any, text: str, *, subject: str = "", best_effort: bool = False) -> None:
        """Raise an alert; one that must not hold anything up gives up after a few attempts.

        `subject` tells it from another alert of its kind, which would else be taken for a repetition.
        """
        request = AlertRequest(
            ref=Ref(migration=self.start.plan, plan_hash=self.plan_hash, service=self.service or None),
            kind=kind,
            severity=severity,
            text=text[: timeouts.TEXT_LIMIT],
            workflow_id=workflow.info().workflow_id,
            subject=subject,
        )
        try:
            if not best_effort:
                await self.call(signatures.RAISE_ALERT, request)
                return
            await workflow.execute_activity(
                signatures.RAISE_ALERT.name,
                request,
                start_to_close_timeout=timedelta(seconds=20),
                retry_policy=timeouts.retry(timeouts.BEST_EFFORT_ATTEMPTS),
            )
        except (ActivityError, StepFailed) as error:
            if is_cancelled_exception(error):
                raise
            workflow.logger.warning("an alert could not be raised: %s", error)

    async def heed_failover(self, sample: Readings) -> None:
        """Park where a server is another one than the evidence came from: a person has to look (design 5.6)."""
        found = next((one for one in sample.readings if one.name == "servers" and one.breached), None)
        if found is not None and found.value is not None:
            await self.park("failover", found.detail)

    # --- gates -----------------------------------------------------------------------------------

    async def gate(self, gate: Gate) -> OpenGate:
        """Measure, wait for approvals, measure again; returns when the gate holds, parks on a rejection."""
        while True:
            await self.may_proceed()
            opened = OpenGate(gate.asking(self.rules.approvals_required), workflow.now())
            self.gates[gate.name] = opened
            try:
                await self._pass_gate(opened)
                return opened
            except Rejected as rejected:
                del self.gates[gate.name]
                await self.park(f"gate {gate.name!r}", rejected.text)
            finally:
                self.gates.pop(gate.name, None)

    async def _pass_gate(self, opened: OpenGate) -> None:
        gate = opened.gate
        while True:
            await self._await_evidence(opened)
            await self._await_approvals(opened)
            await self.may_proceed()
            if gate.measure is None:
                # nothing is measured that would tell that approvals were given to a plan of the past
                await self.heed_adoption()
            if not (opened.holds and opened.enough):
                continue
            if gate.measure is None or gate.required == 0:
                return
            seen = opened.code
            again = await self.remeasure(gate, seen)
            # measuring may take hours: a rejection or an expiry in the meantime counts
            opened.expire(workflow.now(), self.rules.approvals_expire)
            if not opened.enough:
                continue
            opened.evidence = again
            if again.ok and not again.worse:
                return
            opened.void(again.why or "; ".join(again.problems) or "the evidence is worse than what was approved")

    async def remeasure(self, gate: Gate, against: str) -> Any:
        """The gate's evidence of now, compared with the one of that code."""
        assert gate.measure is not None
        measure = gate.measure
        request = GateRequest(ref=self.ref, gate=gate.name, against=against, to_side=gate.to_side)
        return await self.step(f"measuring gate {gate.name!r}", lambda: self.call(measure, request))

    async def _await_evidence(self, opened: OpenGate) -> None:
        """Measure until the evidence holds; `retry` measures at once."""
        if opened.gate.measure is None:
            return
        began = workflow.now()
        while True:
            opened.evidence = await self.remeasure(opened.gate, "")
            if opened.evidence.ok:
                return
            self.measure_now = False
            self.say(opened.waiting_for(), state="WAITING")
            await self.wait(
                lambda: self.measure_now or opened.evidence is None,
                timeouts.growing(timeouts.gate_interval(self.rules.hour), workflow.now() - began),
                "gate is measured again",
            )
            if self.measure_now:
                began = workflow.now()
            await self.may_proceed()

    async def _await_approvals(self, opened: OpenGate) -> None:
        while True:
            await self._record_decisions()
            expire = self.rules.approvals_expire
            opened.expire(workflow.now(), expire)
            if opened.rejected is not None:
                raise Rejected(opened.rejected)
            if opened.enough or not opened.holds:
                return
            self.say(opened.waiting_for(), state="WAITING")
            count = len(opened.approvals)
            expiry = opened.next_expiry(expire)
            await self.wait(
                lambda: (
                    opened.rejected is not None or len(opened.approvals) != count or not opened.holds  # noqa: B023
                ),
                expiry - workflow.now() if expiry is not None else None,
                "approvals expire",
            )

    # --- beside ----------------------------------------------------------------------------------

    def begin_beside(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A task of that name, once, which a gate, a parked step or a pause of the run does not stop."""
        if name not in self._beside:
            self._beside[name] = asyncio.create_task(work())

    async def end_beside(self, name: str) -> bool:
        """Before the run ends or continues as new: returns once the task has ended; whether there was one."""
        task = self._beside.pop(name, None)
        if task is None:
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return True

    # --- ends ------------------------------------------------------------------------------------

    async def set_stage(self, stage: str, detail: str = "") -> None:
        """Write a stage to the control database and wake the programme."""
        await self.step(f"recording stage {stage!r}", lambda: self.record_stage(stage, detail))
        await self.tell_stage(stage)

    async def record_stage(self, stage: str, detail: str = "") -> None:
        """Raises StepFailed where it is refused."""
        change = StageChange(ref=self.ref, stage=stage, detail=detail, actor=workflow.info().workflow_id)
        await self.call(signatures.SET_STAGE, change, summary=f"recording stage {stage!r}")

    async def tell_stage(self, stage: str) -> None:
        """Wake those who may wait for it."""
        news = {"service": self.service, "stage": stage}
        await self.tell(ids.migration(self.start.plan), "stage_changed", news)
        if stage in OF_CLEANUP:
            await self.tell(ids.cleanup(self.start.plan), "stage_changed", news)

    async def tell(self, workflow_id: str, signal: str, payload: dict[str, str]) -> bool:
        """Signal another run; False when it is not running."""
        if workflow_id == workflow.info().workflow_id:
            return False
        sending = asyncio.ensure_future(workflow.get_external_workflow_handle(workflow_id).signal(signal, payload))
        try:
            # a cancellation that reached the signal together with its answer would be taken for nondeterminism
            await asyncio.shield(sending)
        except ApplicationError:
            return False
        except asyncio.CancelledError:
            await workflow.wait([sending])
            sending.exception()  # the answer is of no use any more
            raise
        return True

    async def hand_on(self, **changes: Any) -> None:
        """Continue as new with everything a person has seen or said kept.

        Returns where a message has arrived meanwhile that this run has to act on: the next one would not know it.
        """
        await self._record_decisions()
        await workflow.wait_condition(workflow.all_handlers_finished)
        self.check_interrupt()
        if self.told_to_stay():
            return
        workflow.continue_as_new(
            self.start.model_copy(update={"plan_hash": self.plan_hash, "carried": self.carried(), **changes})
        )

    def told_to_stay(self) -> bool:
        """Whether a message has changed what this run does next."""
        return False

    async def end(self, text: str) -> None:
        """Record what is left and show that the run is done."""
        await self._record_decisions()
        await workflow.wait_condition(workflow.all_handlers_finished)
        self.say(text, state="DONE", phase="done")

    def deadline(self, name: str) -> datetime:
        """A deadline of `workflows.deadlines`, set once and kept over continue-as-new; another plan moves it."""
        return self.deadlines.setdefault(name, workflow.now() + deadlines.LENGTHS[name](self.rules))

    def require(self, condition: bool, text: str) -> None:
        """Refuse to start without a predecessor's evidence."""
        if not condition:
            self.fail(text, "GateClosed")


__all__ = ["RefusedMessage", "Run"]
