"""All instruments of cutover, in one place, with labels that stay few: never a key, a run id or a row's value.

Names and units follow the OpenTelemetry conventions for database clients, and Prometheus' for our own
(base units; an exporter appends `_total` and the unit itself, so counters are named without it).
"""

from dataclasses import dataclass
from functools import cache

from opentelemetry import metrics
from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.metrics import _Gauge as Gauge

from cutover import __version__

#: Boundaries that the convention "Database client metrics" asks for, in seconds.
DB_DURATION_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
PAUSE_BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Instruments:
    """The instruments with the labels that each may carry."""

    #: db.system.name, db.namespace, db.collection.name, db.operation.name, db.response.status_code, error.type
    db_client_operation_duration: Histogram
    #: service, direction (forward | reverse), kind (client | write)
    migration_switchover_pause: Histogram
    #: migration, service, stage; set to 1 when a stage is reached
    migration_phase_info: Gauge
    #: service, table, direction
    migration_reconciliation_compared_rows: Counter
    #: service, table, direction, kind (missing | extra | mismatched)
    migration_reconciliation_mismatched_rows: Gauge
    #: service, table
    migration_reconciliation_last_success_timestamp: Gauge
    #: service, direction
    migration_replication_lag: Gauge
    #: service, direction
    migration_replication_lag_bytes: Gauge
    #: service, table
    migration_backfill_rows: Gauge
    #: kind, severity, service
    migration_alerts: Counter
    #: service
    migration_fence_epoch: Gauge
    #: gate, decision (approve | reject)
    migration_approvals: Counter
    #: service, name, outcome (ok | breached | not_applicable)
    migration_threshold_readings: Counter


def build(meter: Meter) -> Instruments:
    """The instruments on a given meter."""
    return Instruments(
        db_client_operation_duration=meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=DB_DURATION_BOUNDS,
        ),
        migration_switchover_pause=meter.create_histogram(
            "migration_switchover_pause",
            unit="s",
            description="How long a switch held writes.",
            explicit_bucket_boundaries_advisory=PAUSE_BOUNDS,
        ),
        migration_phase_info=meter.create_gauge("migration_phase_info", description="The phase a service is in."),
        migration_reconciliation_compared_rows=meter.create_counter(
            "migration_reconciliation_compared_rows", description="Rows compared by reconciliation."
        ),
        migration_reconciliation_mismatched_rows=meter.create_gauge(
            "migration_reconciliation_mismatched_rows", description="Differing rows found by the last complete pass."
        ),
        migration_reconciliation_last_success_timestamp=meter.create_gauge(
            "migration_reconciliation_last_success_timestamp",
            unit="s",
            description="When the last complete pass ended.",
        ),
        migration_replication_lag=meter.create_gauge(
            "migration_replication_lag", unit="s", description="How far the target is behind its source."
        ),
        migration_replication_lag_bytes=meter.create_gauge(
            "migration_replication_lag_bytes", description="Bytes of WAL that the target has yet to apply."
        ),
        migration_backfill_rows=meter.create_gauge("migration_backfill_rows", description="Rows copied by backfill."),
        migration_alerts=meter.create_counter("migration_alerts", description="Alerts raised, duplicates left out."),
        migration_fence_epoch=meter.create_gauge("migration_fence_epoch", description="The epoch of the last switch."),
        migration_approvals=meter.create_counter("migration_approvals", description="Answers of people to gates."),
        migration_threshold_readings=meter.create_counter(
            "migration_threshold_readings", description="Readings of thresholds, by their outcome."
        ),
    )


@cache
def instruments() -> Instruments:
    """The instruments of this process; they do nothing until `cutover.telemetry.setup` has set an exporter."""
    return build(metrics.get_meter("cutover", __version__))
