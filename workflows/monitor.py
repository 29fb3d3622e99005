"""The permanent monitor of one migration, from preparation to cleanup.

An activity looks every few seconds and alerts; it comes back when something else is found, or after a shift.
So the history stays small, and what is wrong stands in the status within a look.
"""

from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import Watched, WatchRequest
    from workflows.failures import PLAN_REPLACED, StepFailed
    from workflows.messages import Start
    from workflows.run import Run

_SHOWN = 20


@workflow.defn(name="MonitorWorkflow")
class MonitorWorkflow(Run[Start]):
    """`{"plan": "ai-trader"}`; started by Preparation, and again by each sample where somebody has ended it."""

    title = "Monitor"

    @workflow.init
    def __init__(self, start: Any = None) -> None:
        super().__init__(start, Start)
        self.worst = ""

    @workflow.run
    async def run(self, start: Any = None) -> str:
        await self.begin()
        self.say("the first look", state="RUNNING", phase="watching")
        shown: list[str] | None = None
        while True:
            await self.may_proceed()
            seen = await self._shift(shown)
            shown = [one.key for one in seen.findings]
            if seen.ended:
                break
            self._tell(seen)
            if workflow.info().is_continue_as_new_suggested():
                await self.hand_on()
        self.progress.clear()
        self.worst = ""
        await self.end("nothing: the migration is cleaned up")
        return "cleaned"

    async def _shift(self, shown: list[str] | None) -> Watched:
        """Until something else is found. What fails for good is shown, and tried again when a person says so."""
        while True:
            try:
                return await self.call(s.WATCH, WatchRequest(ref=self.ref, shown=shown), summary="watching")
            except StepFailed as failed:
                if failed.kind == PLAN_REPLACED and await self.heed_adoption():
                    continue
                await self.park("watching", failed.text)

    def _tell(self, seen: Watched) -> None:
        """The status is what was found, each with the deed that helps."""
        self.progress.clear()
        for number, one in enumerate(seen.findings[:_SHOWN], 1):
            self.progress[f"{number}. {one.severity}"] = one.text
        if seen.findings:
            more = f" (and {len(seen.findings) - 1} more)" if len(seen.findings) > 1 else ""
            self.worst = f"{seen.findings[0].text}{more}"
            # not parked: it goes on looking, and no message to it helps
            self.say(f"somebody to mend: {self.worst}", state="WAITING")
        else:
            self.worst = ""
            self.say(f"a finding in one of {seen.services} services; all is well", state="RUNNING")

    def attention(self) -> str:
        return super().attention() or self.worst
