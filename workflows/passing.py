"""A pass over one table: opened, its spans walked by whatever workers there are, finished.

No key and no row comes into the history: a span is a number here, and a thousand million rows are 256 of them, each a
few events. A pause, a freeze window and a cancellation take the running spans back within about a second; they go on
later where they stood.
"""

import asyncio
from collections import deque
from datetime import datetime

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import PassRequest, PassResult, SpanRequest, SpanWalked
    from workflows.messages import StartT
    from workflows.run import Run


class Passing(Run[StartT]):
    """A run that makes passes."""

    #: So many this run has begun: each has an id of its own.
    passes_made = 0

    async def make_pass(self, table: str) -> PassResult:
        """One pass over the table, by the plan in force. Raises StepFailed where it fails for good."""
        while True:
            # another plan may compare otherwise: a pass of its own
            name = f"{workflow.info().run_id}/{table}/{self.plan_hash[:12]}/{self._number()}"
            request = PassRequest(ref=self.ref, table=table, pass_id=name)
            opened = await self.call(s.OPEN_PASS, request, summary=table)
            if await self._walk(request, opened.spans, opened.at_once):
                return await self.call(s.FINISH_PASS, request, summary=table)

    def _number(self) -> int:
        self.passes_made += 1
        return self.passes_made

    async def _walk(self, request: PassRequest, spans: int, at_once: int) -> bool:
        """Every span to its end; False where another plan was taken over meanwhile."""
        waiting = deque(range(1, spans + 1))
        running: dict[asyncio.Task[SpanWalked], int] = {}
        frozen_until: datetime | None = None
        try:
            while waiting or running:
                while waiting and len(running) < at_once and frozen_until is None and not self._held():
                    number = waiting.popleft()
                    running[asyncio.create_task(self._span(request, number, spans))] = number
                if running:
                    await workflow.wait_condition(lambda: self._held() or any(task.done() for task in running))
                    if self._held():
                        await _take_back(running)
                    for task in [task for task in running if task.done()]:
                        number, walked = running.pop(task), _result(task)
                        if walked is None or walked.frozen_until is not None:
                            waiting.append(number)
                        if walked is not None:
                            frozen_until = walked.frozen_until or frozen_until
                    continue
                if frozen_until is not None:
                    text = f"the freeze window to end at {frozen_until.isoformat(timespec='seconds')}"
                    with self.saying(text, "WAITING"):
                        await self.wait(lambda: False, frozen_until - workflow.now(), "freeze window")
                    frozen_until = None
                await self.may_proceed()
                if self.plan_hash != request.ref.plan_hash:
                    return False
        finally:
            await _take_back(running)
        return True

    async def _span(self, request: PassRequest, number: int, spans: int) -> SpanWalked:
        argument = SpanRequest(ref=request.ref, table=request.table, pass_id=request.pass_id, number=number)
        return await self.call(s.WALK_SPAN, argument, summary=f"{request.table}, part {number} of {spans}")

    def _held(self) -> bool:
        return bool(self.paused_by) or self._interrupted() or self._news() or bool(self.unrecorded)


async def _take_back(running: dict[asyncio.Task[SpanWalked], int]) -> None:
    """Cancels what runs and waits for its end; what a span has finished is kept where spans keep it."""
    for task in running:
        task.cancel()
    if running:
        await workflow.wait(list(running))
    for task in running:
        if not task.cancelled():
            task.exception()  # whoever cares takes it from the task


def _result(task: asyncio.Task[SpanWalked]) -> SpanWalked | None:
    """What a span that ended says; None for one that was taken back. Raises StepFailed."""
    try:
        return task.result()
    except asyncio.CancelledError:
        return None
    except ActivityError as error:
        if is_cancelled_exception(error):
            return None
        raise
