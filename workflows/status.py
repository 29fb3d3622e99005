"""What a run shows of itself: the `status` query's answer and the same as markdown for the web page."""

import json
from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from workflows.messages import PastApproval, Refusal

State = Literal["RUNNING", "WAITING", "PAUSED", "NEEDS_ATTENTION", "ROLLED_BACK", "DONE"]
Scalar = str | int | float | bool | None


class Command(BaseModel):
    """One way to answer what the run waits for, as typed at both command lines."""

    does: str
    temporal: str
    cutover: str


class GateStatus(BaseModel):
    """An open gate: what was measured, and who has approved so far."""

    name: str
    question: str
    opened: datetime
    needs_evidence: bool
    required: int
    evidence: str = ""
    ok: bool = True
    problems: list[str] = []
    facts: dict[str, Scalar] = {}
    approvals: list[PastApproval] = []
    note: str = ""


class Status(BaseModel):
    """The whole of it. `waiting_for` is one line in words with the time since when; never empty."""

    workflow: str
    workflow_id: str
    migration: str
    service: str = ""
    plan_hash: str = ""
    phase: str
    state: State
    waiting_for: str
    since: datetime
    commands: list[Command] = []
    rollback: Command | None = None
    rollback_note: str = ""
    gates: list[GateStatus] = []
    evidence: str = ""
    attention: str = ""
    approvals: list[PastApproval] = []
    refused: list[Refusal] = []
    progress: dict[str, Scalar] = {}
    deadlines: dict[str, datetime] = {}


def command(workflow_id: str, action: str, does: str, **fields: str) -> Command:
    """The command that sends a message; `YOU` stands for the sender's name."""
    payload = json.dumps({"by": "YOU", **fields})
    options = "".join(f" --{name} {shell_word(value)}" for name, value in fields.items())
    return Command(
        does=does,
        temporal=f"temporal workflow signal --workflow-id {workflow_id} --name {action} --input '{payload}'",
        cutover=f"cutover {action.replace('_', '-')} {workflow_id} --by YOU{options}",
    )


def shell_word(value: str) -> str:
    """Quoted where a shell would split it."""
    return value if value and all(c.isalnum() or c in "-_:./" for c in value) else "'" + value.replace("'", "") + "'"


def markdown(status: Status) -> str:
    """The web page's current details."""
    lines = [f"**{status.state}** · {status.phase}", "", f"Waiting for: {status.waiting_for}"]
    if status.attention:
        lines += ["", f"Needs attention: {status.attention}"]
    for gate in status.gates:
        lines += ["", f"Gate **{gate.name}**: {gate.question}"]
        if gate.evidence:
            lines.append(f"evidence `{gate.evidence}`" + ("" if gate.ok else " (does not hold)"))
        lines += [f"- {problem}" for problem in gate.problems]
        lines += [f"- {name}: {value}" for name, value in gate.facts.items()]
        lines += [f"- approved by {one.by} at {one.at.isoformat(timespec='seconds')}" for one in gate.approvals]
        if gate.note:
            lines.append(f"- {gate.note}")
    for one in status.commands:
        lines += ["", f"{one.does}:", "```", one.temporal, one.cutover, "```"]
    if status.rollback_note:
        lines += ["", status.rollback_note]
    if status.rollback:
        lines += ["", f"{status.rollback.does}:", "```", status.rollback.temporal, status.rollback.cutover, "```"]
    if status.progress:
        lines += ["", *(f"- {name}: {value}" for name, value in status.progress.items())]
    if status.deadlines:
        lines += ["", *(f"- {name}: {at.isoformat(timespec='seconds')}" for name, at in status.deadlines.items())]
    if status.refused:
        lines += ["", "Refused messages:", *(f"- {one.text}" for one in status.refused[-5:])]
    return "\n".join(lines)
