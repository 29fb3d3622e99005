"""Spans, trace ids and meters of real activities on real servers; nothing of a row and no DSN in any of them."""

from collections.abc import Iterator

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from activities import models as m
from activities.messages import MessageActivities
from activities.monitoring import MonitoringActivities
from activities.plans import PlanActivities
from activities.reconciliation import ReconciliationActivities
from activities.replication import ReplicationActivities
from activities.switching import SwitchActivities
from cutover.control import audit
from cutover.control.database import Control
from cutover.dualwrite import RoutedPool
from cutover.postgres.databases import Database
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.steps import STEPS
from cutover.telemetry import meters, setup
from tests.passing import make_pass
from tests.switch.conftest import Work
from tests.waiting import until

#: Put together here, so that a source line in a trace does not hold it.
VALUE = "-".join(["row", "value", "4711"])
PRICE = ".".join(["4711", "0815"])


class Exported:
    """What this process exports, in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        built = setup.build("worker", span_exporter=self.spans, reader=self.reader)
        assert built.traces is not None
        assert built.metrics is not None
        self.telemetry, self.traces = built, built.traces
        self._replace(monkeypatch, built.traces, built.metrics)

    @staticmethod
    def _replace(monkeypatch: pytest.MonkeyPatch, traces: TracerProvider, provider: MeterProvider) -> None:
        """In place of the process's own providers, which can be set only once."""
        monkeypatch.setattr(trace, "get_tracer", lambda name, *_: traces.get_tracer(name))
        monkeypatch.setattr(metrics, "get_meter", lambda name, *_: provider.get_meter(name))
        meters.instruments.cache_clear()

    def trace_ids(self) -> dict[str, str]:
        """Trace id by a span's name."""
        self.traces.force_flush()
        return {one.name: f"{one.context.trace_id:032x}" for one in self.spans.get_finished_spans() if one.context}

    def recorded(self) -> tuple[set[str], str]:
        """Names of the meters that have a value, and all of the export as text."""
        data = self.reader.get_metrics_data()
        if data is None:
            return set(), ""
        names = {
            metric.name
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.data.data_points
        }
        return names, data.to_json()

    def span_text(self) -> str:
        self.traces.force_flush()
        return "".join(one.to_json() for one in self.spans.get_finished_spans())


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    made = Exported(monkeypatch)
    yield made
    made.telemetry.shutdown()
    meters.instruments.cache_clear()


def secrets(env: SwitchEnvironment) -> list[str]:
    """What must not leave the process."""
    dsns = [env.pair.monolith.dsn, env.pair.target.dsn, env.control.database.dsn]
    return [VALUE, PRICE, "postgresql://", *(dsn.partition("@")[2] for dsn in dsns)]


async def switch(work: Work, activities: SwitchActivities, switch_id: str) -> m.SwitchReport:
    """All steps by the activities that a workflow calls."""
    await work.run(activities.measure_write, m.GateRequest(ref=work.ref, gate="write"))
    order = m.SwitchOrder(ref=work.ref, switch_id=switch_id, to_side="service")
    await work.run(activities.prepare_reverse, order)
    report = m.SwitchReport.model_validate(await work.run(activities.fenced_section, order))
    await work.run(activities.finish_switch, order)
    return report


async def approve(work: Work, messages: MessageActivities, by: str) -> None:
    decision = m.Decision(
        ref=work.ref, workflow_id="w", key=f"run/{by}", action="approve", by=by, gate="write", reason="tested"
    )
    await work.run(messages.record_decision, decision)


async def write_a_value(env: SwitchEnvironment) -> None:
    async with env.pair.monolith.session() as source:
        await source.execute("INSERT INTO trades (price, note) VALUES ($1::text::numeric, $2)", PRICE, VALUE)


async def test_each_step_of_a_switch_has_its_span_and_its_trace_stands_in_the_audit_row(
    env: SwitchEnvironment, work: Work, exported: Exported
) -> None:
    await write_a_value(env)
    for by in ("alice", "bob"):
        await approve(work, MessageActivities(work.context), by)
    assert (await switch(work, SwitchActivities(work.context), "s1")).result == "done"
    traces = exported.trace_ids()
    assert [name for name in (f"switch {step.name}" for step in STEPS) if name not in traces] == []
    async with env.control.connection() as connection:
        rows = {row.action: row.trace_id for row in await audit.entries(connection, "test")}
    for action, step in {
        "route.pause_announced": "announce-pause",
        "switch.fenced": "fence",
        "switch.journaled": "journal",
        "route.flipped": "flip",
        "server.noted": "gates",
    }.items():
        assert rows[action] == traces[f"switch {step}"], action
    text = exported.span_text()
    assert "switch fence" in text
    assert [secret for secret in secrets(env) if secret in text] == []


async def test_every_meter_is_recorded_by_the_work_it_measures(
    env: SwitchEnvironment, work: Work, exported: Exported, control_db: Database
) -> None:
    context = work.context
    await write_a_value(env)
    sides = {"monolith": env.pair.monolith, "service": env.pair.target}
    async with await RoutedPool.open(
        migration="test",
        services=[env.pair.service],
        control=control_db,
        database={env.pair.service: sides},  # type: ignore[dict-item]
        application="test",
    ) as pool:
        service = pool.service(env.pair.service)
        await service.execute("UPDATE trades SET note = $1 WHERE id = 5", VALUE, table="trades")
    await work.run(ReplicationActivities(context).backfill_progress)
    await make_pass(work.run, ReconciliationActivities(context), work.ref, "trades")
    await work.run(MonitoringActivities(context).sample, m.SampleRequest(ref=work.ref, reads=True))
    change = m.StageChange(ref=work.ref, stage="ready", detail="measured")
    await work.run(PlanActivities(context).set_stage, change)
    messages = MessageActivities(context)
    alert = m.AlertRequest(ref=work.ref, kind="threshold", severity="warning", text="breached", workflow_id="w")
    await work.run(messages.raise_alert, alert)
    for by in ("alice", "bob"):
        await approve(work, messages, by)
    await until(lambda: instances_gone(env.control), "the pool's lease is over")
    assert (await switch(work, SwitchActivities(context), "s1")).result == "done"
    declared = {
        name.replace("db_client_operation_duration", "db.client.operation.duration") for name in declared_names()
    }
    recorded, text = exported.recorded()
    # alerts are counted where they are raised, by another change
    assert declared - recorded <= {"migration_alerts"}
    assert "migration_replication_lag_bytes" in text
    assert [secret for secret in secrets(env) if secret in text] == []


def declared_names() -> set[str]:
    return set(vars(meters.instruments()))


async def instances_gone(control: Control) -> bool:
    live = "SELECT count(*) FROM control.instance WHERE lease_until > clock_timestamp()"
    return not await control.fetchval(live)
