"""Calls of activities, which wait out an outage, and the plan a run goes by, which a person may replace.

All calls of activities go through `call`, so that an unreachable database is said in words and waited
out. What a call names as its plan is always the one the run goes by now.
"""

import asyncio
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, CancelledError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import signatures
    from activities.models import BindRequest, Decision, Ref, Rules
    from activities.signatures import Signature
    from workflows import deadlines, timeouts
    from workflows.desk import Desk
    from workflows.failures import RollbackRequested, StepFailed, explain, is_transient

In = TypeVar("In")
Out = TypeVar("Out")

CHANGES_SHOWN = 500


class Calling(Desk):
    """See the module."""

    ref: Ref
    rules: Rules

    def check_interrupt(self) -> None:
        """A cancellation that was swallowed by a completion in the same activation is raised here."""
        if workflow.cancellation_reason() is not None and not self.shielded:
            raise CancelledError("the workflow was cancelled")
        if self.rollback_wanted is not None and not self.shielded:
            raise RollbackRequested(self.rollback_wanted)

    def _interrupted(self) -> bool:
        return not self.shielded and (workflow.cancellation_reason() is not None or self.rollback_wanted is not None)

    async def call(
        self, signature: Signature[In, Out], argument: In, *, summary: str = "", heed_interrupts: bool = True
    ) -> Out:
        """Run an activity. What passes by itself is waited out, in words; what does not raises StepFailed."""
        round_number = 0
        argument = self.named_now(argument)
        while True:
            chosen = timeouts.options(signature.kind, round_number)
            handle = workflow.start_activity(
                signature.name,
                argument,
                result_type=signature.returns,
                start_to_close_timeout=chosen.start_to_close,
                heartbeat_timeout=chosen.heartbeat,
                retry_policy=chosen.retry,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=summary or None,
            )
            interruptible = round_number > 0 and heed_interrupts and signature.kind != "section"
            try:
                if interruptible:
                    await workflow.wait_condition(lambda: handle.done() or self._interrupted())  # noqa: B023
                    if not handle.done():
                        handle.cancel()
                result: Out = await (self._to_its_end(handle) if signature.kind == "section" else handle)
            except asyncio.CancelledError:
                self.set_trouble("")
                if interruptible and not handle.done():
                    # nobody waited for the activity itself, so nothing has ended it
                    handle.cancel()
                    await workflow.wait([handle])
                    handle.cancelled() or handle.exception()
                raise
            except ActivityError as error:
                if is_cancelled_exception(error):
                    self.set_trouble("")
                    self.check_interrupt()
                    raise
                kind, text = explain(error)
                if not is_transient(kind, error, round_number):
                    self.trouble = ""
                    raise StepFailed(kind, text) from error
                self.set_trouble(text)
                round_number += 1
            else:
                self.set_trouble("")
                return result

    async def _to_its_end(self, handle: workflow.ActivityHandle[Out]) -> Out:
        """The fenced section is not cancelled half way: what was asked for meanwhile takes effect after it."""
        try:
            return await asyncio.shield(handle)
        except asyncio.CancelledError:
            if handle.done():
                raise
            return await handle

    # --- the plan --------------------------------------------------------------------------------

    async def bind_plan(self) -> Rules:
        """The rules of the plan in force. Raises StepFailed where the run may not go by it."""
        request = BindRequest(plan=self.start.plan, plan_hash=self.plan_hash, workflow_id=workflow.info().workflow_id)
        return await self.call(signatures.BIND_PLAN, request)

    def go_by(self, rules: Rules) -> None:
        """From here on these rules hold; where a person adopted them, what the former ones decided is void."""
        replaced, self.plan_hash = self.plan_hash, rules.plan_hash
        self.rules = rules
        self.ref = Ref(migration=self.start.plan, plan_hash=rules.plan_hash, service=self.service or None)
        if rules.former is None:
            return
        self.adopted = True
        self.deadlines = deadlines.moved(self.deadlines, rules.former, rules)
        names = f"plan {rules.plan_hash[:12]} in place of {replaced[:12]}, adopted by {rules.adopted_by or 'a person'}"
        for opened in self.gates.values():
            opened.replan(rules.approvals_required, names)
        self.progress["plan adopted"] = f"{names}: {rules.changes}"[:CHANGES_SHOWN]
        self.show()

    async def heed_adoption(self) -> bool:
        """Take over the plan that a person has adopted; whether there was one.

        Whoever calls this is between two steps. A way back is never held up by it.
        """
        if self.shielded:
            return False
        self.plan_news = False
        try:
            rules = await self.bind_plan()
        except StepFailed as failed:
            self.refuse("plan_adopted", f"the adopted plan could not be taken over: {failed.text}")
            return False
        except BaseException:
            self.plan_news = True
            raise
        if rules.plan_hash == self.plan_hash:
            return False
        self.go_by(rules)
        return True

    def named_now(self, argument: In) -> In:
        """The argument with the plan the run goes by now; a decision keeps the plan that it was made on."""
        ref = argument if isinstance(argument, Ref) else getattr(argument, "ref", None)
        if isinstance(argument, Decision) or not isinstance(ref, Ref) or ref.plan_hash == self.plan_hash:
            return argument
        present = ref.model_copy(update={"plan_hash": self.plan_hash})
        changed = present if argument is ref else argument.model_copy(update={"ref": present})  # type: ignore[attr-defined]
        return changed  # type: ignore[return-value]  # the same model as the argument
