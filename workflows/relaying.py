"""The relays of an outbox stream, kept at work beside a run, whatever it waits for meanwhile."""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from workflows import timeouts
    from workflows.failures import explain
    from workflows.messages import ServiceStart
    from workflows.run import Run

#: A relay that cannot even begin (a DSN is gone) is told of, and tried again after so long.
AGAIN = timedelta(seconds=30)


class Relaying(Run[ServiceStart]):
    """A gate, a parked step or a pause does not stop the relays; the end of the run does."""

    _relaying: asyncio.Task[None] | None = None

    @property
    def carries(self) -> bool:
        """Whether the service's changes are carried over by us, and not by the databases."""
        rules = self.rules.service(self.service)
        return rules is not None and rules.stream == "outbox"

    def begin_relaying(self) -> None:
        """From the start of the stream on."""
        if self._relaying is None and self.carries:
            self._relaying = asyncio.create_task(self._relay())

    async def end_relaying(self) -> None:
        """Returns once the relays have given their leases back."""
        task, self._relaying = self._relaying, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def hand_on(self, **changes: Any) -> None:
        relaying = self._relaying is not None
        await self.end_relaying()
        await super().hand_on(**changes)
        if relaying:
            self.begin_relaying()

    async def end(self, text: str) -> None:
        await self.end_relaying()
        await super().end(text)

    async def after_adoption(self) -> None:
        """The relays go by the plan in force."""
        if self._relaying is not None:
            await self.end_relaying()
            self.begin_relaying()

    async def _relay(self) -> None:
        chosen = timeouts.options(s.RELAY.kind, 0)
        while True:
            try:
                await workflow.execute_activity(
                    s.RELAY.name,
                    self.ref,
                    start_to_close_timeout=chosen.start_to_close,
                    heartbeat_timeout=chosen.heartbeat,
                    retry_policy=chosen.retry,
                    cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                    summary="relays of the outbox",
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                text = f"{self.service}: no relay carries its changes: {explain(error)[1]}"
                await self.alert("relay", "critical", text, best_effort=True)
                await workflow.sleep(AGAIN, summary="relays are tried again")
