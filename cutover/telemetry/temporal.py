"""The way to Temporal; one plugin for client, worker and replayer, so that payloads, spans and sandbox are the same."""

import asyncio
import dataclasses

import temporalio.api.failure.v1
from temporalio.client import Client
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter, DefaultFailureConverter, PayloadConverter
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import FailureError
from temporalio.plugin import SimplePlugin
from temporalio.worker import WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from cutover.errors import ConfigError, Unreachable
from cutover.settings import Settings
from cutover.telemetry.redaction import describe, scrub, without_detail
from cutover.telemetry.setup import tracer

#: A server that is there and does not answer would be waited for three times as long.
ANSWER_SECONDS = 10.0
#: Modules that the sandbox does not load anew for each workflow: they have no state that a workflow could change.
PASSTHROUGH = ("cutover", "activities", "asyncpg", "opentelemetry", "pydantic", "pydantic_core", "annotated_types")


class RedactingFailureConverter(DefaultFailureConverter):
    """Failures enter a history without row values, DSNs and passwords (invariant 8)."""

    def to_failure(
        self,
        exception: BaseException,
        payload_converter: PayloadConverter,
        failure: temporalio.api.failure.v1.Failure,
    ) -> None:
        """Calls itself for each cause, so every level is cleaned."""
        super().to_failure(exception, payload_converter, failure)
        # Temporal's own errors carry texts that this code has written, or that were cleaned on their way in
        own = isinstance(exception, FailureError)
        failure.message = without_detail(failure.message) if own else describe(exception)
        failure.stack_trace = scrub(failure.stack_trace)


def data_converter() -> DataConverter:
    """pydantic's converter with failures cleaned."""
    return dataclasses.replace(pydantic_data_converter, failure_converter_class=RedactingFailureConverter)


def cutover_plugin() -> SimplePlugin:
    """Give it to `Client.connect(plugins=[…])` (workers of that client inherit it) and to `Replayer(plugins=[…])`.

    Temporal's older interceptor, because a workflow here runs for weeks: its spans are sent when things happen,
    the newer one's when the workflow has ended. Workflows that a person starts from the web page have no span of
    a client, so theirs are made in any case.
    """
    return SimplePlugin(
        "cutover",
        data_converter=data_converter(),
        interceptors=[TracingInterceptor(tracer(), always_create_workflow_spans=True)],
        workflow_runner=_sandbox,
    )


async def connect(settings: Settings, identity: str | None = None) -> Client:
    """A client with our plugin, for the server that `TEMPORAL_*` names (profile file, environment, `.cutover/env`).

    Raises Unreachable with the address, ConfigError where the profile or a certificate cannot be read.
    """
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=dict(settings.values))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"what TEMPORAL_* says of the server cannot be used: {error}") from None
    config.setdefault("target_host", settings.temporal_address)
    config.setdefault("namespace", settings.temporal_namespace)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await Client.connect(**config, plugins=[cutover_plugin()], identity=identity)
    except (RuntimeError, OSError):  # a TimeoutError is one
        raise Unreachable(
            f"the Temporal server at {config['target_host']} does not answer; "
            "start the development stack with `cutover dev up`, or set TEMPORAL_ADDRESS"
        ) from None


def _sandbox(runner: WorkflowRunner | None) -> WorkflowRunner:
    if runner is None:
        runner = SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner  # somebody chose another one on purpose
    return dataclasses.replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*PASSTHROUGH))
