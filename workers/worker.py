"""The worker process: one client, one control pool, every workflow and activity; ends in good order on SIGTERM."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
from dataclasses import replace
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.checking import ChecklistActivities
from activities.cleanup import CleanupActivities
from activities.context import Context
from activities.messages import MessageActivities
from activities.monitoring import MonitoringActivities
from activities.plans import PlanActivities
from activities.preparation import PreparationActivities
from activities.reconciliation import ReconciliationActivities
from activities.registration import activities_of
from activities.relaying import RelayActivities
from activities.replication import ReplicationActivities
from activities.switching import SwitchActivities
from activities.watching import WatchActivities
from cutover import __version__
from cutover.alerts.webhook import Webhook
from cutover.control.database import Control
from cutover.errors import CutoverError, Unreachable
from cutover.settings import CONTROL, Settings
from cutover.telemetry.temporal import connect
from workers.registry import PASSED_THROUGH, WORKFLOWS
from workflows.timeouts import TASK_QUEUE

_log = logging.getLogger(__name__)

#: Activities that run at once; a switch takes a few connections to each database, a pass two.
HEARTBEATS = timedelta(seconds=0.4)
ACTIVITIES_AT_ONCE = 40
#: Longer than the fenced section's longest pause, so that a deploy never cuts one.
GRACE = timedelta(seconds=20)
RETRY_SECONDS = 1.0


def sandbox() -> SandboxedWorkflowRunner:
    """Workflow modules are run anew for every run; what they share is passed through."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))


def build_id(settings: Settings) -> str:
    """CUTOVER_BUILD_ID, else the checkout's commit, else the version."""
    if given := settings.get("CUTOVER_BUILD_ID"):
        return given
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=os.path.dirname(__file__),
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return done.stdout.strip() or __version__


async def open_patiently(settings: Settings, build: str, stop: asyncio.Event) -> tuple[Client, Control] | None:
    """Both connections, waited for while the servers come up; None where the process is to end first."""
    said = ""
    while not stop.is_set():
        try:
            control = await Control.open(settings.database(CONTROL), max_size=16)
            try:
                identity = f"cutover-{build}@{socket.gethostname()}:{os.getpid()}"
                return await connect(settings, identity), control
            except CutoverError:
                await control.close()
                raise
        except Unreachable as error:
            if str(error) != said:
                said = str(error)
                _log.warning("waiting: %s", said)
            try:
                await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
            except TimeoutError:
                continue
    return None


def activity_objects(context: Context, webhook: Webhook | None) -> tuple[object, ...]:
    """One instance of every activity class."""
    return (
        PlanActivities(context),
        ChecklistActivities(context),
        MessageActivities(context, webhook),
        PreparationActivities(context),
        ReplicationActivities(context),
        RelayActivities(context),
        ReconciliationActivities(context, webhook),
        MonitoringActivities(context),
        WatchActivities(context, webhook),
        SwitchActivities(context, webhook),
        CleanupActivities(context),
    )


def make_worker(client: Client, control: Control, settings: Settings, *, task_queue: str = TASK_QUEUE) -> Worker:
    """Every workflow and activity on one task queue."""
    webhook = Webhook.from_settings(settings)
    context = Context(replace(settings, reuse_sessions=True), control, client, webhook)
    return Worker(
        client,
        task_queue=task_queue,
        workflows=WORKFLOWS,
        activities=activities_of(*activity_objects(context, webhook)),
        workflow_runner=sandbox(),
        max_concurrent_activities=ACTIVITIES_AT_ONCE,
        graceful_shutdown_timeout=GRACE,
        # Not held back: a cancellation comes with the answer to one.
        max_heartbeat_throttle_interval=HEARTBEATS,
        default_heartbeat_throttle_interval=HEARTBEATS,
    )


async def run_worker(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; activities get `GRACE` to end, then they are cancelled."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    build = build_id(settings)
    opened = await open_patiently(settings, build, stop)
    if opened is None:
        return
    client, control = opened
    try:
        async with make_worker(client, control, settings):
            _log.info(
                "worker %s at work on task queue %r of %s", build, TASK_QUEUE, client.service_client.config.target_host
            )
            await stop.wait()
            _log.info("worker ends: no new work, what runs gets %d s", GRACE.total_seconds())
    finally:
        await control.close()
