"""The committed histories, and replays of many of them by one replayer: starting one costs more than a short replay."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from tests.workflows.harness import runner
from workers.registry import WORKFLOWS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


async def failures(histories: Iterable[WorkflowHistory]) -> dict[str, Exception]:
    """What went wrong with each that the code of now does not replay, by its name."""

    async def each() -> AsyncIterator[WorkflowHistory]:
        for one in histories:
            yield one

    replayer = Replayer(workflows=WORKFLOWS, data_converter=pydantic_data_converter, workflow_runner=runner())
    async with replayer.workflow_replay_iterator(each()) as results:
        return {one.history.workflow_id: one.replay_failure async for one in results if one.replay_failure}
