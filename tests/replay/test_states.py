"""The list of states, the points of the code at which runs wait and the committed histories agree, all ways."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.replay.conftest import HISTORIES
from tests.replay.states import NEVER, NO_STATE, OF_EVERY_WORKFLOW, STATES, State
from tests.replay.waiting_points import waiting_points
from workers.registry import WORKFLOWS
from workflows import search

RECORD = "python -m scripts.record_histories"


def test_every_point_at_which_a_run_can_wait_is_in_a_state() -> None:
    points = waiting_points()
    listed = {point for state in STATES.values() for point in state.at}
    assert sorted(points - listed - set(NO_STATE)) == [], f"add states with these points to states.py, then {RECORD}"
    assert sorted((listed | set(NO_STATE)) - points) == [], "the code has these points no more; take them out"
    assert not listed & set(NO_STATE)


def test_every_state_has_a_history_and_every_history_a_state() -> None:
    recorded = {path.stem for path in HISTORIES}
    assert sorted(set(STATES) - recorded) == [], f"{RECORD} records them"
    assert sorted(recorded - set(STATES)) == [], f"no such states; {RECORD} deletes them"


def test_every_workflow_has_the_states_that_its_base_gives_it() -> None:
    names = {one.__name__.removesuffix("Workflow").lower() for one in WORKFLOWS}
    wanted = {f"{name}-{state}" for name in names for state in OF_EVERY_WORKFLOW}
    assert wanted - set(STATES) == set(NEVER)
    assert {name.partition("-")[0] for name in STATES} == names


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_history_ends_in_the_state_of_its_name(path: Path) -> None:
    state = STATES[path.stem]
    events = json.loads(path.read_text())["events"]
    closing = events[-1]["eventType"].removeprefix("EVENT_TYPE_WORKFLOW_EXECUTION_")
    assert closing == state.closed if state.closed else not closing.startswith(("COMPLETED", "FAILED", "CANCELED"))
    assert says(events, state), f"{shown(events)}, and not {state}"


def says(events: list[dict[str, Any]], state: State) -> bool:
    last = shown(events)
    return state.holds(last[search.PHASE.name], last[search.STATE.name], last[search.WAITING_FOR.name])


def shown(events: list[dict[str, Any]]) -> dict[str, str]:
    """What the run has put into its search attributes last."""
    values: dict[str, str] = {}
    for event in events:
        upserted = event.get("upsertWorkflowSearchAttributesEventAttributes", {})
        for name, payload in upserted.get("searchAttributes", {}).get("indexedFields", {}).items():
            values[name] = json.loads(base64.b64decode(payload["data"]))
    return values


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("await self.wait(lambda: False, pause)", "new.step: wait"),
        ("await self.sleep(pause, 'x')", "new.step: sleep"),
        ("await self.park('step', 'why')", "new.step: park"),
        ("await self.gate(Gate('brake', 'Brake?'))", "new.step: gate brake"),
        ("await open_tasks(self, 'brakes', self.ref)", "new.step: tasks of brakes"),
        ("await self.hand_on(resume='brake')", "new.step: hand_on brake"),
        ("await workflow.wait_condition(lambda: False)", "new.step: workflow.wait_condition"),
        ("await asyncio.sleep(1)", "new.step: asyncio.sleep"),
    ],
)
def test_a_new_wait_in_the_code_is_found(tmp_path: Path, line: str, point: str) -> None:
    (tmp_path / "new.py").write_text(f"async def step(self):\n    {line}\n    if self.again:\n        {line}\n")
    assert waiting_points(tmp_path) == {point, f"{point} 2"}
