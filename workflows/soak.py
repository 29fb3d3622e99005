"""The monitored time after the read switch: samples, and what counts as a sustained breach."""

from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities import signatures as s
    from activities.models import Reading, Readings, SampleRequest
    from cutover.monitor.sustained import Sustained
    from workflows import timeouts
    from workflows.deadlines import SOAK
    from workflows.failures import PLAN_REPLACED, StepFailed
    from workflows.messages import Waited
    from workflows.run import Run


class SoakBreached(Exception):
    """A threshold stayed breached; `text` names it with its last value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Soaking(Run[Any]):
    """The soak of a switchover."""

    async def soak(self) -> None:
        """Sample for as long as the plan says, and until every threshold has seen enough. Raises SoakBreached.

        One that an earlier run has begun goes on with what was counted there.
        """
        if self.waited is None:
            self.deadlines.pop(SOAK, None)
        so_far = self.waited = self.waited or Waited(began=workflow.now())
        end = self.deadline(SOAK)
        sustained = Sustained(counts=so_far.breaches)
        try:
            while (
                workflow.now() < end or so_far.samples < self.rules.soak_samples or so_far.unjudged or sustained.counts
            ):
                text = f"the soak to end at {end.isoformat(timespec='seconds')}"
                if workflow.now() >= end and so_far.samples >= self.rules.soak_samples:
                    names = ", ".join(so_far.unjudged or sustained.counts)
                    text = f"the soak, which goes on until it has good samples of {names}"
                self.say(text, state="WAITING", phase="soak")
                interval = timeouts.soak_interval(self.rules.soak, self.rules.soak_samples)
                longer = max(interval, timedelta(seconds=1))
                short = workflow.now() < end or so_far.samples < self.rules.soak_samples
                await self.wait(lambda: False, interval if short else longer, "soak")
                sample = await self._sample((workflow.now() - so_far.began).total_seconds())
                end = self.deadlines[SOAK]
                so_far.samples += 1
                so_far.unjudged = sample.waiting
                self.progress["soak samples"] = so_far.samples
                self.progress["thresholds breached"] = ", ".join(sample.breached) or "none"
                lasting = list(sustained.observe(sample.breached))
                if lasting:
                    raise SoakBreached(describe(sample, lasting))
                so_far.breaches = dict(sustained.counts)
                if workflow.info().is_continue_as_new_suggested():
                    await self.hand_on(resume="soak")
        finally:
            self.deadlines.pop(SOAK, None)
            self.waited = None
        await self.may_proceed()

    async def _sample(self, seconds: float) -> Readings:
        """One sample, also while paused; one that cannot be taken is a breach."""
        try:
            return await self.call(s.SAMPLE, SampleRequest(ref=self.ref, reads=True, window_seconds=seconds))
        except StepFailed as failed:
            if failed.kind == PLAN_REPLACED and await self.heed_adoption():
                return await self._sample(seconds)
            return Readings(readings=[Reading(name="sample", breached=True, detail=failed.text)])


def describe(sample: Readings, names: list[str]) -> str:
    """Each breached threshold with value, or why there is none, and limit."""
    words = []
    for one in sample.readings:
        if one.name in names:
            value = one.detail or "could not be read" if one.value is None else f"{one.value:g}"
            limit = f" (limit {one.limit:g})" if one.limit is not None else ""
            words.append(f"{one.name} {value}{limit}")
    return ", ".join(words)
