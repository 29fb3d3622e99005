"""Asking a run for an answer: with a limit, and in words where no worker is there to give one."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowUpdateRPCTimeoutOrCancelledError

from cutover.errors import Refused, Unreachable
from workflows.status import command
from workflows.timeouts import TASK_QUEUE

T = TypeVar("T")

#: Seconds until a person is told what is waited for, and until the waiting for an answer ends.
QUIET = 1.0
ANSWER = 30.0


async def polled(client: Client, task_queue: str = TASK_QUEUE) -> bool:
    """Whether a worker polls the task queue, or did within the last minutes (the server forgets one after five)."""
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )
    return bool(answer.pollers)


async def patiently(work: Coroutine[Any, Any, T], what: str, limit: float | None = None) -> T:
    """Waits for the work and says on stderr what for, where it takes longer. Raises TimeoutError at the limit."""
    task = asyncio.ensure_future(work)
    try:
        async with asyncio.timeout(limit):
            await asyncio.wait([task], timeout=QUIET)
            if task.done():
                return await task
            if not sys.stderr.isatty():
                typer.echo(f"waiting for {what} …", err=True)
                return await task
            with Console(stderr=True).status(f"waiting for {what} …"):
                return await task
    finally:
        task.cancel()


async def answer(client: Client, run_id: str, action: str, payload: dict[str, Any]) -> str:
    """Sends a message as an update and returns the run's answer.

    Raises Refused where the run has ended, Unreachable where no worker can answer.
    """
    handle = client.get_workflow_handle(run_id)
    described = await handle.describe()
    if described.status != WorkflowExecutionStatus.RUNNING:
        ended = described.status.name.lower().replace("_", " ") if described.status is not None else "over"
        raise Refused(f"{run_id} is {ended}: it takes no more messages; list the open runs with: cutover status")
    if not await polled(client, described.task_queue):
        raise Unreachable(
            f"no worker polls task queue {described.task_queue!r}, so nobody can answer; nothing was sent. "
            f"{_what_to_do(run_id, action, payload)}"
        )
    update = handle.execute_update(action, payload, result_type=str)
    try:
        return await patiently(update, f"{run_id} to answer", ANSWER)
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
        raise Unreachable(
            f"{run_id} did not answer within {ANSWER:g} s: the workers of task queue {described.task_queue!r} are gone "
            f"or busy. The message may still arrive; see `cutover status PLAN`. {_what_to_do(run_id, action, payload)}"
        ) from None


def _what_to_do(run_id: str, action: str, payload: dict[str, Any]) -> str:
    fields = {name: str(value) for name, value in payload.items() if name != "by"}
    signal = command(run_id, action, "", **fields).temporal.replace('"YOU"', f'"{payload.get("by", "YOU")}"')
    return (
        "Start a worker (cutover worker) and give this command again: it may be given twice. "
        f"Or leave it as a signal, which waits for a worker: {signal}"
    )
