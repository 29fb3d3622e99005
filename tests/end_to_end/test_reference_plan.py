"""The reference plan from preparation to cleanup under live traffic, on servers of its own, in compressed time.

The same run as `make demo`, smaller; ten times a second every open run is asked what it waits for.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from temporalio.client import Client

from cutover.alerts.store import recent
from cutover.switch.steps import STEPS
from examples.ai_trader.demo import Demo, Options
from examples.ai_trader.demo_fleet import Fleet
from examples.ai_trader.demo_ground import PLAN, Ground, connected
from examples.ai_trader.demo_watch import Watch
from tests.end_to_end.sampler import Sampler

#: Of looks a second, where ten are tried; on two cores that do the whole of the run beside it.
RATE = 5.0
#: Seconds without an answer: a worker's or Temporal's own pause, not the end of answering.
GAP = 5.0
#: Passes leave hundreds of runs alike; so many of them are read.
PASSES_READ = 60

#: Values of rows: tokens of traffic, of psql and of the generator, e-mail addresses.
ROW_VALUE = re.compile(
    rb"[cp]\d+\.\d+(?:\.[0-9a-f]+)?-\d+-\d+|p\d+\.[0-9a-f]{8,}-\d+|\bgen-\d+\b|@traders\.example|@jobs\.example"
)
DSN = re.compile(rb"postgres(?:ql)?://")


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
@pytest.mark.timeout(1000)
async def test_the_reference_plan_moves_every_service_and_loses_nothing(ground: Ground, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.read_text())
    said: list[str] = []
    options = Options(rows=10_000, rate=60.0, clients=2, screen=False, plan=plan, time_limit=840.0)
    demo = Demo(options, ground, said.append)
    demo.fleet.environ = {**ground.environ, **TELEMETRY}
    samplers: list[Sampler] = []

    async def sample(client: Client, watch: Watch) -> None:
        monolith = ground.settings.database("monolith")
        samplers.append(Sampler(client, watch.control, monolith, watch.migration, tuple(watch.services)))
        await samplers[0].run()

    found = await demo.run(also=sample)
    told = "\n".join(said[-20:])
    assert found.problems == [], told
    # that `problems` is empty says the rest as well; these two are what the run is for
    assert found.check.ok
    assert sum(line.differences for line in found.tables) == 0
    (sampler,) = samplers
    assert sorted(set(sampler.wrong)) == []
    assert sampler.rate >= RATE, sampler
    assert sampler.gaps(GAP) == [], sampler
    assert sum(sampler.unanswered.values()) <= sampler.samples / 50, sampler
    assert sampler.overviews >= len(sampler.looks) / 20, sampler
    async with connected(ground.settings) as (client, control):
        assert await leaks(client, ground.home.password()) == []
        # nobody has touched a schema or a fence: whatever is told of them is untrue
        alerts = await recent(control, "ai-trader", limit=10_000)
        assert [row.alert.text for row in alerts if row.alert.kind in ("ddl", "fence")] == []
    assert unseen_telemetry(demo.fleet) == []
    assert logs_with_secrets(demo.fleet, ground.home.password()) == []
