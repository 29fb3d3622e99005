"""Whether what a run says of itself is true: the rules by which every sampled `status` is judged."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from workflows.status import Status

#: Clocks are the same machine's; a run's `since` is its own clock, which lags behind by an activation at most.
AHEAD = timedelta(seconds=2)

_GATE = re.compile(r"approvals? of gate '([^']+)'(?: with evidence (\w+))?")
_UNMET = re.compile(r"evidence of gate '([^']+)' to hold")
_TASKS = re.compile(r"task\(s\) of people")


def untrue(status: Status, services: Sequence[str]) -> list[str]:
    """What is empty, or cannot be true, in one answer; empty where all of it may be."""
    wrong = []
    line, gates = status.waiting_for, {gate.name: gate for gate in status.gates}
    text = line.rpartition(", since ")[0]
    if not text.strip():
        wrong.append(f"the line says nothing, or not since when: {line!r}")
    if not status.phase.strip():
        wrong.append("the phase is empty")
    if status.since > datetime.now(UTC) + AHEAD:
        wrong.append(f"since {status.since.isoformat()} is in the future")
    if asked := _GATE.search(text):
        gate = gates.get(asked[1])
        if gate is None:
            wrong.append(f"waits for gate {asked[1]!r}, which is not open: {line}")
        elif asked[2] and asked[2] != gate.evidence:
            wrong.append(f"shows evidence {asked[2]}, but the gate has {gate.evidence!r}")
        elif not any(one.temporal.count("--name approve") for one in status.commands) and status.state == "WAITING":
            wrong.append(f"waits for an approval and shows no command that gives it: {line}")
    if (unmet := _UNMET.search(text)) and unmet[1] not in gates:
        wrong.append(f"waits for the evidence of gate {unmet[1]!r}, which is not open")
    if _TASKS.search(text) and not any(name.startswith("task:") for name in gates):
        wrong.append(f"waits for people's tasks, and none is open: {line}")
    if status.state == "NEEDS_ATTENTION":
        if not status.attention.strip():
            wrong.append("needs attention, and does not say what for")
        if not any("retry" in one.temporal for one in status.commands):
            wrong.append("needs attention, and shows no command that answers")
    if status.state == "PAUSED" and "resume" not in text:
        wrong.append(f"is paused, and does not say how to go on: {line}")
    if status.state == "DONE" and not text.startswith("nothing"):
        wrong.append(f"is done and waits for something: {line}")
    if (status.rollback is None) != (not status.rollback_note):
        wrong.append(f"offers a rollback without a word on it, or the other way round: {status.rollback_note!r}")
    wrong += _foreign(status, text, services)
    wrong += [
        f"a command is for another run: {one.temporal}"
        for one in [*status.commands, *([status.rollback] if status.rollback else [])]
        if f"--workflow-id {status.workflow_id} " not in one.temporal
    ]
    return [f"{status.workflow_id} ({status.state}): {one}" for one in wrong]


def _foreign(status: Status, text: str, services: Sequence[str]) -> list[str]:
    """A run of one service speaks of no other."""
    if not status.service:
        return []
    named = [one for one in services if one != status.service and re.search(rf"\b{re.escape(one)}\b", text)]
    return [f"names a service that is not its own ({', '.join(named)}): {text}"] if named else []
