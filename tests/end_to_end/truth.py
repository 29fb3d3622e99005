"""Whether what a run says of itself is true: the rules by which every sampled `status` is judged."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cutover.cli.status import Overview
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
        elif not gate.ok:
            wrong.append(f"waits for approvals of gate {asked[1]!r}, whose evidence does not hold: {line}")
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


def at_odds(found: Overview, writable: Mapping[str, str], services: Sequence[str]) -> list[str]:
    """Where an overview and the databases differ: `writable` is each service's side as the monolith has it.

    During a switch they differ for a moment, as one is read after the other; what is wrong is what lasts.
    """
    odd = []
    lines = {line.service: line for line in found.services}
    for name, side in writable.items():
        if name in lines and lines[name].writable != side:
            odd.append(f"{name} is shown writable at the {lines[name].writable}, the databases have it at the {side}")
    odd += [f"{name} is no service of the plan" for name in lines if name not in services]
    for run in found.runs:
        line = lines.get(run.service)
        if run.workflow != "Switchover" or line is None:
            continue
        if run.phase in ("deprecation", "deprecated") and line.writable != "service":
            odd.append(f"{run.workflow_id} is in its {run.phase}, and {line.service} is not switched")
        if run.phase in ("read gate", "rolled back") and (line.writable, line.reads) != ("monolith", "monolith"):
            odd.append(f"{run.workflow_id} is at {run.phase}, and {line.service} is switched")
    return odd


@dataclass
class Lasting:
    """Reports what has been seen at every look for longer than `seconds`."""

    seconds: float
    _since: dict[str, float] = field(default_factory=dict)

    def observe(self, seen: Sequence[str], now: float) -> list[str]:
        self._since = {one: self._since.get(one, now) for one in seen}
        return [one for one, since in self._since.items() if now - since >= self.seconds]
