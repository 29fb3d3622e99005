"""The states in which a run can wait or end; each has a committed history of its name.

`at` names the points of the code (`waiting_points.py`) at which the run stands. A history has to end in the
state that is written here: phase, state and words are what the run itself put into its search attributes.
"""

import re
from dataclasses import dataclass
from typing import Literal

from workflows.status import Status

Closed = Literal["", "COMPLETED", "FAILED", "CANCELED", "CONTINUED_AS_NEW"]


@dataclass(frozen=True)
class State:
    """`name` begins with the workflow's; `says` is a pattern that is found in what the run waits for."""

    name: str
    says: str
    phase: str = ".*"
    state: str = "WAITING"
    at: tuple[str, ...] = ()
    closed: Closed = ""
    #: The run stands there while activities are under way (or are waited out).
    busy: bool = False

    def holds(self, phase: str, state: str, words: str) -> bool:
        return bool(
            re.fullmatch(self.phase, phase) and state == self.state and re.search(self.says, words, re.IGNORECASE)
        )

    def shown_by(self, status: Status) -> bool:
        return self.holds(status.phase, status.state, status.waiting_for)

    def __str__(self) -> str:
        return f"phase {self.phase!r}, state {self.state}, waiting for {self.says!r}"


PAUSED = ("run.may_proceed: wait",)
OUTAGE = ("calling.call: workflow.wait_condition",)
PARKED = ("run._step: park",)
APPROVALS = ("run._await_approvals: wait",)
EVIDENCE = ("run._await_evidence: wait",)
RELAYS = ("relaying._relay: workflow.sleep",)  # beside the run's own waits
HOURLY = ("summaries._hourly: workflow.sleep",)  # beside the run's own waits
TASKS = ("preparation._tasks_done: wait",)
AWAY = "cannot be reached"


def paused(workflow: str) -> State:
    return State(f"{workflow}-paused", "'resume'", state="PAUSED", at=PAUSED)


def unreachable(workflow: str) -> State:
    return State(f"{workflow}-unreachable", AWAY, at=OUTAGE, busy=True)


def parked(name: str, says: str, *at: str, phase: str = ".*") -> State:
    return State(name, says, phase, "NEEDS_ATTENTION", at)


def done(workflow: str, closed: Closed = "COMPLETED") -> State:
    return State(f"{workflow}-done", "^nothing", "done", "DONE", closed=closed)


def refused(name: str, says: str) -> State:
    return State(name, f"nothing: refused: .*{says}", state="NEEDS_ATTENTION", closed="FAILED")


PREPARATION = (
    unreachable("preparation"),
    refused("preparation-refused", "cutover plan register"),
    parked("preparation-parked", "preflight: 1 blocking", *PARKED, phase="preflight"),
    paused("preparation"),
    State("preparation-tasks", r"^2 task\(s\)", "checklist", at=(*TASKS, "preparation._prepare: tasks of preparation")),
    parked("preparation-task-rejected", "task 'staging': rejected", "preparation._tasks_done: park"),
    State("preparation-gate-closed", "evidence of gate 'prepared'", at=EVIDENCE),
    State("preparation-gate", "approval of gate 'prepared'", at=(*APPROVALS, "preparation._prepare: gate prepared")),
    done("preparation"),
)

REPLICATION = (
    unreachable("replication"),
    refused("replication-refused", "not prepared"),
    State("replication-backfill", "backfill to be copied", "backfill", at=("replication._await_copied: wait",)),
    State(
        "replication-backfill-continued",
        "backfill to be copied",
        "backfill",
        at=("replication._backfill: hand_on start",),
        closed="CONTINUED_AS_NEW",
    ),
    State("replication-backfill-resumed", "backfill to be copied", "backfill", at=("replication._await_copied: wait",)),
    State("replication-outbox-backfill", "backfill to be copied", "backfill", busy=True),
    State("replication-outbox-not-relayed", "dual-write phase to last", "dual-write", at=RELAYS, busy=True),
    State("replication-outbox-dual-write", "dual-write phase to last", "dual-write", busy=True),
    done("replication-outbox"),
    parked("replication-parked", "arming the fences", *PARKED),
    State("replication-dual-write", "dual-write phase to last", "dual-write", at=("replication._dwell: wait",)),
    paused("replication"),
    State(
        "replication-dwell-continued",
        "dual-write phase to last",
        at=("replication._dwell: hand_on dwell",),
        closed="CONTINUED_AS_NEW",
    ),
    State("replication-dwell-resumed", "dual-write phase to last", "dual-write", at=("replication._dwell: wait",)),
    State("replication-tasks", r"task\(s\)", r"ready\?", at=(*TASKS, "replication._become_ready: tasks of dual_write")),
    State(
        "replication-ready-gate-closed",
        "evidence of gate 'ready' to hold",
        at=(*EVIDENCE, "replication._become_ready: gate ready"),
    ),
    State("replication-watching", "cleanup to release", "watching", at=("replication._watch: wait",)),
    State(
        "replication-watch-continued",
        "cleanup to release",
        at=("replication._watch: hand_on watch",),
        closed="CONTINUED_AS_NEW",
    ),
    State("replication-watch-resumed", "cleanup to release", "watching", at=("replication._watch: wait",)),
    done("replication"),
)

RECONCILIATION = (
    unreachable("reconciliation"),
    paused("reconciliation"),
    State("reconciliation-pass-unreachable", AWAY, "reconciliation", at=OUTAGE, busy=True),
    State(
        "reconciliation-comparing",
        "the pass over",
        "reconciliation",
        "RUNNING",
        at=("passing._walk: workflow.wait_condition",),
        busy=True,
    ),
    State("reconciliation-pass-paused", "'resume'", "reconciliation", "PAUSED", at=PAUSED),
    State("reconciliation-frozen", "the freeze window to end", "reconciliation", at=("passing._walk: wait",)),
    done("reconciliation"),
    refused("reconciliation-failed", "no primary key"),
)

SWITCHOVER = (
    unreachable("switchover"),
    refused("switchover-refused", "'ready' is needed"),
    State("switchover-tasks", r"task\(s\)", "read gate", at=(*TASKS, "switchover._switch_reads: tasks of switchover")),
    State("switchover-read-gate-closed", "evidence of gate 'read' to hold", "read gate", at=EVIDENCE),
    State(
        "switchover-read-gate",
        "approval of gate 'read'",
        "read gate",
        at=(*APPROVALS, "switchover._switch_reads: gate read"),
    ),
    parked("switchover-read-gate-rejected", "gate 'read': rejected by", "run.gate: park"),
    paused("switchover"),
    parked("switchover-parked", "the route is missing", *PARKED, phase="read switch"),
    State("switchover-soak", "the soak to end", "soak", at=("soak.soak: wait", *HOURLY)),
    State("switchover-soak-waits-for-samples", "goes on until it has good", "soak", at=("soak.soak: wait",)),
    State(
        "switchover-soak-continued",
        "the soak to end",
        "soak",
        at=("soak.soak: hand_on soak",),
        closed="CONTINUED_AS_NEW",
    ),
    State("switchover-soak-resumed", "the soak to end", "soak", at=("soak.soak: wait",)),
    parked("switchover-soak-breached", "write_latency", "switchover._soak_breached: park"),
    State(
        "switchover-cancelled",
        "nothing: .*was cancelled; writable side: monolith",
        "cancelled",
        "NEEDS_ATTENTION",
        closed="CANCELED",
    ),
    State("switchover-write-gate-closed", "evidence of gate 'write' to hold", "write gate", at=EVIDENCE),
    State(
        "switchover-write-gate-one-approval",
        r"^1 approval of gate 'write'.*\(ann so far\)",
        "write gate",
        at=(*APPROVALS, "writeswitch._gate: gate write"),
    ),
    State("switchover-approvals-expired", "^2 approvals of gate 'write'", "write gate", at=APPROVALS),
    State("switchover-approvals-void", "^2 approvals of gate 'write'", "write gate", at=APPROVALS),
    State("switchover-approval-lapsed", "^2 approvals of gate 'write'", "write gate", at=APPROVALS),
    State("switchover-undone", "another attempt", "write switch", at=("writeswitch.switch_writes: wait",)),
    parked("switchover-write-switch-parked", "write switch: undone", "writeswitch._hold: park"),
    parked("switchover-half-done", "write switch: half done: .* a person has to look", "writeswitch._to_an_end: park"),
    State("switchover-section-unreachable", AWAY, "write switch", at=OUTAGE, busy=True),
    State("switchover-deprecation", "the deprecation to last", "deprecation", at=("switchover._deprecate: wait",)),
    State(
        "switchover-deprecation-continued",
        "the deprecation to last",
        "deprecation",
        at=("switchover._deprecate: hand_on deprecation",),
        closed="CONTINUED_AS_NEW",
    ),
    State("switchover-deprecation-resumed", "the deprecation to last", "deprecation"),
    State("switchover-found-switched", "the deprecation to last", "deprecation"),
    parked("switchover-failover", "failover", "run.heed_failover: park", phase="deprecation"),
    State("switchover-rollback-unreachable", AWAY, "rolling back|write switch", at=OUTAGE, busy=True),
    parked("switchover-rollback-parked", "putting foreign keys back", *PARKED),
    State(
        "switchover-rolled-back",
        "approval of gate 'switch-again'",
        "rolled back",
        at=(*APPROVALS, "switchover._roll_back: gate switch-again"),
    ),
    State("switchover-hand-over", "cleanup to take", "deprecated", at=("switchover._await_hand_over: wait",)),
    State(
        "switchover-hand-over-continued",
        "cleanup to take",
        "deprecated",
        at=("switchover._await_hand_over: hand_on hand-over",),
        closed="CONTINUED_AS_NEW",
    ),
    State("switchover-hand-over-resumed", "cleanup to take", "deprecated"),
    done("switchover"),
)

CLEANUP = (
    unreachable("cleanup"),
    refused("cleanup-refused", "not every service is deprecated"),
    State("cleanup-give-up-gate-closed", "evidence of gate 'give-up-way-back' to hold", at=EVIDENCE),
    parked("cleanup-rejected", "gate 'give-up-way-back': rejected by ben: not today", "run.gate: park"),
    State(
        "cleanup-give-up-gate",
        "approvals of gate 'give-up-way-back'",
        at=(*APPROVALS, "cleanup._give_up: gate give-up-way-back"),
    ),
    State("cleanup-hand-over", "to hand over", at=("cleanup._take_over: wait",)),
    parked(
        "cleanup-rolled-back",
        "giving up the way back: trading_engine is 'rolled-back'",
        "cleanup._give_up: park",
    ),
    parked("cleanup-take-over-parked", "recording stage 'released' of", "cleanup._take_over: park"),
    parked("cleanup-parked", "the disk is full", *PARKED, phase="retiring trading_engine"),
    State("cleanup-tasks", r"task\(s\)", at=(*TASKS, "cleanup.run: tasks of cleanup")),
    paused("cleanup"),
    State("cleanup-rename-gate", "approval of gate 'rename'", at=(*APPROVALS, "cleanup.run: gate rename")),
    State("cleanup-quiet", "to stay unused until", "quiet", at=("cleanup._drop: wait",)),
    State("cleanup-drop-gate-closed", "evidence of gate 'drop' to hold", "quiet", at=EVIDENCE),
    State("cleanup-drop-gate", "approvals of gate 'drop'", "quiet", at=(*APPROVALS, "cleanup._drop: gate drop")),
    done("cleanup"),
)

MIGRATION = (
    unreachable("migration"),
    paused("migration"),
    parked("migration-parked", "reading the stages", *PARKED),
    State("migration-preparation", "stage 'prepared'", "preparation", at=("migration._until: wait",)),
    parked("migration-child-parked", "replication: ended: ", "migration._until: park"),
    State(
        "migration-continued",
        "the stages to finish",
        state="RUNNING",
        at=("migration._next_phase: hand_on",),
        closed="CONTINUED_AS_NEW",
    ),
    State("migration-dual-write", "stage 'ready'", "dual-write", at=("migration._until: wait",)),
    State(
        "migration-dual-write-tasks",
        r"task\(s\)",
        "dual-write",
        at=(*TASKS, "migration._dual_write: tasks of dual_write"),
    ),
    State(
        "migration-switchover-tasks",
        r"task\(s\)",
        "switchover",
        at=(*TASKS, "migration._switchovers: tasks of switchover"),
    ),
    State("migration-calendar", "the switchover window of", "switchover", at=("migration._await_window: wait",)),
    parked("migration-calendar-parked", "the calendar names no window", "migration._await_window: park"),
    State("migration-switchover", "stage 'deprecated'", "switchover of .*", at=("migration._until: wait",)),
    State("migration-rolled-back", "which was rolled back", "switchover of .*", at=("migration._until: wait",)),
    State("migration-cleanup", "stage 'cleaned'", "cleanup", at=("migration._until: wait",)),
    done("migration"),
)

MONITOR = (
    unreachable("monitor"),
    refused("monitor-refused", "cutover plan register"),
    paused("monitor"),
    State("monitor-watching", "a finding in one of 1 services; all is well", "watching", "RUNNING", busy=True),
    State("monitor-found", "somebody to mend: .*--rebuild-stream", "watching", busy=True),
    parked("monitor-parked", "watching: no DSN", "monitor._shift: park"),
    State(
        "monitor-continued",
        "a finding in one of",
        state="RUNNING",
        at=("monitor.run: hand_on",),
        closed="CONTINUED_AS_NEW",
    ),
    State("monitor-resumed", "a finding in one of", "watching", "RUNNING", busy=True),
    done("monitor"),
)

STATES: dict[str, State] = {
    one.name: one
    for states in (PREPARATION, REPLICATION, RECONCILIATION, SWITCHOVER, CLEANUP, MIGRATION, MONITOR)
    for one in states
}

#: States that every workflow has by its base, and why one has not.
OF_EVERY_WORKFLOW = ("paused", "unreachable", "parked", "done")
NEVER = {"reconciliation-parked": "a pass that fails for good ends; the schedule makes the next one"}

#: Points that no history stands at, and why.
NO_STATE = {
    "run.wait: workflow.wait_condition": "the primitive under every other point",
    "run.sleep: wait": "the same",
    "run.park: wait": "the same, of every park",
    "run.tell: workflow.wait": "for the server's answer to a signal, when a cancellation has come",
    "calling.call: workflow.wait": "for the answer of an activity that was cancelled just now",
    "passing._take_back: workflow.wait": "for the answers of spans that were cancelled just now",
    "run.hand_on: workflow.wait_condition": "for handlers in flight, of which none waits",
    "run.end: workflow.wait_condition": "the same",
    "migration._ensure: park": "only where the server refuses to start a child for another reason than a twin",
}
