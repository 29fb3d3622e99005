"""Workers that are ended in order, one after the other, under an activity that takes long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities import ids
from tests.waiting import until
from tests.workflows.harness import Harness, runner
from tests.workflows.world import World
from workers.registry import WORKFLOWS
from workers.worker import HEARTBEATS
from workflows import timeouts
from workflows.cleanup import CleanupWorkflow

SERVICE = "trading_engine"


@asynccontextmanager
async def worker(harness: Harness) -> AsyncIterator[None]:
    """A worker that gives what runs no time when it is ended."""
    async with Worker(
        harness.client,
        task_queue=harness.queue,
        workflows=WORKFLOWS,
        activities=harness.world.activities(),
        workflow_runner=runner(),
        graceful_shutdown_timeout=timedelta(0),
        max_heartbeat_throttle_interval=HEARTBEATS,
        default_heartbeat_throttle_interval=HEARTBEATS,
    ):
        yield


async def test_more_deploys_than_a_round_has_attempts_park_no_long_activity(skipping: WorkflowEnvironment) -> None:
    world = World("deployed", (SERVICE,))
    world.stages_of[SERVICE] = "released"
    harness = Harness(skipping.client, world, skipping)
    run = ids.cleanup("deployed")
    world.on["archive_tables"] = world.never
    await harness.start(CleanupWorkflow, run)
    try:
        for number in range(1, timeouts.FIRST_ROUND_ATTEMPTS + 2):
            async with worker(harness):

                async def runs(wanted: int = number) -> bool:
                    return world.count("archive_tables") == wanted

                await until(runs, "the archive is written")
        del world.on["archive_tables"]
        async with worker(harness):
            await harness.until(run, lambda one: any(gate.name == "task:docs" for gate in one.gates))
        assert [alert.kind for alert in world.alerts] == []
    finally:
        await harness.handle(run).terminate("the test is over")
