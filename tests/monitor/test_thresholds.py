"""Thresholds over what a fleet reports: breached, waited for, not applicable, within."""

from datetime import UTC, datetime, timedelta

import pytest

from cutover.control import reports
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.flags import instances
from cutover.flags import store as flags
from cutover.flags.instances import Instance
from cutover.monitor import baseline, statistics, thresholds
from cutover.monitor.baseline import Baseline
from cutover.monitor.samples import Sample, StreamFacts
from cutover.monitor.statistics import Collector, Key, Operation, Tally
from cutover.monitor.thresholds import Fleet, latency, moved, read_error_rate, secondary_failures
from cutover.plan.load import load_text
from cutover.postgres.databases import Database, Pair, Side
from cutover.postgres.identifiers import TableName

MIGRATION, SERVICE = "ai-trader", "trading_engine"
PLAN = load_text(
    """
migration: ai-trader
monolith: {database: monolith}
services:
  trading_engine:
    database: trading_engine_db
    tables:
      trades: {reconcile: {every: 1m, max_lag: 2m}}
      positions: {}
"""
)
OK = StreamFacts(attempts=100, failures=0)


def tally(seconds: float, attempts: int = 100, failures: int = 0) -> Tally:
    collector = Collector("m", "i")
    for number in range(attempts):
        collector.record("s", "monolith", "t", "write", seconds, failed=number < failures)
    return next(iter(collector._tallies.values()), Tally())


def fleet(
    now: dict[tuple[str, Operation, Side], Tally], before: dict[tuple[str, Operation], float], live: int = 1
) -> Fleet:
    return Fleet(
        {Key(SERVICE, side, table, operation): t for (table, operation, side), t in now.items()},
        {key: Baseline(*key, 1000, 0, p95, p95, 60.0) for key, p95 in before.items()},
        live,
    )


def test_the_worst_table_is_named_and_a_rise_beyond_the_limit_is_a_breach() -> None:
    now: dict[tuple[str, Operation, Side], Tally] = {
        ("trades", "write", "monolith"): tally(0.050),
        ("positions", "write", "monolith"): tally(0.010),
        ("users", "write", "monolith"): tally(9.0, attempts=3),
    }
    before: dict[tuple[str, Operation], float] = {
        ("trades", "write"): 0.020,
        ("positions", "write"): 0.010,
        ("users", "write"): 0.01,
    }
    reading = latency(fleet(now, before), ("write",), "monolith", 0.20)
    assert reading.breached
    assert not reading.passes
    assert reading.value == pytest.approx(1.4, abs=0.3)
    assert "writes on trades" in reading.detail


def test_a_rise_below_the_floor_is_shown_and_is_no_breach() -> None:
    reading = latency(
        fleet({("trades", "write", "monolith"): tally(0.004)}, {("trades", "write"): 0.001}),
        ("write",),
        "monolith",
        0.20,
    )
    assert reading.value is not None
    assert reading.value > 1
    assert reading.passes


def test_too_few_are_waited_for_and_no_traffic_at_all_is_not_applicable_only_with_live_instances() -> None:
    known: dict[tuple[str, Operation], float] = {("trades", "write"): 0.01}
    few = latency(fleet({("trades", "write", "monolith"): tally(0.01, 5)}, known), ("write",), "monolith", 0.2)
    assert few.waiting
    assert not few.passes
    assert not few.breached
    assert "5 seen" in few.detail
    assert latency(fleet({}, known), ("write",), "monolith", 0.2).not_applicable
    assert latency(fleet({}, known, live=0), ("write",), "monolith", 0.2).breached
    assert read_error_rate(fleet({}, known, live=0), ("read",), 0.01).breached
    # reads that may move are still seen at the old side: the new side has not shown anything yet
    elsewhere = fleet({("trades", "stale_read", "monolith"): tally(0.01)}, {})
    assert read_error_rate(elsewhere, ("stale_read",), 0.01).waiting
    # a service whose reads all have to see their writes moves none of them now
    assert read_error_rate(
        fleet({("trades", "read", "monolith"): tally(0.01)}, {}), ("stale_read",), 0.01
    ).not_applicable


def test_without_a_baseline_there_is_nothing_to_pass_on() -> None:
    reading = latency(fleet({("trades", "write", "monolith"): tally(0.01)}, {}), ("write",), "monolith", 0.2)
    assert reading.breached
    assert "no baseline" in reading.detail


def test_failed_reads_beyond_the_usual_are_a_breach() -> None:
    now = fleet({("trades", "stale_read", "service"): tally(0.01, 100, 5)}, {})
    assert read_error_rate(now, ("stale_read",), 0.01).breached
    now.baselines = {("trades", "stale_read"): Baseline("trades", "stale_read", 100, 5, 0.01, 0.01, 60)}
    assert read_error_rate(now, ("stale_read",), 0.01).passes


def test_secondary_failures() -> None:
    away = secondary_failures("database 'x' cannot be reached", 0.01)
    assert away.breached
    assert "'x'" in away.detail
    assert secondary_failures(StreamFacts(attempts=0, failures=1), 0.01).breached
    assert secondary_failures(StreamFacts(attempts=0, failures=0), 0.01).passes
    assert secondary_failures(StreamFacts(attempts=1000, failures=10), 0.01).passes


@pytest.fixture
def pair(monolith_db: Database, service_db: Database) -> Pair:
    return Pair(MIGRATION, SERVICE, monolith_db, service_db, (TableName("public", "trades"),))


async def report(control: Control, table: str, *, mismatched: int = 0, unsettled: int = 0, age: float = 0.0) -> None:
    now = datetime.now(UTC)
    await reports.record(
        control,
        TableReport(
            migration=MIGRATION, service=SERVICE, table=table, direction="forward", started_at=now, finished_at=now,
            rows_source=1000, rows_target=1000, mismatched=mismatched, rate=mismatched / 1000, seed_rate=0.0,
            unsettled=unsettled, duration_ms=1.0, plan_hash=PLAN.hash, complete=True,
        ),
    )  # fmt: skip
    await control.execute(
        "UPDATE control.report SET recorded_at = clock_timestamp() - $1::interval WHERE table_name = $2",
        timedelta(seconds=age),
        table,
    )


async def traffic(control: Control, side: Side, seconds: float, operation: Operation = "write") -> None:
    collector = Collector(MIGRATION, f"i-{side}")
    for _ in range(50):
        collector.record(SERVICE, side, "trades", operation, seconds)
    await collector.flush(control)


async def test_right_after_a_switch_the_first_comparison_the_other_way_is_waited_for_and_then_missed(
    control: Control, pair: Pair
) -> None:
    await flags.ensure(control, MIGRATION, SERVICE)
    await flags.flip(control, MIGRATION, SERVICE, primary_side="service", epoch=1, actor="test", pause_id=None)
    facts = StreamFacts(attempts=1, failures=0)
    young = await thresholds.sample(control, pair, PLAN, SERVICE, facts, primary="service")
    assert young.values["mismatch_rate"].waiting
    assert young.values["reconciliation_lag"].waiting
    async with control.transaction() as connection:  # past the trigger that notes the time of every change
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("UPDATE control.route SET changed_at = clock_timestamp() - interval '1 day'")
    old = await thresholds.sample(control, pair, PLAN, SERVICE, facts, primary="service")
    assert old.values["mismatch_rate"].breached
    assert old.values["reconciliation_lag"].breached


async def test_all_readings_of_a_healthy_service_pass_and_travel_as_json(control: Control, pair: Pair) -> None:
    await instances.renew(control, Instance("i-1"), MIGRATION, SERVICE, 1)
    for operation in ("write", "stale_read"):
        await traffic(control, "monolith", 0.01, operation)
    assert len(await baseline.record(control, MIGRATION, SERVICE, timedelta(minutes=1))) == 2
    await traffic(control, "service", 0.01, "stale_read")
    await report(control, "trades", age=30)
    await report(control, "positions")
    found = await thresholds.sample(control, pair, PLAN, SERVICE, OK, reads=True)
    assert found.passes, found.text
    assert len(found.values) == 6
    assert Sample.model_validate_json(found.model_dump_json()) == found


async def test_what_cannot_be_read_is_breached(control: Control, pair: Pair) -> None:
    found = await thresholds.sample(control, pair, PLAN, SERVICE, "the stream is away", reads=True)
    assert len(found.breached) == 6
    await control.pool.close()
    found = await thresholds.sample(control, pair, PLAN, SERVICE, OK, reads=True)
    assert set(found.values) - set(found.breached) == {"secondary_failure_rate"}
    assert "cannot be read" in found.text


async def test_the_worst_table_decides_on_differences_and_lag(control: Control, pair: Pair) -> None:
    await report(control, "trades", mismatched=2, age=60 + 299)
    await report(control, "positions", age=300 + 301)
    found = await thresholds.sample(control, pair, PLAN, SERVICE, OK)
    assert found.values["mismatch_rate"].value == pytest.approx(0.002)
    lag = found.values["reconciliation_lag"]
    assert lag.breached
    assert lag.value == pytest.approx(301, abs=5)
    assert "positions" in lag.detail


async def test_rows_that_did_not_settle_count_as_a_breach_where_they_could_lift_the_rate_over_its_limit(
    control: Control, pair: Pair
) -> None:
    await report(control, "trades", unsettled=1)
    await report(control, "positions")
    found = await thresholds.sample(control, pair, PLAN, SERVICE, OK)
    assert found.values["mismatch_rate"].passes
    await report(control, "trades", unsettled=1000)
    reading = (await thresholds.sample(control, pair, PLAN, SERVICE, OK)).values["mismatch_rate"]
    assert (reading.breached, reading.value) == (True, None)
    assert "100.0000% of trades did not settle" in reading.detail
    await report(control, "positions", mismatched=2)
    reading = (await thresholds.sample(control, pair, PLAN, SERVICE, OK)).values["mismatch_rate"]
    assert reading.breached
    assert reading.value == pytest.approx(0.002)


async def test_reports_of_the_other_direction_prove_nothing(control: Control, pair: Pair) -> None:
    await report(control, "trades")
    await report(control, "positions")
    found = await thresholds.sample(control, pair, PLAN, SERVICE, OK, primary="service")
    assert {"mismatch_rate", "reconciliation_lag"} <= set(found.breached)


async def test_instances_add_up_and_a_second_flush_of_the_same_second_too(control: Control) -> None:
    for instance in ("a", "b", "a"):
        collector = Collector(MIGRATION, instance)
        collector.record(SERVICE, "monolith", "trades", "write", 0.01, failed=True, retried=2, held_seconds=0.5)
        collector.record(SERVICE, "monolith", None, "read", 0.02)
        assert await collector.flush(control) == 2
        assert await collector.flush(control) == 0
    found = await statistics.window(control, MIGRATION, SERVICE, timedelta(minutes=1))
    writes = found[Key(SERVICE, "monolith", "trades", "write")]
    assert (writes.attempts, writes.failures, writes.retried, writes.held_ms) == (3, 3, 6, 500)
    assert sum(writes.buckets) == 3
    assert writes.mean == pytest.approx(0.01)
    assert found[Key(SERVICE, "monolith", statistics.UNNAMED, "read")].attempts == 3
    assert await statistics.window(control, MIGRATION, "another", timedelta(minutes=1)) == {}


async def test_counts_wait_for_the_control_database_and_old_ones_are_pruned(
    control: Control, control_db: Database
) -> None:
    collector = Collector(MIGRATION, "a")
    collector.record(SERVICE, "monolith", "trades", "write", 0.01)
    closed = await Control.open(control_db)
    await closed.close()
    with pytest.raises(Exception, match="cannot be reached"):
        await collector.flush(closed)
    collector.record(SERVICE, "monolith", "trades", "write", 0.01)
    await collector.flush(control)
    found = await statistics.window(control, MIGRATION, SERVICE, timedelta(minutes=1))
    assert found[Key(SERVICE, "monolith", "trades", "write")].attempts == 2
    await statistics.prune(control)
    assert await statistics.window(control, MIGRATION, SERVICE, timedelta(minutes=1)) == found
    await control.execute("UPDATE control.client_stat SET bucket_start = bucket_start - interval '25 hours'")
    await statistics.prune(control)
    assert await control.fetchval("SELECT count(*) FROM control.client_stat") == 0


async def test_a_baseline_is_not_lost_to_a_window_without_traffic(control: Control) -> None:
    await traffic(control, "monolith", 0.01)
    (first,) = await baseline.record(control, MIGRATION, SERVICE, timedelta(minutes=1))
    assert first.p95 == pytest.approx(0.01, rel=0.2)
    assert await baseline.record(control, MIGRATION, SERVICE, timedelta(0)) == []
    assert await baseline.load(control, MIGRATION, SERVICE) == {("trades", "write"): first}


def test_a_careless_caller_costs_no_memory() -> None:
    collector = Collector(MIGRATION, "a")
    for number in range(statistics.MAX_TABLES + 50):
        collector.record(SERVICE, "monolith", f"t{number}", "read", 0.01)
    assert len(collector._tallies) == statistics.MAX_TABLES + 1


def test_a_soak_judges_the_reads_that_have_moved() -> None:
    """On level strong those that must see their writes are answered at the new side before the switch."""
    stale: dict[tuple[str, Operation, Side], Tally] = {
        ("trades", "stale_read", "service"): tally(0.010),
        ("trades", "read", "monolith"): tally(0.010),
    }
    assert moved(fleet(stale, {}), "monolith") == ("stale_read",)
    assert moved(fleet({**stale, ("trades", "read", "service"): tally(0.010)}, {}), "monolith") == (
        "read",
        "stale_read",
    )
    assert moved(fleet(stale, {}), "service") == ("read", "stale_read")
