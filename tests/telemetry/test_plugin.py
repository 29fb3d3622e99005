"""The plugin on a real Temporal server: payloads, spans of a workflow nobody traced, failures without values."""

import uuid
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker

from cutover.telemetry import setup, temporal

with workflow.unsafe.imports_passed_through():
    from cutover.monitor.samples import Reading

SECRET = "-".join(["row", "value", "4711"])


@activity.defn
async def read_threshold() -> Reading:
    return Reading(value=0.5, limit=0.2, breached=True)


@activity.defn
async def fail_with_a_value() -> None:
    raise asyncpg.UniqueViolationError(f"duplicate key\nDETAIL:  Key (id)=({SECRET}) already exists.")


@workflow.defn
class PluginWorkflow:
    @workflow.run
    async def run(self) -> Reading:
        wait = timedelta(seconds=10)
        reading = await workflow.execute_activity(read_threshold, start_to_close_timeout=wait)
        await workflow.execute_activity(
            fail_with_a_value, start_to_close_timeout=wait, retry_policy=RetryPolicy(maximum_attempts=1)
        )
        return reading


async def test_one_plugin_serves_client_worker_and_replayer(
    temporal_cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    telemetry = setup.build("worker", span_exporter=exporter, reader=None)
    assert telemetry.traces is not None
    provider = telemetry.traces
    monkeypatch.setattr(trace, "get_tracer", lambda name, *_: provider.get_tracer(name))
    plugin = temporal.cutover_plugin()
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=str(temporal_cli)) as environment:
        address = environment.client.service_client.config.target_host
        client = await Client.connect(address, plugins=[plugin])
        outsider = await Client.connect(address)  # as the web page: no tracing, no converter
        queue = f"plugin-{uuid.uuid4()}"
        async with Worker(
            client, task_queue=queue, workflows=[PluginWorkflow], activities=[read_threshold, fail_with_a_value]
        ):
            handle = await outsider.start_workflow("PluginWorkflow", id=queue, task_queue=queue)
            with pytest.raises(WorkflowFailureError):
                await handle.result()
            history = await handle.fetch_history()
        await Replayer(workflows=[PluginWorkflow], plugins=[plugin]).replay_workflow(history)
    text = history.to_json()
    assert SECRET not in text
    assert "UniqueViolationError" in text
    provider.force_flush()
    spans = exporter.get_finished_spans()
    assert {"RunWorkflow:PluginWorkflow", "RunActivity:read_threshold", "RunActivity:fail_with_a_value"} <= {
        span.name for span in spans
    }
    assert SECRET not in "".join(span.to_json() for span in spans)
    telemetry.shutdown()
