"""A cancellation may arrive between any two events; a run that meets it must still be able to go on or end."""

import json
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory

from tests.replay.conftest import HISTORIES, failures
from tests.replay.states import STATES

Event = dict[str, Any]
OWN_COMMANDS_END = "EVENT_TYPE_WORKFLOW_TASK_COMPLETED"
#: Each costs a replay of all that is before it.
CUTS = 8
SIGNAL_ANSWERED = "EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED"
CLOSING = (
    "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED",
    "EVENT_TYPE_WORKFLOW_EXECUTION_FAILED",
    "EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED",
    "EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW",
)


def commands_after(events: list[Event], task: int) -> int:
    """The index behind the events that the commands of this completed workflow task made."""
    completed = events[task]["eventId"]
    end = task + 1
    while end < len(events) and any(
        isinstance(value, dict) and value.get("workflowTaskCompletedEventId") == completed
        for value in events[end].values()
    ):
        end += 1
    return end


def cancelled_after(events: list[Event], end: int) -> list[Event]:
    """The history up to there, then a request to cancel, and the workflow task in which it is met."""
    time = events[end - 1]["eventTime"]
    scheduled = next(one for one in events if one["eventType"] == "EVENT_TYPE_WORKFLOW_TASK_SCHEDULED")
    started = next(one for one in events if one["eventType"] == "EVENT_TYPE_WORKFLOW_TASK_STARTED")
    first = end + 1
    attributes = "workflowTaskStartedEventAttributes"
    return [
        *events[:end],
        {
            "eventId": str(first),
            "eventTime": time,
            "eventType": "EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED",
            "workflowExecutionCancelRequestedEventAttributes": {"cause": "", "identity": "a person"},
        },
        {**scheduled, "eventId": str(first + 1), "eventTime": time},
        {
            **started,
            "eventId": str(first + 2),
            "eventTime": time,
            attributes: {**started[attributes], "scheduledEventId": str(first + 1)},
        },
    ]


def cuts(path: Path) -> list[WorkflowHistory]:
    """Histories that are cancelled right after a workflow task of the recorded one.

    Where the run waits, a history ends at just the place that matters, and there is one of each such place. A
    run that has ended is cut `CUTS` times, spread over its length. Only what is replayed is built: it is as long
    as the history itself.
    """
    events: list[Event] = json.loads(path.read_text())["events"]
    ends = [
        end
        for task, event in enumerate(events)
        if event["eventType"] == OWN_COMMANDS_END
        and events[(end := commands_after(events, task)) - 1]["eventType"] not in CLOSING
    ]
    step = max(1, -(-len(ends) // CUTS)) if STATES[path.stem].closed else len(ends)
    return [
        WorkflowHistory.from_json(f"{path.stem}@{end}", json.dumps({"events": cancelled_after(events, end)}))
        for end in ends[::-1][::step]
    ]


async def test_a_run_takes_a_cancellation_wherever_it_comes() -> None:
    made = {path.stem: cuts(path) for path in HISTORIES}
    assert [name for name, histories in made.items() if not histories] == []
    failed = await failures(one for histories in made.values() for one in histories)
    assert failed == {}


async def test_a_cut_that_the_code_could_not_have_made_is_noticed() -> None:
    """The judge of the test above: the same cut with another activity in it."""
    (cut,) = cuts(next(path for path in HISTORIES if path.stem == "preparation-gate"))
    changed = WorkflowHistory.from_json("changed", cut.to_json().replace('"bind_plan"', '"another_activity"'))
    assert set(await failures([changed])) == {"changed"}


def cancelled_with_the_answer(events: list[Event], answer: int) -> list[Event]:
    """The history up to a request to cancel that comes in one workflow task with the answer to a signal."""
    *before, cancel, scheduled, started = cancelled_after(events, answer)
    attributes = "workflowTaskStartedEventAttributes"
    first = answer + 1
    return [
        *before,
        cancel,
        {**events[answer], "eventId": str(first + 1)},
        {**scheduled, "eventId": str(first + 2)},
        {
            **started,
            "eventId": str(first + 3),
            attributes: {**started[attributes], "scheduledEventId": str(first + 2)},
        },
    ]


async def test_a_cancellation_that_comes_with_the_answer_to_a_signal_is_taken(
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = next(one for one in HISTORIES if one.stem == "switchover-deprecation")
    events: list[Event] = json.loads(path.read_text())["events"]
    answers = [at for at, one in enumerate(events) if one["eventType"] == SIGNAL_ANSWERED]
    assert answers
    made = [{"events": cancelled_with_the_answer(events, answer)} for answer in answers]
    assert not await failures(WorkflowHistory.from_json(path.stem, json.dumps(cut)) for cut in made)
    # the task that is refused is the last one of its history: the replayer tells of it in the log alone
    assert "Failing workflow task" not in "".join(capfd.readouterr())
