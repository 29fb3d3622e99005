"""The command line as typed: a real Temporal server, a worker with the fake world, a real control database."""

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.testing import WorkflowEnvironment
from typer.testing import CliRunner, Result

from cutover.cli.main import app
from cutover.control import plans
from cutover.control.database import Control
from cutover.flags import store as flags
from cutover.postgres.databases import Database
from tests.control.plans import plan as some_plan
from tests.workflows.conftest import skipping as skipping  # the same server for the session
from tests.workflows.harness import Harness, running
from tests.workflows.world import World
from workflows.timeouts import TASK_QUEUE

SERVICE = "trading_engine"
SECRET = "hunter2"


def hears_ctrl_c() -> None:
    """For `preexec_fn`: what a shell starts in the background ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def typed(*arguments: str, env: dict[str, str] | None = None, answer: str = "") -> Result:
    """Run a command; it may end in any status, and never in a stack trace or with a secret."""
    result = CliRunner().invoke(app, list(arguments), env=env, input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    assert SECRET not in result.output
    return result


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own settings; a wide page, so that no line is folded."""
    monkeypatch.setenv("CUTOVER_ENV_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "240")
    for name in ("MONOLITH", "TRADING_ENGINE_DB", "CONTROL"):
        monkeypatch.delenv(f"CUTOVER_DSN_{name}", raising=False)


@dataclass
class Desk:
    """Somebody at the command line of a migration."""

    harness: Harness
    control: Control
    env: dict[str, str]

    @property
    def plan(self) -> str:
        return self.harness.plan

    async def type(
        self, *arguments: str, answer: str = "", status: int = 0, env: dict[str, str] | None = None
    ) -> Result:
        """Run a command beside the worker; fails unless it ends in that status. `env` is set for this command."""
        result = await asyncio.to_thread(typed, *arguments, env={**self.env, **(env or {})}, answer=answer)
        assert result.exit_code == status, (result.exit_code, result.output)
        return result


@pytest_asyncio.fixture
async def desk(skipping: WorkflowEnvironment, control: Control, control_db: Database) -> AsyncIterator[Desk]:
    """A registered plan of two services, and a worker on the task queue that the commands use."""
    world = World(f"cli-{uuid.uuid4().hex[:8]}", (SERVICE, "analytics"))
    plan = some_plan(world.plan)
    await plans.register(control, plan, "alice")
    await plans.bind(control, world.plan, plan.hash, "alice")
    for service in plan.services:
        await flags.ensure(control, world.plan, service)
    env = {
        "TEMPORAL_ADDRESS": skipping.client.service_client.config.target_host,
        "CUTOVER_DSN_CONTROL": control_db.dsn,
    }
    async with running(skipping, world, TASK_QUEUE) as harness:
        yield Desk(harness, control, env)
