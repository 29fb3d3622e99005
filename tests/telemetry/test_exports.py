"""What leaves the process through OpenTelemetry, read with the in-memory exporters."""

import asyncio
import json

import asyncpg
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cutover.dualwrite.gate import Counters
from cutover.dualwrite.measure import Recorder
from cutover.dualwrite.routing import READ, WRITE
from cutover.errors import ConfigError
from cutover.monitor.statistics import Collector
from cutover.postgres.databases import Database
from cutover.telemetry import meters
from cutover.telemetry.setup import build, setup

DSN = "postgresql://app:hunter2@db.example:5432/shop"


def test_nothing_is_exported_unless_the_environment_asks() -> None:
    assert setup("worker", {}) == setup(
        "worker", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}
    )
    assert setup("worker", {}).traces is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "otlp, console, none"),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "use http/protobuf"),
    ],
)
def test_an_exporter_that_is_not_built_in_is_named(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        setup("worker", environ)


async def test_durations_follow_the_conventions_and_hold_no_values() -> None:
    reader = InMemoryMetricReader()
    telemetry = build("worker", span_exporter=None, reader=reader)
    assert telemetry.metrics is not None
    instruments = meters.build(telemetry.metrics.get_meter("test"))
    recorder = Recorder("trading_engine", Collector("m", "i"), instruments, Counters())
    database = Database("trading_engine_db", DSN)
    with recorder.operation(READ, "trades", "SELECT") as trial:
        trial.begin("service", database)
        await asyncio.sleep(0.002)
    error = asyncpg.UniqueViolationError("Key (email)=(a@b.example) already exists")

    def fails() -> None:
        with recorder.operation(WRITE, "trades", "'a@b.example'") as trial:
            trial.begin("monolith", database)
            raise error

    with pytest.raises(asyncpg.UniqueViolationError):
        fails()
    data = reader.get_metrics_data()
    assert data is not None
    metric = data.resource_metrics[0].scope_metrics[0].metrics[0]
    assert (metric.name, metric.unit) == ("db.client.operation.duration", "s")
    points = [json.loads(point.to_json()) for point in metric.data.data_points]
    assert points[0]["explicit_bounds"] == list(meters.DB_DURATION_BOUNDS)
    assert points[0]["attributes"] == {
        "db.system.name": "postgresql",
        "cutover.service": "trading_engine",
        "db.namespace": "trading_engine_db",
        "db.collection.name": "trades",
        "db.operation.name": "SELECT",
    }
    assert points[1]["attributes"]["db.response.status_code"] == "23505"
    assert points[1]["attributes"]["error.type"] == "UniqueViolationError"
    assert "db.operation.name" not in points[1]["attributes"]
    text = data.to_json()
    for secret in ("hunter2", "db.example", "a@b.example"):
        assert secret not in text
    telemetry.shutdown()


def test_spans_lose_the_texts_of_errors_and_keep_their_kinds() -> None:
    exporter = InMemorySpanExporter()
    telemetry = build("worker", span_exporter=exporter, reader=None)
    assert telemetry.traces is not None
    tracer = telemetry.traces.get_tracer("test")
    with (
        pytest.raises(ValueError, match="hunter2"),
        tracer.start_as_current_span("step", attributes={"dsn": DSN, "rows": 3}),
    ):
        raise ValueError(f"{DSN}: Key (email)=(a@b.example)")
    telemetry.traces.force_flush()
    (span,) = exporter.get_finished_spans()
    text = span.to_json()
    for secret in ("hunter2", "a@b.example"):
        assert secret not in text
    assert span.attributes is not None
    assert span.attributes["rows"] == 3
    assert span.events[0].attributes is not None
    assert span.events[0].attributes["exception.type"] == "ValueError"
    assert span.status.is_ok is False
    assert span.resource.attributes["service.name"] == "worker"
    telemetry.shutdown()


def test_every_instrument_of_ours_has_its_prefix_and_no_doubled_suffix() -> None:
    reader = InMemoryMetricReader()
    telemetry = build("worker", span_exporter=None, reader=reader)
    assert telemetry.metrics is not None
    instruments = meters.build(telemetry.metrics.get_meter("test"))
    names = [name for name in vars(instruments) if name.startswith("migration_")]
    assert len(names) == len(vars(instruments)) - 1
    assert not [name for name in names if name.endswith(("_total", "_seconds"))]
    telemetry.shutdown()
