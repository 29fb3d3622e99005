"""The reference plan from preparation to cleanup under live traffic, on servers of its own, in compressed time.

The same run as `make demo`, smaller; all the while every open run is asked what it waits for.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from temporalio.client import Client, RPCError, WorkflowQueryFailedError

from cutover.alerts.store import recent
from cutover.cli.runs import open_runs
from cutover.switch.steps import STEPS
from examples.ai_trader.demo import Demo, Options
from examples.ai_trader.demo_fleet import Fleet
from examples.ai_trader.demo_ground import PLAN, Ground, connected
from examples.ai_trader.demo_watch import Watch
from tests.end_to_end.truth import untrue
from workflows.status import Status

SAMPLE_EVERY = 0.1
#: Passes leave hundreds of runs alike; so many of them are read.
PASSES_READ = 60

#: Values of rows: tokens of traffic, of psql and of the generator, e-mail addresses.
ROW_VALUE = re.compile(
    rb"[cp]\d+\.\d+(?:\.[0-9a-f]+)?-\d+-\d+|p\d+\.[0-9a-f]{8,}-\d+|\bgen-\d+\b|@traders\.example|@jobs\.example"
)
DSN = re.compile(rb"postgres(?:ql)?://")


@dataclass
class Sampler:
    """Asks every open run for its status ten times a second, and keeps what cannot be true."""

    client: Client
    watch: Watch
    samples: int = 0
    wrong: list[str] = field(default_factory=list)
    states: set[str] = field(default_factory=set)

    async def run(self) -> None:
        while True:
            for workflow_id in await open_runs(self.client, self.watch.migration):
                await self._sample(workflow_id)
            await asyncio.sleep(SAMPLE_EVERY)

    async def _sample(self, workflow_id: str) -> None:
        handle = self.client.get_workflow_handle(workflow_id)
        try:
            status: Status = await asyncio.wait_for(handle.query("status", result_type=Status), 5)
        except (RPCError, WorkflowQueryFailedError, TimeoutError):
            return  # it has ended meanwhile, or its worker was busy
        self.samples += 1
        self.states.add(status.state)
        self.wrong += untrue(status, self.watch.services)


async def leaks(client: Client, password: str) -> list[str]:
    """Workflow runs whose history holds a row's value or a DSN."""
    found, passes = [], 0
    async for run in client.list_workflows():
        if run.workflow_type == "ReconciliationWorkflow":
            passes += 1
            if passes > PASSES_READ:
                continue
        history = await client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
        # Not `to_json`: it shows payloads in base64.
        raw = b"\n".join(event.SerializeToString() for event in history.events)
        found += [f"{run.id}: {what}" for what in secrets_in(raw, password)]
    return found


def secrets_in(raw: bytes, password: str) -> list[str]:
    """What must not be in it, with enough of it to find where it came from."""
    found = [f"row value {match[0].decode()}" for match in ROW_VALUE.finditer(raw)]
    found += ["a DSN"] if DSN.search(raw) else []
    return found + (["the servers' password"] if password.encode() in raw else [])


def logs_with_secrets(fleet: Fleet, password: str) -> list[str]:
    paths: Sequence[Path] = [child.output for child in fleet.children.values()]
    return [f"{path.name}: {what}" for path in paths for what in secrets_in(path.read_bytes(), password)]


#: Workers write their spans and meters to their output, which is searched with the rest of it.
TELEMETRY = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console"}


def unseen_telemetry(fleet: Fleet) -> list[str]:
    """What the workers should have exported and did not: else nothing was searched."""
    text = b"".join(fleet.children[name].output.read_bytes() for name in fleet.workers)
    wanted = [f"switch {step.name}" for step in STEPS] + ["RunActivity:fenced_section", "migration_switchover_pause"]
    return [name for name in wanted if f'"name": "{name}"'.encode() not in text]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_reference_plan_moves_every_service_and_loses_nothing(ground: Ground, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    text = PLAN.read_text()
    assert "\ncompress: 60000\n" in text
    plan.write_text(text.replace("\ncompress: 60000\n", "\ncompress: 90000\n"))
    said: list[str] = []
    options = Options(rows=10_000, rate=60.0, clients=2, screen=False, plan=plan, time_limit=420.0)
    demo = Demo(options, ground, said.append)
    demo.fleet.environ = {**ground.environ, **TELEMETRY}
    samplers: list[Sampler] = []

    async def sample(client: Client, watch: Watch) -> None:
        samplers.append(Sampler(client, watch))
        await samplers[0].run()

    found = await demo.run(also=sample)
    told = "\n".join(said[-20:])
    assert found.problems == [], told
    # that `problems` is empty says the rest as well; these two are what the run is for
    assert found.check.ok
    assert sum(line.differences for line in found.tables) == 0
    (sampler,) = samplers
    assert sampler.samples > 200
    assert sorted(set(sampler.wrong)) == []
    async with connected(ground.settings) as (client, control):
        assert await leaks(client, ground.home.password()) == []
        # nobody has touched a schema or a fence: whatever is told of them is untrue
        alerts = await recent(control, "ai-trader", limit=10_000)
        assert [row.alert.text for row in alerts if row.alert.kind in ("ddl", "fence")] == []
    assert unseen_telemetry(demo.fleet) == []
    assert logs_with_secrets(demo.fleet, ground.home.password()) == []
