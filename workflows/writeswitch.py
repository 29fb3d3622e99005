"""The change of the writable side: gate, reverse stream, fenced section, and what follows it (5.6)."""

from collections.abc import Sequence
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import SideName, SwitchOrder, SwitchReport
    from workflows import timeouts
    from workflows.failures import APPROVAL_LAPSED, PLAN_REPLACED, StepFailed
    from workflows.gates import Gate
    from workflows.messages import Approval, parse
    from workflows.run import Run


#: Runs from before left the way back standing while the gate was open again.
TAKEN_DOWN = "way-back-down-before-the-write-gate-opens-again"


class WriteSwitch(Run[Any]):
    """Forward with evidence and approvals, back without either."""

    #: The plan under which the write gate was passed: its approvals stand for nothing under another one.
    approved_under: str = ""

    async def write_gate(self) -> str:
        """Wait for evidence and the plan's number of approvals; the code they saw."""
        self.phase = "write gate"
        opened = await self.gate(self._gate())
        self.approved_under = self.plan_hash
        return opened.code

    def _gate(self) -> Gate:
        return Gate(
            "write",
            f"Make the new database of {self.service} the writable one?",
            measure=s.MEASURE_WRITE,
            needs_evidence=True,
            by_plan=True,
        )

    async def switch_writes(self, to_side: SideName, approved: str) -> SwitchReport:
        """Try until it is done; after a few undone attempts park. `approved` is "" for a rollback, which needs none."""
        undone = 0
        while True:
            self.say(f"the writes to move to the {to_side} side", state="RUNNING", phase="write switch")
            switch_id = f"{self.service}-{workflow.uuid4()}"
            order = SwitchOrder(ref=self.ref, switch_id=switch_id, to_side=to_side, evidence=approved)
            await self.do("making the stream of the way back ready", s.PREPARE_REVERSE, order)
            try:
                report = await self._to_an_end(order)
            except StepFailed as failed:
                if failed.kind == APPROVAL_LAPSED:
                    self.progress["last write switch"] = f"not begun: {failed.text}"
                    approved = await self._gate_again(order)
                elif failed.kind != PLAN_REPLACED or not await self.heed_adoption():
                    await self._hold(order, failed.text)
                continue
            self.progress["last write switch"] = (
                f"to {to_side}: {report.result}, pause {report.pause_ms:.0f} ms, writes {report.write_pause_ms:.0f} ms"
                + (f", {report.reason}" if report.reason else "")
            )
            if report.result == "done":
                await self.finish_switch(to_side, order.switch_id)
                return report
            if self._outdated(approved):
                approved = await self._gate_again(order)
                continue
            text = f"undone, writes go on where they were: {report.reason or 'no reason given'}"
            pauses = timeouts.SWITCH_RETRY_PAUSES
            if undone < len(pauses):
                self.say(f"another attempt of the write switch ({text})", state="WAITING")
                await self.wait(lambda: False, pauses[undone], "write switch is tried again")
                undone += 1
            else:
                await self._hold(order, text)
                undone = 0
            if approved:
                approved = await self._still_approved(order)

    async def _hold(self, order: SwitchOrder, text: str) -> None:
        """Park; meanwhile nothing is left standing that would hold back a server's log."""
        await self.take_down(order.to_side)
        await self.park("write switch", text)

    async def take_down(self, to_side: SideName) -> None:
        """Take down the stream of a way back that was not needed; nothing where `to_side` is the primary."""
        order = SwitchOrder(ref=self.ref, switch_id=f"{self.service}-{workflow.uuid4()}", to_side=to_side)
        await self.do("taking down the unused stream of the way back", s.TAKE_BACK_REVERSE, order)

    def _outdated(self, approved: str) -> bool:
        return bool(approved) and self.approved_under != self.plan_hash

    async def _section(self, order: SwitchOrder) -> SwitchReport:
        """The fenced section, unless its approvals were given to a plan that was replaced since."""
        if self._outdated(order.evidence):
            return SwitchReport(result="undone", switch_id=order.switch_id, reason="another plan was adopted")
        return await self.call(s.FENCED_SECTION, order, summary="the fenced section")

    async def _to_an_end(self, order: SwitchOrder) -> SwitchReport:
        """How the switch ended. Raises StepFailed where it did not begin.

        A section that fails for good in the middle leaves both sides shut, and its reason may be a matter for a person:
        the run parks with it, and `retry` calls the section again for the same switch, which recovers, whatever plan
        holds by then.
        """
        self.say("the fenced section to finish", state="RUNNING")
        section = self._section(order)
        while True:
            try:
                return await section
            except StepFailed as failed:
                position = await self.do("reading where the service stands", s.POSITION, self.ref)
                if not position.unfinished:
                    if position.primary_side != order.to_side:
                        raise
                    # ended meanwhile, by a person's hand or by an attempt whose answer was lost
                    return SwitchReport(
                        result="done",
                        switch_id=order.switch_id,
                        to_side=order.to_side,
                        epoch=position.epoch,
                        reason=f"found done: {failed.text}"[: timeouts.TEXT_LIMIT],
                    )
                await self.park("write switch", f"half done: {failed.text}")
            self.say("the fenced section to finish", state="RUNNING")
            section = self.call(s.FENCED_SECTION, order, summary="the fenced section")

    async def _still_approved(self, order: SwitchOrder) -> str:
        """Approvals outlive an undone attempt unless the evidence got worse; then the gate opens again."""
        again = await self.remeasure(self._gate(), order.evidence)
        if again.ok and not again.worse:
            return order.evidence
        return await self._gate_again(order)

    async def _gate_again(self, order: SwitchOrder) -> str:
        """People take as long as they take; meanwhile nothing is left standing, as in `_hold`."""
        if workflow.patched(TAKEN_DOWN):
            await self.take_down(order.to_side)
        return await self.write_gate()

    async def finish_switch(self, to_side: SideName, switch_id: str) -> None:
        """After the pause: the reverse stream proved once more, the forward one dropped."""
        order = SwitchOrder(ref=self.ref, switch_id=switch_id, to_side=to_side)
        shielded, self.shielded = self.shielded, True
        try:
            await self.do("proving the way back and dropping the old stream", s.FINISH_SWITCH, order)
        finally:
            self.shielded = shielded

    def parse_hand_over(self, payloads: Sequence[Any]) -> Approval:
        """The hand-over's message."""
        message = parse("hand_over", payloads)
        assert isinstance(message, Approval)
        return message
