"""The hourly summary row of a service whose switch is open, whatever its run waits for meanwhile."""

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from workflows import timeouts
    from workflows.run import Run


class Summarising(Run[Any]):
    """The rows go on beside the run."""

    def begin_summaries(self) -> None:
        """From the read switch on."""
        self.begin_beside("summaries", self._hourly)

    async def end_summaries(self) -> None:
        """Before the run ends, continues as new, or has rolled back."""
        await self.end_beside("summaries")

    async def hand_on(self, **changes: Any) -> None:
        await self.end_summaries()
        await super().hand_on(**changes)

    async def _hourly(self) -> None:
        chosen = timeouts.options(s.SUMMARISE.kind, 0)
        while True:
            await workflow.sleep(timeouts.summary_interval(self.rules.hour), summary="hourly summary")
            try:
                await workflow.execute_activity(
                    s.SUMMARISE.name,
                    self.ref,
                    start_to_close_timeout=chosen.start_to_close,
                    retry_policy=chosen.retry,
                    summary="hourly summary",
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                text = f"{self.service}: this hour's summary row could not be written"
                await self.alert("summary", "warning", text, best_effort=True)
