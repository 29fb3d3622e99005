"""The relays of an outbox stream, kept at work beside a run, whatever it waits for meanwhile."""

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

#: A relay that cannot even begin (a DSN is gone) is told of, and tried again after so long, and so long at most.
AGAIN = timedelta(seconds=30)
AGAIN_AT_MOST = timedelta(minutes=10)


class Relaying(Run[ServiceStart]):
    """The relays go on beside the run, to its end."""

    @property
    def carries(self) -> bool:
        """Whether the service's changes are carried over by us, and not by the databases."""
        rules = self.rules.service(self.service)
        return rules is not None and rules.stream == "outbox"

    def begin_relaying(self) -> None:
        """From the start of the stream on."""
        if self.carries:
            self.begin_beside("relays", self._relay)

    async def hand_on(self, **changes: Any) -> None:
        relayed = await self.end_beside("relays")
        await super().hand_on(**changes)
        if relayed:
            self.begin_relaying()

    async def end(self, text: str) -> None:
        await self.end_beside("relays")
        await super().end(text)

    async def after_adoption(self) -> None:
        """The relays go by the plan in force."""
        if await self.end_beside("relays"):
            self.begin_relaying()

    async def _relay(self) -> None:
        chosen = timeouts.options(s.RELAY.kind, 0)
        again = AGAIN
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
                await workflow.sleep(again, summary="relays are tried again")
                again = min(again * 2, AGAIN_AT_MOST)
            else:
                again = AGAIN
