"""The people of the demo: they read `status`, and answer it as people would.

`answers` is what they decide, from what they see and nothing else; `Person` sends it and keeps a record.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError

from activities import ids
from workflows.status import GateStatus, Status

APPROVERS = ("alice", "bob")
ROLLED_BACK_BY = "carol"
RETRIES = 3
#: Seconds a person waits before each of the retries of a parked step.
RETRY_AFTER = (2.0, 5.0, 10.0)
ANSWER_SECONDS = 20.0


class GaveUp(Exception):
    """A run stayed parked after the last retry; the text says which and why."""


@dataclass(frozen=True)
class Answer:
    """One message to one run."""

    run: str
    action: str
    by: str
    gate: str = ""
    evidence: str = ""
    reason: str = ""

    @property
    def payload(self) -> dict[str, str]:
        sent = {"by": self.by, "gate": self.gate, "evidence": self.evidence, "reason": self.reason}
        return {name: value for name, value in sent.items() if value}


@dataclass(frozen=True)
class Decided:
    """An answer with its time (seconds since the migration began) and what the run said to it."""

    at: float
    answer: Answer
    said: str
    accepted: bool

    def __str__(self) -> str:
        what = self.answer.gate or self.answer.reason
        seen = f" (evidence {self.answer.evidence})" if self.answer.evidence else ""
        return f"{self.at:6.1f} s  {self.answer.by}: {self.answer.action} {what}{seen} → {self.answer.run}: {self.said}"


@dataclass
class Parked:
    """How often a parked step was tried again, and since when it is parked this time."""

    retries: int = 0
    since: float | None = None


@dataclass
class Mind:
    """What people remember between two looks. `rollback_of`: the service that is rolled back once ("" for none)."""

    migration: str
    rollback_of: str = ""
    rolled_back: bool = False
    parked: dict[tuple[str, str], Parked] = field(default_factory=dict)

    def answers(self, runs: Sequence[Status], stages: Mapping[str, str], now: float) -> list[Answer]:
        """All that is to be said now. Raises GaveUp."""
        found: list[Answer] = []
        for run in runs:
            if run.state == "NEEDS_ATTENTION":
                found += self._retry(run, now)
                continue
            self._recovered(run)
            if self._wants_rollback(run, stages):
                reason = "the risk desk wants to see the way back"
                found.append(Answer(run.workflow_id, "rollback", ROLLED_BACK_BY, reason=reason))
            elif run.state != "DONE":
                found += [answer for gate in run.gates for answer in _approvals(run, gate)]
        return found

    def _wants_rollback(self, run: Status, stages: Mapping[str, str]) -> bool:
        """Once, after the write switch of the chosen service, and while the run itself offers it."""
        return (
            not self.rolled_back
            and bool(self.rollback_of)
            and run.workflow_id == ids.switchover(self.migration, self.rollback_of)
            and run.rollback is not None
            and stages.get(self.rollback_of) in ("switched", "deprecated")
        )

    def _retry(self, run: Status, now: float) -> list[Answer]:
        step = run.attention.partition(":")[0]
        known = self.parked.setdefault((run.workflow_id, step), Parked())
        if known.since is None:
            known.since = now
        if known.retries >= RETRIES:
            raise GaveUp(f"{run.workflow_id} was tried again {RETRIES} times and is parked still: {run.attention}")
        if now - known.since < RETRY_AFTER[known.retries]:
            return []
        known.retries += 1
        known.since = None
        return [Answer(run.workflow_id, "retry", APPROVERS[0], reason=f"attempt {known.retries} of {RETRIES}")]

    def _recovered(self, run: Status) -> None:
        """Parked no longer: the time of the next parking begins anew; the retries of a step are counted on."""
        for (workflow_id, _), known in self.parked.items():
            if workflow_id == run.workflow_id:
                known.since = None

    def heard(self, answer: Answer, accepted: bool) -> None:
        """The run has taken the message."""
        if answer.action == "rollback" and accepted:
            self.rolled_back = True


def _approvals(run: Status, gate: GateStatus) -> list[Answer]:
    """Approvals that a gate still lacks; none for one that opens by itself or whose evidence does not hold."""
    if gate.required == 0 or not gate.ok or (gate.needs_evidence and not gate.evidence):
        return []
    there = {one.by for one in gate.approvals}
    missing = [by for by in APPROVERS if by not in there][: max(0, gate.required - len(there))]
    seen = gate.evidence if gate.needs_evidence else ""
    return [Answer(run.workflow_id, "approve", by, gate.name, seen) for by in missing]


@dataclass
class Person:
    """Sends what `Mind` decides. `look` gives the open runs, the stages and when that look began; `clock` is its."""

    client: Client
    mind: Mind
    look: Callable[[], tuple[Sequence[Status], Mapping[str, str], float] | None]
    clock: Callable[[], float]
    record: Path
    decided: list[Decided] = field(default_factory=list)
    _answered: float = -1.0

    async def run(self, every: float = 0.1) -> None:
        """Until cancelled. Raises GaveUp."""
        while True:
            seen = self.look()
            # Only what was looked at after the last answer: an answer changes what is shown.
            if seen is not None and seen[2] > self._answered:
                for answer in self.mind.answers(*seen):
                    await self._send(answer)
                self._answered = self.clock()
            await asyncio.sleep(every)

    async def _send(self, answer: Answer) -> None:
        handle = self.client.get_workflow_handle(answer.run)
        try:
            said: Any = await asyncio.wait_for(
                handle.execute_update(answer.action, answer.payload, result_type=str), ANSWER_SECONDS
            )
            accepted = True
        except WorkflowUpdateFailedError as error:
            said, accepted = f"refused: {error.cause}", False
        except (RPCError, TimeoutError) as error:
            # Nobody knows whether it arrived; the next look shows what stands, and a second one counts once.
            said, accepted = f"no answer ({type(error).__name__})", False
        self.mind.heard(answer, accepted)
        decided = Decided(round(self.clock(), 2), answer, str(said), accepted)
        self.decided.append(decided)
        with self.record.open("a") as file:
            file.write(json.dumps(asdict(decided)) + "\n")
