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
