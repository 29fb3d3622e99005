"""Histories of every workflow in every state it can wait in are replayed by the code of now."""

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import NondeterminismError

from workers.registry import PASSED_THROUGH, WORKFLOWS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def replayer() -> Replayer:
    return Replayer(
        workflows=WORKFLOWS,
        data_converter=pydantic_data_converter,
        workflow_runner=SandboxedWorkflowRunner(
            restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH)
        ),
    )


@pytest.fixture(params=HISTORIES, ids=lambda path: path.stem)
def history(request: pytest.FixtureRequest) -> WorkflowHistory:
    path: Path = request.param
    return WorkflowHistory.from_json(path.stem, path.read_text())


async def test_a_recorded_history_replays(history: WorkflowHistory) -> None:
    await replayer().replay_workflow(history)


@pytest.fixture
def changed() -> WorkflowHistory:
    """A history whose first activity has another name."""
    path = next(one for one in HISTORIES if one.stem == "preparation-gate")
    return WorkflowHistory.from_json("changed", path.read_text().replace('"bind_plan"', '"another_activity"'))


def test_every_workflow_has_recorded_histories() -> None:
    recorded = {path.stem.partition("-")[0] for path in HISTORIES}
    assert recorded == {one.__name__.removesuffix("Workflow").lower() for one in WORKFLOWS}


async def test_a_changed_order_of_steps_is_noticed(changed: WorkflowHistory) -> None:
    with pytest.raises(NondeterminismError, match="TMPRL1100"):
        await replayer().replay_workflow(changed)
