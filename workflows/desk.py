"""A run's state as people see and change it: what it says, what was approved, what a message means.

Nothing here waits or calls an activity. `consider` judges a message without changing anything, so
that it serves validators as well; the change it returns is applied by the handlers of `Inbox`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, assert_never

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.models import Decision, Ref
    from workflows import search
    from workflows.gates import OpenGate, choose
    from workflows.inbox import Inbox
    from workflows.messages import (
        Action,
        Approval,
        Carried,
        Message,
        PastApproval,
        Refusal,
        RefusedMessage,
        Start,
        StartT,
        Waited,
        parse,
        parse_start,
    )
    from workflows.status import Command, Scalar, State, Status, command, markdown

APPROVALS_KEPT = 50
LINE_LIMIT = 600


@dataclass
class Parked:
    """A step that failed for good and what a person answered."""

    step: str
    text: str
    skippable: bool = False
    answer: str = ""


class Desk(Inbox):
    """See the module."""

    #: What the web page and `status` call this run.
    title: ClassVar[str] = "run"
    start: Start

    def __init__(self, payload: Any, model: type[StartT]) -> None:
        self.start, self.input_problem = parse_start(payload, model)
        carried = self.start.carried
        self.service: str = getattr(self.start, "service", "") or ""
        self.plan_hash = self.start.plan_hash
        self.phase = "starting"
        self.state: State = "RUNNING"
        self.text = "its first step"
        self.since = workflow.now()
        self.trouble = ""
        self.trouble_since = self.since
        self.gates: dict[str, OpenGate] = {}
        self.parked: Parked | None = None
        self.paused_by = carried.paused_by
        self.shielded = False
        self.rollback_wanted: Message | None = None
        self.measure_now = False
        self.plan_news = False
        self.adopted = False
        self.unrecorded: list[Decision] = []
        self.approvals: list[PastApproval] = list(carried.approvals)
        self.refused: list[Refusal] = list(carried.refused)
        self.deadlines: dict[str, datetime] = dict(carried.deadlines)
        self.progress: dict[str, Scalar] = dict(carried.progress)
        self.decisions = carried.decisions
        #: The wait that this run is in or goes on with, where it may outlast the run.
        self.waited: Waited | None = carried.waited
        self._shown: dict[str, str] = {}

    def carried(self) -> Carried:
        """What the next run of this workflow has to know."""
        return Carried(
            paused_by=self.paused_by,
            approvals=self.approvals[-APPROVALS_KEPT:],
            refused=self.refused,
            deadlines=self.deadlines,
            progress=self.progress,
            decisions=self.decisions,
            waited=self.waited,
        )

    # --- showing ---------------------------------------------------------------------------------

    def say(self, text: str, *, state: State | None = None, phase: str | None = None) -> None:
        """The one way to change what the run shows: `text` completes the sentence "waiting for …"."""
        if phase is not None:
            self.phase = phase
        if state is not None:
            self.state = state
        if text != self.text:
            self.text = text
            self.since = workflow.now()
        self.show()

    @contextmanager
    def saying(self, text: str, state: State) -> Iterator[None]:
        """Say something for the length of a block, then what was said before."""
        before = (self.text, self.state)
        self.say(text, state=state)
        try:
            yield
        finally:
            self.text, self.state = before
            self.since = workflow.now()

    def set_trouble(self, text: str) -> None:
        """What holds the current step up from outside; "" when it does no longer."""
        if text == self.trouble:
            return
        self.trouble = text
        self.trouble_since = workflow.now()
        self.show()

    def line(self) -> str:
        """What the run waits for and since when; never empty."""
        text, since = (self.trouble, self.trouble_since) if self.trouble else (self.text, self.since)
        held = f"{text} (holds up: {self.text})" if self.trouble else text
        if self.paused_by and self.state != "PAUSED":
            held += f" (then it pauses, as {self.paused_by} asked)"
        return f"{held[:LINE_LIMIT]}, since {since.isoformat(timespec='seconds')}"

    def show(self) -> None:
        """Put the current status on the web page and, where it changed, into the search attributes."""
        workflow.set_current_details(markdown(self.current_status()))
        wanted = {
            search.MIGRATION: self.start.plan,
            search.SERVICE: self.service,
            search.PHASE: self.phase,
            search.STATE: "WAITING" if self.trouble else self.state,
            search.WAITING_FOR: self.line(),
        }
        changed = []
        for key, value in wanted.items():
            short = value[: search.LIMIT]
            if short and self._shown.get(key.name) != short:
                self._shown[key.name] = short
                changed.append(key.value_set(short))
        if changed:
            workflow.upsert_search_attributes(changed)

    @workflow.query(name="status", description="What the run waits for, since when, and how to answer")
    def current_status(self) -> Status:
        """The whole status, always true as of the last event."""
        return Status(
            workflow=self.title,
            workflow_id=workflow.info().workflow_id,
            migration=self.start.plan,
            service=self.service,
            plan_hash=self.plan_hash,
            phase=self.phase,
            state="WAITING" if self.trouble and self.state == "RUNNING" else self.state,
            waiting_for=self.line(),
            since=self.trouble_since if self.trouble else self.since,
            commands=list(self.commands()),
            rollback=self.command("rollback", "Go back") if self.can_roll_back() else None,
            rollback_note=self.rollback_note(),
            gates=[one.status() for one in self.gates.values()],
            evidence=next((one.code for one in self.gates.values() if one.gate.needs_evidence), ""),
            attention=self.attention(),
            approvals=self.approvals[-APPROVALS_KEPT:],
            refused=self.refused,
            progress=self.progress,
            deadlines=self.deadlines,
        )

    def attention(self) -> str:
        """What a person has to look at; "" where nothing is wrong."""
        return f"{self.parked.step}: {self.parked.text}" if self.parked else ""

    def command(self, action: Action, does: str, **fields: str) -> Command:
        """How to send that message to this run."""
        return command(workflow.info().workflow_id, action, does, **fields)

    def commands(self) -> Iterator[Command]:
        """All that would answer what the run waits for now."""
        if self.parked is not None:
            yield self.command("retry", "Try again")
            if self.parked.skippable:
                yield self.command("skip", "Leave this step out")
        for name, opened in self.gates.items():
            fields = {"gate": name} if len(self.gates) > 1 else {}
            if opened.gate.required and opened.holds:
                seen = {"evidence": opened.code} if opened.gate.needs_evidence else {}
                yield self.command("approve", f"Approve gate {name!r}", **seen, **fields)
                yield self.command("reject", f"Reject gate {name!r}", **fields)
            elif not opened.holds:
                yield self.command("retry", f"Measure gate {name!r} now")
        if self.paused_by:
            yield self.command("resume", "Go on")
        elif self.state != "DONE":
            yield self.command("pause", "Hold before the next step")

    # --- what a message means --------------------------------------------------------------------

    def can_roll_back(self) -> bool:
        """Whether `rollback` would be accepted now."""
        return False

    def must_finish(self) -> bool:
        """Whether the run is parked in a step that nothing, not even a rollback, can leave."""
        return self.shielded and self.parked is not None

    def rollback_note(self) -> str:
        """Until when, and what it would cost."""
        return ""

    def refuse_rollback(self) -> str:
        """Why `rollback` is refused here."""
        return "this run has nothing to roll back; send it to the service's switchover run"

    def nothing_open(self) -> str:
        """Answer to an approval while no gate is open."""
        return f"no gate is open; the run waits for {self.line()}"

    def consider(self, action: Action, payloads: Sequence[Any]) -> Callable[[], str]:
        message = parse(action, payloads)
        if self.state == "DONE":
            raise RefusedMessage(f"{action}: this run is done")
        match action:
            case "approve" | "reject":
                assert isinstance(message, Approval)
                return self._consider_gate(action, message)
            case "pause":
                if self.paused_by:
                    return lambda: f"already paused by {self.paused_by}"
                return lambda: self._set_pause(message, message.by, "pauses before its next step")
            case "resume":
                if not self.paused_by:
                    return lambda: "it was not paused"
                return lambda: self._set_pause(message, "", "goes on")
            case "rollback":
                return self._consider_rollback(message)
            case "retry" | "skip":
                return self._consider_parked(action, message)
            case "hand_over":
                raise RefusedMessage("hand_over: only a switchover run after its deprecation can be handed over")
            case _:
                assert_never(action)

    def _consider_gate(self, action: Action, message: Approval) -> Callable[[], str]:
        if not self.gates:
            raise RefusedMessage(f"{action}: {self.nothing_open()}"[:500])
        chosen = choose(self.gates, message.gate)
        if action == "reject":
            return lambda: self._reject(chosen, message)
        fresh = [one for one in chosen if one.judge(message) != "again"]
        return lambda: self._approve(chosen, fresh, message)

    def _approve(self, chosen: list[OpenGate], fresh: list[OpenGate], message: Approval) -> str:
        for opened in fresh:
            self.approvals.append(opened.add(message, workflow.now()))
            self.decided("approve", message, gate=opened.gate.name, evidence=opened.code)
        counts = ", ".join(f"{one.gate.name!r}: {len(one.approvals)} of {one.gate.required}" for one in chosen)
        return f"{'counted already' if not fresh else 'approved'} as {message.by}; gate {counts}"[:500]

    def _reject(self, chosen: list[OpenGate], message: Approval) -> str:
        for opened in chosen:
            opened.rejected = PastApproval(
                gate=opened.gate.name,
                by=message.by,
                at=workflow.now(),
                evidence=opened.code,
                reason=message.reason,
                decision="reject",
            )
            self.approvals.append(opened.rejected)
            self.decided("reject", message, gate=opened.gate.name, evidence=opened.code)
        return f"rejected as {message.by}; the run holds until 'retry'"

    def _set_pause(self, message: Message, by: str, answer: str) -> str:
        self.paused_by = by
        self.decided("pause" if by else "resume", message)
        self.show()
        return answer

    def _consider_rollback(self, message: Message) -> Callable[[], str]:
        if self.rollback_wanted is not None:
            return lambda: "a rollback has been asked for already"
        if not self.can_roll_back():
            raise RefusedMessage(f"rollback: {self.refuse_rollback()}")

        def change() -> str:
            self.rollback_wanted = message
            self.decided("rollback", message)
            if self.must_finish():
                assert self.parked is not None
                return f"rolls back once {self.parked.step!r} has succeeded, which waits for 'retry'"
            return "rolls back as soon as the step that runs now has ended"

        return change

    def _consider_parked(self, action: Action, message: Message) -> Callable[[], str]:
        if self.parked is None or self.parked.answer:
            unmet = [name for name, one in self.gates.items() if not one.holds]
            if action == "retry" and unmet:
                return lambda: self._measure(message, unmet)
            if action == "skip" and self.gates:
                raise RefusedMessage("skip: an approval cannot be skipped")
            raise RefusedMessage(f"{action}: no step has failed; the run waits for {self.line()}"[:500])
        if action == "skip" and not self.parked.skippable:
            raise RefusedMessage(f"skip: {self.parked.step} cannot be skipped")
        parked = self.parked

        def change() -> str:
            parked.answer = action
            self.decided(action, message)
            return f"{action}: {parked.step}"

        return change

    def _measure(self, message: Message, gates: list[str]) -> str:
        self.measure_now = True
        self.decided("retry", message)
        return f"measures again: {', '.join(gates)}"

    def decided(self, action: Action, message: Message, gate: str = "", evidence: str = "") -> None:
        """Queue a person's decision for the control database."""
        self.decisions += 1
        info = workflow.info()
        self.unrecorded.append(
            Decision(
                ref=Ref(migration=self.start.plan, plan_hash=self.plan_hash, service=self.service or None),
                workflow_id=info.workflow_id,
                key=f"{info.run_id}/{self.decisions}",
                action=action,
                by=message.by,
                gate=gate,
                evidence=evidence,
                reason=message.reason,
            )
        )
