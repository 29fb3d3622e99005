"""Writes the history of a run that stands in one of the states of `states.py`, after making sure that it does."""

import asyncio
import fnmatch
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from tests.replay.states import STATES, State
from tests.workflows.harness import DEADLINE, Harness, running
from tests.workflows.world import World

SERVICE = "trading_engine"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
#: Short histories: few samples in each of the long waits.
SHORT = {"soak": timedelta(seconds=0.3), "soak_samples": 3, "deprecation": 2 * HOUR, "watch_every": 2 * DAY}


class NotReached(Exception):
    """A run did not come to the state that was to be recorded; the text names it and what was seen instead."""


def anonymous(value: Any) -> Any:
    """Without stack traces and identities: they name folders and machines, and replay does not need them."""
    if isinstance(value, dict):
        return {key: anonymous(one) for key, one in value.items() if key not in ("stackTrace", "identity")}
    return [anonymous(one) for one in value] if isinstance(value, list) else value


@dataclass
class Recorder:
    """Keeps histories whose name matches `only`; the others are brought about and not written."""

    environment: WorkflowEnvironment
    #: A server that suggests to continue as new after a few events.
    hasty: WorkflowEnvironment
    folder: Path
    only: str = "*"
    recorded: set[str] = field(default_factory=set)
    #: Of each history that was written.
    events: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def harness(
        self, stage: str = "", migration: str = "prepared", *, hasty: bool = False, **rules: Any
    ) -> AsyncIterator[Harness]:
        world = World(f"plan-{uuid.uuid4().hex[:8]}", (SERVICE,), **{**SHORT, **rules})
        world.stage = migration
        if stage:
            world.stages_of[SERVICE] = stage
        async with running(self.hasty if hasty else self.environment, world) as harness:
            yield harness

    async def keep(self, harness: Harness, run: str, name: str, run_id: str | None = None) -> None:
        """The history once the run stands in that state (or has ended in it). Raises NotReached."""
        state = STATES.get(name)
        if state is None:
            raise NotReached(f"{name}: tests/replay/states.py does not know this state")
        handle = harness.client.get_workflow_handle(run, run_id=run_id)
        await (_closed(handle, state) if state.closed else _quiet(harness, run, state))
        history = await handle.fetch_history()
        self.recorded.add(name)
        if fnmatch.fnmatch(name, self.only):
            text = json.dumps(anonymous(json.loads(history.to_json())), separators=(",", ":"), sort_keys=True)
            (self.folder / f"{name}.json").write_text(text + "\n")
            self.events[name] = len(history.events)


async def _closed(handle: WorkflowHandle[Any, Any], state: State) -> None:
    wanted = WorkflowExecutionStatus[state.closed]
    seen = await _until(lambda: _execution_status(handle), lambda one: one != WorkflowExecutionStatus.RUNNING)
    if seen != wanted:
        raise NotReached(f"{state.name}: wanted a run that is {wanted.name}, it is {seen.name if seen else 'unknown'}")


async def _execution_status(handle: WorkflowHandle[Any, Any]) -> WorkflowExecutionStatus | None:
    return (await handle.describe()).status


async def _quiet(harness: Harness, run: str, state: State) -> None:
    """Until the run says so and nothing of it is in flight, but activities of a state that is `busy`."""
    try:
        await harness.until(run, state.shown_by, str(state))
    except AssertionError as error:
        raise NotReached(f"{state.name}: {error}") from None

    async def in_flight() -> bool:
        raw = (await harness.handle(run).describe()).raw_description
        return raw.HasField("pending_workflow_task") or bool(raw.pending_activities and not state.busy)

    if await _until(in_flight, lambda one: not one):
        raise NotReached(f"{state.name}: an activity or a workflow task of it does not end")


async def _until(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """What was seen last: that which holds, or what was there at the deadline."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not holds(seen := await look()) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.03)
    return seen
