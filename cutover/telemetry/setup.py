"""OpenTelemetry of one process, by the standard OTEL_* variables. Without them nothing is exported.

`OTEL_EXPORTER_OTLP_ENDPOINT` turns on traces and metrics over OTLP (http/protobuf). `OTEL_TRACES_EXPORTER` and
`OTEL_METRICS_EXPORTER` (otlp | console | none) choose one by one. `OTEL_SDK_DISABLED=true` turns all off.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Tracer

from cutover import __version__
from cutover.errors import ConfigError
from cutover.telemetry.spans import RedactingExporter

_KINDS = ("otlp", "console", "none")


@dataclass(frozen=True)
class Telemetry:
    """The providers of this process; None for what is off."""

    traces: TracerProvider | None = None
    metrics: MeterProvider | None = None

    def shutdown(self) -> None:
        """Exports what is still held and ends the exporting threads."""
        if self.traces is not None:
            self.traces.shutdown()
        if self.metrics is not None:
            self.metrics.shutdown()


def setup(service_name: str, environ: Mapping[str, str] | None = None) -> Telemetry:
    """Sets the process's providers as the environment says; once, at its start. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    built = build(
        service_name,
        span_exporter=_span_exporter(_kind("OTEL_TRACES_EXPORTER", environ)),
        reader=_metric_reader(_kind("OTEL_METRICS_EXPORTER", environ)),
        named="OTEL_SERVICE_NAME" in environ,
    )
    if built.traces is not None:
        trace.set_tracer_provider(built.traces)
    if built.metrics is not None:
        metrics.set_meter_provider(built.metrics)
    return built


def build(
    service_name: str, *, span_exporter: SpanExporter | None, reader: MetricReader | None, named: bool = False
) -> Telemetry:
    """The providers for given exporters, without making them the process's own. `named`: the environment names it."""
    attributes = {"service.version": __version__} | ({} if named else {"service.name": service_name})
    resource = Resource.create(attributes)
    traces = None
    if span_exporter is not None:
        traces = TracerProvider(resource=resource)
        traces.add_span_processor(BatchSpanProcessor(RedactingExporter(span_exporter)))
    meters = None if reader is None else MeterProvider([reader], resource=resource)
    return Telemetry(traces, meters)


def tracer() -> Tracer:
    """The tracer of cutover; does nothing before `setup`, or where traces are off."""
    return trace.get_tracer("cutover", __version__)


def meter() -> Meter:
    """The meter of cutover; its instruments are in `cutover.telemetry.meters`."""
    return metrics.get_meter("cutover", __version__)


def _kind(variable: str, environ: Mapping[str, str]) -> str:
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "none"
    kind = environ.get(variable) or ("otlp" if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else "none")
    if kind not in _KINDS:
        raise ConfigError(f"{variable}={kind!r} is not known here: use one of {', '.join(_KINDS)}")
    protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if kind == "otlp" and protocol != "http/protobuf":
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r} is not built in: "
            "use http/protobuf (collectors take it on port 4318)"
        )
    return kind


def _span_exporter(kind: str) -> SpanExporter | None:
    if kind == "otlp":
        return OTLPSpanExporter()
    return ConsoleSpanExporter() if kind == "console" else None


def _metric_reader(kind: str) -> MetricReader | None:
    if kind == "otlp":
        return PeriodicExportingMetricReader(OTLPMetricExporter())
    return PeriodicExportingMetricReader(ConsoleMetricExporter()) if kind == "console" else None
