"""The demo's own ground: a stack apart from the developer's, a filled monolith, a registered plan.

Nothing here reads the person's CUTOVER_DSN_*, TEMPORAL_* or PG* variables: a demo that resets its data must not
reach a database of theirs.
"""

import fcntl
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHandle

from activities import ids
from cutover.control import plans
from cutover.control.database import Control
from cutover.devstack.accounts import own_folder
from cutover.devstack.home import PORT_BASE, Home
from cutover.devstack.stack import Stack
from cutover.devstack.temporal import Say
from cutover.errors import Conflict
from cutover.plan.load import load_text
from cutover.plan.models import Plan
from cutover.settings import CONTROL, Settings
from cutover.telemetry.temporal import connect
from examples.ai_trader.generate import Filled, fill
from examples.ai_trader.prepare import create_monolith, create_roles
from workflows.timeouts import TASK_QUEUE

PLAN = Path(__file__).with_name("demo.yaml")
#: Four ports from here on; below the range that systems give out by themselves.
DEMO_PORTS = 17300

_LEFT_OUT = ("CUTOVER_", "TEMPORAL_", "PG")
_KEPT = ("CUTOVER_TEMPORAL_CLI", "CUTOVER_PYTHON", "CUTOVER_WEBHOOK_URL")


def own_environment(environ: Mapping[str, str], home: Path, port_base: int) -> dict[str, str]:
    """The environment of the demo and of all its processes: theirs without what names other servers."""
    kept = {n: v for n, v in environ.items() if not n.startswith(_LEFT_OUT) or n in _KEPT}
    return {
        **kept,
        "CUTOVER_DEV_HOME": str(home),
        PORT_BASE: str(port_base),
        "CUTOVER_ENV_FILE": str(home / "env"),
        # A profile file of the person's names their server.
        "TEMPORAL_CONFIG_FILE": os.devnull,
    }


@dataclass(frozen=True)
class Ground:
    """Where the demo lives: its environment and the folder for logs, statistics and archives."""

    environ: Mapping[str, str]
    folder: Path

    @classmethod
    def at(cls, home: Path, port_base: int = DEMO_PORTS) -> "Ground":
        home = home.absolute()
        return cls(own_environment(os.environ, home, port_base), home / "logs")

    @property
    def home(self) -> Home:
        return Home.from_environment(self.environ)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One demo at a time: a second one would delete the first one's stack under it. Raises Conflict.

        The lock is the process's own, so it is gone with it, however that ends.
        """
        folder = own_folder(self.home.folder, 0o700)
        with (folder / "demo.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise Conflict(
                    f"another demo (process {file.read().strip() or 'unknown'}) is at work in {folder}, and this one "
                    "would delete its stack: wait for it or stop it, or give --home and --port-base of its own"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    @property
    def settings(self) -> Settings:
        """To be read once the stack is up."""
        return Settings.from_environment(self.environ)

    def stack(self, say: Say) -> Stack:
        return Stack(self.environ, say)

    @property
    def web_page(self) -> str:
        settings = self.settings
        return f"{settings.temporal_ui}/namespaces/{settings.temporal_namespace}/workflows"


@contextmanager
def step(say: Say, text: str) -> Iterator[None]:
    """Say what begins and, at its end, how long it took."""
    begun = time.monotonic()
    say(f"· {text} …")
    yield
    say(f"  {text}: {time.monotonic() - begun:.1f} s")


async def fill_monolith(settings: Settings, rows: int, seed: int, say: Say) -> Filled:
    """Schema, roles on both servers, and rows. Raises Unreachable, ConfigError (too few rows)."""
    monolith = settings.database("monolith")
    await create_monolith(monolith)
    await create_roles(settings.database(CONTROL))
    done: dict[str, int] = {}
    said = time.monotonic()

    def progress(table: str, made: int, total: int) -> None:
        nonlocal said
        done[table] = made
        if made == total or time.monotonic() - said > 2:
            said = time.monotonic()
            say(f"  {sum(done.values()):>9} of {rows} rows ({table}: {made} of {total})")

    return await fill(monolith, rows, seed, progress)


async def register_plan(settings: Settings, text: str, by: str) -> Plan:
    """Migrate the control database and register the plan. Raises PlanError."""
    plan = load_text(text, PLAN.name)
    control = await Control.open(settings.database(CONTROL), max_size=2)
    try:
        await control.migrate()
        await plans.register(control, plan, by)
    finally:
        await control.close()
    return plan


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[tuple[Client, Control]]:
    """The two things that every part of the demo looks at: Temporal and the control database."""
    client = await connect(settings)
    control = await Control.open(settings.database(CONTROL), max_size=4)
    try:
        yield client, control
    finally:
        await control.close()


async def start_migration(client: Client, plan: str) -> WorkflowHandle[Any, Any]:
    """As a person does from the web page: a name, an id, and `{"plan": …}`."""
    return await client.start_workflow(
        "MigrationWorkflow", {"plan": plan}, id=ids.migration(plan), task_queue=TASK_QUEUE
    )


def say_to_stdout(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
