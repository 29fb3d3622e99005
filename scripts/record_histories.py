"""Record a history of every workflow in every state it can wait in: `python -m scripts.record_histories [FOLDER]`.

The runs are those of the tests' world in memory on a real Temporal server. Record from the commit that
is deployed, never from a change under test: `tests/replay` then shows what the change would break.
"""

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from cutover.devstack.temporal import ensure
from tests.workflows.conftest import start_skipping
from tests.workflows.harness import Harness, running
from tests.workflows.world import World, refused
from workflows import ids
from workflows.cleanup import CleanupWorkflow
from workflows.migration import MigrationWorkflow
from workflows.preparation import PreparationWorkflow
from workflows.reconciliation import ReconciliationWorkflow
from workflows.replication import ReplicationWorkflow
from workflows.switchover import SwitchoverWorkflow

FOLDER = Path(__file__).parent.parent / "tests" / "replay" / "histories"
SERVICE = "trading_engine"
HOUR = timedelta(hours=1)
SHORT = {"soak": timedelta(seconds=0.3), "soak_samples": 3, "deprecation": 2 * HOUR, "watch_every": 6 * HOUR}


def anonymous(value: Any) -> Any:
    """Without stack traces and identities: they name folders and machines, and replay does not need them."""
    if isinstance(value, dict):
        return {key: anonymous(one) for key, one in value.items() if key not in ("stackTrace", "identity")}
    return [anonymous(one) for one in value] if isinstance(value, list) else value


class Recorder:
    """Writes histories of a harness's runs under a state's name."""

    def __init__(self, environment: Any, folder: Path) -> None:
        self.environment = environment
        self.folder = folder

    @asynccontextmanager
    async def harness(self, stage: str = "", migration: str = "prepared", **rules: Any) -> AsyncIterator[Harness]:
        world = World(f"plan-{uuid.uuid4().hex[:8]}", (SERVICE,), **{**SHORT, **rules})
        world.stage = migration
        if stage:
            world.stages_of[SERVICE] = stage
        async with running(self.environment, world) as harness:
            yield harness

    async def keep(self, harness: Harness, run: str, name: str) -> None:
        """The history as it is now, without what differs in every recording but does not matter."""
        history = await harness.handle(run).fetch_history()
        text = json.dumps(anonymous(json.loads(history.to_json())), separators=(",", ":"), sort_keys=True)
        (self.folder / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {len(history.events)} events")


async def preparation(recorder: Recorder) -> None:
    async with recorder.harness(migration="registered") as h:
        run = ids.preparation(h.plan)
        h.world.blocking = 1
        await h.start(PreparationWorkflow, run)
        await h.parked(run)
        await recorder.keep(h, run, "preparation-parked")
        h.world.blocking = 0
        await h.update(run, "retry", by="ann")
        await h.until(run, lambda one: len(one.gates) == 2)
        await recorder.keep(h, run, "preparation-tasks")
        await h.update(run, "approve", by="ann", gate="tasks")
        await h.at_gate(run, "prepared")
        await recorder.keep(h, run, "preparation-gate")
        await h.approve(run, "prepared", "ann")
        await h.handle(run).result()
        await recorder.keep(h, run, "preparation-done")


async def replication(recorder: Recorder) -> None:
    async with recorder.harness() as h:
        run = ids.replication(h.plan, SERVICE)
        h.world.problems["ready"] = ["trades: 3 rows differ"]
        await h.start(ReplicationWorkflow, run, service=SERVICE)
        await h.until(run, lambda one: one.phase == "dual-write")
        await recorder.keep(h, run, "replication-dual-write")
        await h.advance(run, timedelta(days=14, hours=1))
        await h.until(run, lambda one: "3 rows differ" in one.waiting_for)
        await recorder.keep(h, run, "replication-ready-gate-closed")
        h.world.problems.clear()
        await h.update(run, "retry", by="ann")
        await h.until(run, lambda one: one.phase == "watching")
        await recorder.keep(h, run, "replication-watching")
        await h.signal(run, "released", by="ann")
        await h.handle(run).result()
        await recorder.keep(h, run, "replication-done")


async def switchover(recorder: Recorder) -> None:
    async with recorder.harness("ready", soak=timedelta(minutes=2), soak_samples=10) as h:
        run = ids.switchover(h.plan, SERVICE)
        await h.start(SwitchoverWorkflow, run, service=SERVICE)
        await h.at_gate(run, "read")
        await recorder.keep(h, run, "switchover-read-gate")
        await h.update(run, "pause", by="erin")
        await h.update(run, "approve", by="ann")
        await h.until(run, lambda one: one.state == "PAUSED")
        await recorder.keep(h, run, "switchover-paused")
        await h.update(run, "resume", by="erin")
        await h.until(run, lambda one: one.phase == "soak")
        await recorder.keep(h, run, "switchover-soak")
        h.world.breached = ["write_latency"]
        await h.advance(run, timedelta(minutes=1))
        await h.parked(run)
        await recorder.keep(h, run, "switchover-soak-breached")
    async with recorder.harness("ready") as h:
        run = ids.switchover(h.plan, SERVICE)
        await h.start(SwitchoverWorkflow, run, service=SERVICE)
        await h.approve(run, "read", "ann")
        await h.at_gate(run, "write")
        await h.update(run, "approve", by="ann", evidence="k7wr")
        await recorder.keep(h, run, "switchover-write-gate-one-approval")
        h.world.undone = ["a lock was not obtained"]
        await h.update(run, "approve", by="ben", evidence="k7wr")
        await h.until(run, lambda one: "another attempt" in one.waiting_for)
        await recorder.keep(h, run, "switchover-undone")
        await h.advance(run, timedelta(minutes=1))
        await h.until(run, lambda one: one.phase == "deprecation")
        await recorder.keep(h, run, "switchover-deprecation")
        await h.update(run, "rollback", by="dora")
        await h.at_gate(run, "switch-again")
        await recorder.keep(h, run, "switchover-rolled-back")
        await h.approve(run, "switch-again", "ann")
        await h.approve(run, "read", "ann")
        await h.approve(run, "write", "ann", "ben")
        await h.until(run, lambda one: one.phase == "deprecation")
        await h.advance(run, 3 * HOUR)
        await h.until(run, lambda one: one.phase == "deprecated")
        await recorder.keep(h, run, "switchover-hand-over")
        await h.signal(run, "hand_over", by="ann")
        await h.handle(run).result()
        await recorder.keep(h, run, "switchover-done")


async def cleanup(recorder: Recorder) -> None:
    async with recorder.harness("deprecated") as h:
        run = ids.cleanup(h.plan)
        await h.start(CleanupWorkflow, run)
        await h.at_gate(run, "give-up-way-back")
        await h.signal(run, "approve", "nonsense")
        await h.update(run, "reject", by="ben", reason="not today")
        await h.parked(run)
        await recorder.keep(h, run, "cleanup-rejected")
        await h.update(run, "retry", by="ben")
        await h.at_gate(run, "give-up-way-back")
        await recorder.keep(h, run, "cleanup-give-up-gate")
        await h.approve(run, "give-up-way-back", "ann", "ben")
        await h.until(run, lambda one: any(gate.name == "task:docs" for gate in one.gates))
        await recorder.keep(h, run, "cleanup-tasks")
        await h.update(run, "approve", by="ann")
        await h.at_gate(run, "rename")
        await recorder.keep(h, run, "cleanup-rename-gate")
        await h.approve(run, "rename", "ann")
        await h.until(run, lambda one: one.phase == "quiet")
        await recorder.keep(h, run, "cleanup-quiet")
        await h.advance(run, timedelta(days=7, hours=1))
        await h.at_gate(run, "drop")
        await recorder.keep(h, run, "cleanup-drop-gate")
        await h.approve(run, "drop", "ann", "ben")
        await h.handle(run).result()
        await recorder.keep(h, run, "cleanup-done")


async def migration(recorder: Recorder) -> None:
    async with recorder.harness(migration="registered") as h:
        run = ids.migration(h.plan)
        await h.start(MigrationWorkflow, run)
        await h.until(run, lambda one: "stage 'prepared'" in one.waiting_for)
        await recorder.keep(h, run, "migration-preparation")
    async with recorder.harness() as h:
        run = ids.migration(h.plan)
        await h.start(MigrationWorkflow, run)
        await h.until(run, lambda one: "stage 'ready'" in one.waiting_for)
        await recorder.keep(h, run, "migration-dual-write")
    async with recorder.harness("ready") as h:
        run = ids.migration(h.plan)
        await h.start(MigrationWorkflow, run)
        await h.until(run, lambda one: "window" in one.waiting_for)
        await recorder.keep(h, run, "migration-calendar")
    async with recorder.harness("ready", compress=200_000.0) as h:
        run = ids.migration(h.plan)
        await h.start(MigrationWorkflow, run)
        await h.until(run, lambda one: "stage 'deprecated'" in one.waiting_for)
        await recorder.keep(h, run, "migration-switchover")
    async with recorder.harness("deprecated") as h:
        run = ids.migration(h.plan)
        await h.start(MigrationWorkflow, run)
        await h.until(run, lambda one: "stage 'cleaned'" in one.waiting_for)
        await recorder.keep(h, run, "migration-cleanup")


async def reconciliation(recorder: Recorder) -> None:
    async with recorder.harness("ready") as h:
        h.world.differences = 2
        table = {"service": SERVICE, "table": f"{SERVICE}_rows"}
        await (await h.start(ReconciliationWorkflow, f"{h.plan}/pass", **table)).result()
        await recorder.keep(h, f"{h.plan}/pass", "reconciliation-done")
        h.world.faults["reconcile_table"] = [refused("no primary key")]
        handle = await h.start(ReconciliationWorkflow, f"{h.plan}/failed", **table)
        await asyncio.gather(handle.result(), return_exceptions=True)
        await recorder.keep(h, f"{h.plan}/failed", "reconciliation-failed")


async def main(folder: Path) -> None:
    """All scenarios, one after the other."""
    async with await start_skipping(ensure()) as environment:
        recorder = Recorder(environment, folder)
        for scenario in (preparation, replication, switchover, cleanup, migration, reconciliation):
            await scenario(recorder)


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    chosen.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(chosen))
    sys.stdout.flush()
    # The SDK's own threads may still call into an interpreter that is shutting down, which aborts it.
    os._exit(0)
