"""Gates: points where a run waits for evidence, an approval, or both. Pure state; `run.py` does the waiting."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from activities.models import GateEvidence, GateRequest, SideName
from activities.signatures import Signature
from workflows.messages import Approval, PastApproval, RefusedMessage
from workflows.status import GateStatus

TASK_PREFIX = "task:"
ALL_TASKS = "tasks"


def person(by: str) -> str:
    """The name by which an approver counts once, as the control database has it."""
    return " ".join(by.split()).casefold()


@dataclass(frozen=True)
class Gate:
    """What a gate asks for. With `required` 0 it opens by evidence alone."""

    name: str
    question: str
    required: int = 1
    measure: Signature[GateRequest, GateEvidence] | None = None
    needs_evidence: bool = False
    to_side: SideName = "service"
    #: The plan says how many have to approve; `required` is filled in from it.
    by_plan: bool = False

    def asking(self, required: int) -> "Gate":
        """The gate under a plan that asks for so many approvals."""
        return replace(self, required=required) if self.by_plan else self


@dataclass
class OpenGate:
    """A gate while it is open. Approvals are distinct by `by` and bound to the code they saw."""

    gate: Gate
    opened: datetime
    evidence: GateEvidence | None = None
    approvals: dict[str, PastApproval] = field(default_factory=dict)
    rejected: PastApproval | None = None
    note: str = ""

    @property
    def code(self) -> str:
        return self.evidence.code if self.evidence else ""

    @property
    def holds(self) -> bool:
        """The evidence, where some is asked for, was measured and speaks for opening."""
        return self.gate.measure is None or (self.evidence is not None and self.evidence.ok)

    @property
    def enough(self) -> bool:
        return self.rejected is None and len(self.approvals) >= self.gate.required

    def judge(self, message: Approval) -> str:
        """ "" when the approval would count, "again" for one that is there already. Raises RefusedMessage."""
        name = self.gate.name
        if self.gate.required == 0:
            raise RefusedMessage(f"gate {name!r} opens by its evidence alone; no approval is asked for")
        if not self.holds:
            why = "; ".join(self.evidence.problems) if self.evidence else "it is being measured"
            raise RefusedMessage(f"gate {name!r} cannot be approved now, its evidence does not hold: {why}"[:500])
        code = message.evidence.lower()
        if self.gate.needs_evidence and not code:
            raise RefusedMessage(f'gate {name!r} needs the evidence you approve: "evidence": "{self.code}"')
        if code and code != self.code.lower():
            raise RefusedMessage(
                f'gate {name!r}: evidence {code[:20]!r} is not what stands now; the right one is "{self.code}"'
            )
        return "again" if person(message.by) in self.approvals else ""

    def add(self, message: Approval, at: datetime) -> PastApproval:
        """Count it, bound to what is current."""
        approval = PastApproval(gate=self.gate.name, by=message.by, at=at, evidence=self.code, reason=message.reason)
        self.approvals[person(message.by)] = approval
        return approval

    def expire(self, now: datetime, after: timedelta) -> list[str]:
        """Drop approvals that are too old; who gave them."""
        gone = [one.by for one in self.approvals.values() if now - one.at >= after]
        for by in gone:
            del self.approvals[person(by)]
        if gone:
            self.note = f"approval of {', '.join(gone)} expired at {now.isoformat(timespec='seconds')}"
        return gone

    def next_expiry(self, after: timedelta) -> datetime | None:
        """When the oldest approval runs out."""
        return min((one.at + after for one in self.approvals.values()), default=None)

    def void(self, why: str) -> None:
        """The evidence got worse: approvals of the old one no longer count."""
        self.approvals.clear()
        self.note = f"approvals void: {why}"[:500]

    def replan(self, required: int, why: str) -> None:
        """Another plan holds now: everything is measured and approved anew. A rejection stands."""
        self.gate = self.gate.asking(required)
        self.evidence = None
        self.void(why)

    def waiting_for(self) -> str:
        """In words, without the time."""
        if not self.holds:
            problems = "; ".join(self.evidence.problems) if self.evidence else "being measured"
            return f"evidence of gate {self.gate.name!r} to hold: {problems}"[:400]
        seen = f" with evidence {self.code}" if self.gate.needs_evidence else ""
        there = f" ({', '.join(self.approvals)} so far)" if self.approvals else ""
        missing = self.gate.required - len(self.approvals)
        return f"{missing} approval{'s' if missing != 1 else ''} of gate {self.gate.name!r}{seen}{there}"

    def status(self) -> GateStatus:
        evidence = self.evidence or GateEvidence(code="")
        return GateStatus(
            name=self.gate.name,
            question=self.gate.question,
            opened=self.opened,
            needs_evidence=self.gate.needs_evidence,
            required=self.gate.required,
            evidence=evidence.code,
            ok=self.holds,
            problems=evidence.problems,
            facts=evidence.facts,
            approvals=list(self.approvals.values()),
            note=self.note,
        )


def choose(gates: dict[str, OpenGate], wanted: str) -> list[OpenGate]:
    """The open gates a message is about: the named one, all tasks, or the only one. Raises RefusedMessage."""
    names = ", ".join(gates)
    if wanted == ALL_TASKS and any(name.startswith(TASK_PREFIX) for name in gates):
        return [one for name, one in gates.items() if name.startswith(TASK_PREFIX)]
    if wanted:
        if wanted not in gates:
            raise RefusedMessage(f"gate {wanted[:60]!r} is not open; open now: {names}")
        return [gates[wanted]]
    if len(gates) > 1:
        raise RefusedMessage(f'several gates are open, name one: "gate": one of {names}'[:500])
    return list(gates.values())
