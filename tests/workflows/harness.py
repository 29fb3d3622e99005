"""Drives runs on a real Temporal server whose time is skipped; talks to them as people do."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from tests.workflows.world import World
from workers.registry import PASSED_THROUGH, WORKFLOWS
from workers.worker import HEARTBEATS
from workflows.status import Status

DEADLINE = 30.0


def runner() -> SandboxedWorkflowRunner:
    """The production sandbox."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))


@dataclass
class Harness:
    """One world, one worker, one task queue."""

    client: Client
    world: World
    environment: WorkflowEnvironment
    queue: str = field(default_factory=lambda: f"test-{uuid.uuid4()}")
    handles: dict[str, WorkflowHandle[Any, Any]] = field(default_factory=dict)

    @property
    def plan(self) -> str:
        return self.world.plan

    async def start(
        self, workflow: type, workflow_id: str, payload: Any = None, **fields: str
    ) -> WorkflowHandle[Any, Any]:
        """Start with `{"plan": …}` as a person would, or with exactly `payload`."""
        handle: WorkflowHandle[Any, Any] = await self.client.start_workflow(
            workflow.run,  # type: ignore[attr-defined]
            {"plan": self.plan, **fields} if payload is None else payload,
            id=workflow_id,
            task_queue=self.queue,
        )
        self.handles[workflow_id] = handle
        return handle

    def handle(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(workflow_id)

    async def advance(self, workflow_id: str, by: timedelta) -> None:
        """Let that much of the run's own time pass; timers and samples in it happen in their order."""
        async with asyncio.timeout(DEADLINE * 2):
            await self.environment.fast_forward(self.handle(workflow_id), by)

    async def status(self, workflow_id: str) -> Status:
        """The query's answer, checked for what must always hold."""
        status: Status = await self.handle(workflow_id).query("status", result_type=Status)
        assert status.waiting_for.strip()
        assert ", since " in status.waiting_for
        return status

    async def until(self, workflow_id: str, holds: Callable[[Status], bool], what: str = "") -> Status:
        """Poll the status until it holds."""
        last: Status | None = None
        end = asyncio.get_running_loop().time() + DEADLINE
        while asyncio.get_running_loop().time() < end:
            try:
                last = await self.status(workflow_id)
            except RPCError:
                last = None
            if last is not None and holds(last):
                return last
            await asyncio.sleep(0.03)
        raise AssertionError(f"{workflow_id} never came to {what or 'that'}; last: {last and last.model_dump()}")

    async def at_gate(self, workflow_id: str, gate: str) -> Status:
        """Until that gate is open and its evidence holds."""
        return await self.until(
            workflow_id, lambda one: any(g.name == gate and g.ok for g in one.gates) and one.state == "WAITING", gate
        )

    async def parked(self, workflow_id: str) -> Status:
        return await self.until(workflow_id, lambda one: one.state == "NEEDS_ATTENTION", "parked")

    async def signal(self, workflow_id: str, name: str, *payloads: Any, **message: Any) -> None:
        """As `temporal workflow signal --name … --input …` does."""
        await self.handle(workflow_id).signal(name, args=list(payloads) if payloads else [message])

    async def update(self, workflow_id: str, name: str, *payloads: Any, **message: Any) -> str:
        answer: str = await self.handle(workflow_id).execute_update(
            name, args=list(payloads) if payloads else [message]
        )
        return answer

    async def approve(self, workflow_id: str, gate: str, *people: str) -> None:
        """Wait for the gate and have people approve what it shows."""
        status = await self.at_gate(workflow_id, gate)
        opened = next(one for one in status.gates if one.name == gate)
        seen = {"evidence": opened.evidence} if opened.needs_evidence else {}
        for by in people:
            await self.update(workflow_id, "approve", by=by, gate=gate, **seen)

    async def stage(self, service: str, stage: str) -> None:
        """Until the world has that stage for a service ("" for the migration's own)."""
        end = asyncio.get_running_loop().time() + DEADLINE
        while asyncio.get_running_loop().time() < end:
            if (self.world.stages_of.get(service) if service else self.world.stage) == stage:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"stage {stage!r} of {service!r} never came: {self.world.stages_of}, {self.world.stage}")


@asynccontextmanager
async def running(environment: WorkflowEnvironment, world: World, queue: str = "") -> AsyncIterator[Harness]:
    """A harness with its worker; runs that are left are ended."""
    client = environment.client
    harness = Harness(client, world, environment, queue or f"test-{uuid.uuid4()}")
    async with Worker(
        client,
        task_queue=harness.queue,
        workflows=WORKFLOWS,
        activities=world.activities(),
        workflow_runner=runner(),
        workflow_failure_exception_types=[],
        # as the worker has it: a cancellation comes with the answer to a heartbeat
        max_heartbeat_throttle_interval=HEARTBEATS,
        default_heartbeat_throttle_interval=HEARTBEATS,
    ):
        try:
            yield harness
        finally:
            async for found in client.list_workflows(f"TaskQueue = '{harness.queue}' AND ExecutionStatus = 'Running'"):
                # the list may be a moment late: a run that has just ended is left alone
                with suppress(RPCError):
                    await client.get_workflow_handle(found.id, run_id=found.run_id).terminate("the test is over")
