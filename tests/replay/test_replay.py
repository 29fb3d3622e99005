"""Histories of every workflow in every state it can wait in are replayed by the code of now."""

from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import WorkflowHistory
from temporalio.workflow import NondeterminismError

from tests.replay.conftest import HISTORIES, failures


@pytest_asyncio.fixture(scope="module")
async def failed() -> dict[str, Exception]:
    """Of all histories, those that do not replay."""
    return await failures(WorkflowHistory.from_json(path.stem, path.read_text()) for path in HISTORIES)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_history_replays(path: Path, failed: dict[str, Exception]) -> None:
    if path.stem in failed:
        raise failed[path.stem]


async def test_a_changed_order_of_steps_is_noticed() -> None:
    path = next(one for one in HISTORIES if one.stem == "preparation-gate")
    changed = WorkflowHistory.from_json("changed", path.read_text().replace('"bind_plan"', '"another_activity"'))
    found = await failures([changed])
    assert isinstance(found["changed"], NondeterminismError)
    assert "TMPRL1100" in str(found["changed"])
