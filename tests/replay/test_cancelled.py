"""A cancellation may arrive between any two events; a run that meets it must still be able to go on or end."""

import json
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory

from tests.replay.test_replay import HISTORIES, replayer

Event = dict[str, Any]
OWN_COMMANDS_END = "EVENT_TYPE_WORKFLOW_TASK_COMPLETED"
#: Each costs a replay of all that is before it; the last task, where the run waits, is always among them.
CUTS = 5
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


def variants(path: Path) -> list[WorkflowHistory]:
    """Histories that are cancelled right after one of the recorded one's workflow tasks, spread over its length."""
    events: list[Event] = json.loads(path.read_text())["events"]
    made: list[WorkflowHistory] = []
    for task, event in enumerate(events):
        if event["eventType"] != OWN_COMMANDS_END:
            continue
        end = commands_after(events, task)
        if events[end - 1]["eventType"] not in CLOSING:
            cut = {"events": cancelled_after(events, end)}
            made.append(WorkflowHistory.from_json(f"{path.stem}@{end}", json.dumps(cut)))
    step = max(1, -(-len(made) // CUTS))
    return made[::-1][::step]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_run_takes_a_cancellation_wherever_it_comes(path: Path) -> None:
    histories = variants(path)
    assert histories
    async with replayer().workflow_replay_iterator(each(histories)) as results:
        failed = [f"{one.history.workflow_id}: {one.replay_failure}" async for one in results if one.replay_failure]
    assert not failed


async def each(histories: list[WorkflowHistory]) -> Any:
    for history in histories:
        yield history


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
    for answer in answers:
        cut = {"events": cancelled_with_the_answer(events, answer)}
        await replayer().replay_workflow(WorkflowHistory.from_json(path.stem, json.dumps(cut)))
    # the task that is refused is the last one of its history: the replayer tells of it in the log alone
    assert "Failing workflow task" not in "".join(capfd.readouterr())
