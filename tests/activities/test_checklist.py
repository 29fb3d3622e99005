"""Automatic items of the checklist: they hold by what the databases say, with evidence kept, and open again."""

from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities import models as m
from cutover.archive import manifest
from cutover.archive import service as old_tables
from cutover.checklist import streaming, switching
from cutover.checklist.run import CHECKS, check
from cutover.checklist.subject import Subject
from cutover.cli.checklist import read_checklist
from cutover.control import audit, checks, tasks, watching
from cutover.control.database import Control
from cutover.errors import Refused
from cutover.flags import store as flags
from cutover.plan import checklist
from cutover.plan.load import load_text
from cutover.plan.models import Phase
from cutover.postgres import fence
from cutover.postgres.databases import Database
from tests.activities.conftest import Ground


def subject(ground: Ground, service: str | None = None) -> Subject:
    return Subject(ground.plan, ground.control, ground.settings.database, service)


async def look(ground: Ground, phase: Phase, service: str | None = None) -> dict[str, str]:
    """Problems by item, as an activity finds them; "" where the item holds."""
    return {one.item.key: "; ".join(one.problems) for one in await check(subject(ground, service), phase)}


async def row(ground: Ground, name: str) -> checks.CheckRow:
    return next(one for one in await checks.every(ground.control, ground.plan.migration) if one.name == name)


def test_every_automatic_item_has_a_check_and_no_check_is_without_an_item() -> None:
    assert set(CHECKS) == checklist.automatic_keys()


async def test_preparations_items_are_what_the_databases_say(ground: Ground) -> None:
    await ground.do(ground.plans.claim_tables, ground.ref())
    before = await look(ground, "preparation")
    assert "is not in 'ledger_db'" in before["service_schemas"]
    assert "no fingerprints" in before["schemas_match_source"] or "differ" in before["schemas_match_source"]
    assert before["reconciliation_dashboard"] == ""
    assert (await row(ground, "service_schemas")).done_at is None
    await ground.prepare()
    done = await ground.do(ground.checking.checklist, m.ChecklistRequest(ref=ground.ref(), phase="preparation"))
    assert {one.key: one.ok for one in done.items} == dict.fromkeys(before, True)
    assert (await row(ground, "service_schemas")).evidence == "3 tables in 3 databases"
    await ground.on("ledger_db", "ALTER TABLE outcomes ADD extra int")
    again = await ground.do(ground.checking.checklist, m.ChecklistRequest(ref=ground.ref(), phase="preparation"))
    [failed] = [one for one in again.items if not one.ok]
    assert failed.key == "schemas_match_source"
    assert "extra" in failed.evidence
    opened = await row(ground, "schemas_match_source")
    assert opened.done_at is None
    assert "extra" in opened.problem
    assert await ground.control.fetchval("SELECT count(*) FROM control.report") == 0, "the rehearsal left a report"


async def test_an_answer_is_kept_with_its_audit_row_and_status_lists_what_is_open(ground: Ground) -> None:
    control, migration = ground.control, ground.plan.migration
    assert (await read_checklist(control, migration)).total == 0
    await ground.prepare()
    before = await read_checklist(control, migration)
    for _ in range(2):
        await look(ground, "preparation")
    async with control.connection() as connection:
        rows = await audit.entries(connection, migration, 1000)
        assert await audit.verify(connection) == []
    told = [one.detail["item"] for one in rows if one.action == "checklist.checked"]
    assert sorted(told) == ["reconciliation_dashboard", "schemas_match_source", "service_schemas"]
    kept = await control.fetchrow("SELECT done_by, evidence FROM control.task WHERE name = 'service_schemas'")
    assert kept is not None
    assert tuple(kept) == ("cutover", "3 tables in 3 databases")
    after = await read_checklist(control, migration)
    assert len(before.open) - len(after.open) == 3
    assert {one.phase for one in after.open} == {"dual_write", "switchover", "cleanup"}
    assert all(one.automatic and one.owner and one.duration for one in after.open)
    # people have no word in it
    with pytest.raises(Refused, match="no task 'service_schemas'"):
        await tasks.complete(control, migration, "service_schemas", "alice")
    assert await tasks.pending(control, migration) == []


async def test_the_dual_write_items_need_a_stream_that_carries_and_a_report_of_each_table(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.prepare()
    first, service = ground.services[0], ground.services[1]
    missing = await look(ground, "dual_write", service)
    assert "stream does not exist" in missing["cdc_pipeline"]
    assert "stream does not exist" in missing["cdc_replicating_correctly"]
    assert "no complete pass" in missing["data_validation_scripts"]
    assert "no complete pass" in missing["dashboard_operational"]
    await ground.replicate()
    assert set((await look(ground, "dual_write", service)).values()) == {""}
    assert "a marker took" in (await row(ground, f"cdc_pipeline/{service}")).evidence
    assert (await row(ground, f"cdc_pipeline/{first}")).done_at is None, "each service for itself"
    await ground.control.execute("UPDATE control.report SET recorded_at = recorded_at - interval '1 hour'")
    late = await look(ground, "dual_write", service)
    assert "its report is 36" in late["dashboard_operational"]
    assert late["data_validation_scripts"] == ""
    await ground.environment(service).stream("forward").stop()
    monkeypatch.setattr(streaming, "MARKER_SECONDS", 0.2)  # it would be waited for in vain
    stopped = await look(ground, "dual_write", service)
    assert "is disabled" in stopped["cdc_replicating_correctly"]


async def test_the_gate_ready_stays_closed_while_an_item_of_its_phase_is_open(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.prepare()
    await ground.replicate()
    service = ground.services[1]
    assert (await ground.do(ground.replication.measure_ready, ground.gate("ready", service))).ok
    strict = ground.plan.model_copy(
        update={"thresholds": ground.plan.thresholds.model_copy(update={"reconciliation_lag": timedelta(0)})}
    )
    # Fresh by the table's max lag, late by its cadence.
    await ground.control.execute("UPDATE control.report SET recorded_at = recorded_at - interval '6 minutes'")
    monkeypatch.setattr(ground.context, "_plans", {(strict.migration, ground.plan.hash): strict})
    monkeypatch.setattr(type(strict), "hash", ground.plan.hash)
    measured = await ground.do(ground.replication.measure_ready, ground.gate("ready", service))
    assert any("Reconciliation dashboard operational" in one for one in measured.problems)


async def samples(control: Control, count: int, *, every: str, before: str) -> None:
    """Samples of a soak, `every` apart, the last one `before` now."""
    await control.execute("DELETE FROM control.threshold_sample")
    await control.execute(
        "INSERT INTO control.threshold_sample (migration, service, at, soak, breached)"
        " SELECT 'm', 'trading', clock_timestamp() - $3::text::interval - (n - 1) * $2::text::interval, true, '{}'"
        " FROM generate_series(1, $1) n",
        count, every, before,
    )  # fmt: skip


async def reads_moved(control: Control, ago: str) -> None:
    """The reads went to the new side so long ago."""
    await control.execute("UPDATE control.route SET read_from_new = false, percentage = 0")
    await flags.set_read_from_new(control, "m", "trading", True, actor="test")
    await control.execute(
        "UPDATE control.audit SET at = at - $1::text::interval WHERE action = 'route.read_from_new'", ago
    )


async def test_a_soak_that_was_not_watched_all_along_is_told(control: Control) -> None:
    plan = load_text(
        "migration: m\nmonolith: {database: monolith}\nservices: {trading: {database: t, tables: {trades: {}}}}\n"
    )
    await flags.ensure(control, "m", "trading")
    await control.execute("ALTER TABLE control.audit DISABLE TRIGGER audit_append_only")
    for ago, count, every, before, words in (
        ("40 s", 35, "1 second", "0", ""),
        ("40 s", 12, "1 second", "0", "12 samples in the soak, 30 are needed"),
        ("40 s", 60, "5 seconds", "0", " samples in the soak, 30 are needed"),
        ("40 min", 35, "1 second", "0", "nobody watched the soak for 2"),
        ("375 min", 35, "11 minutes", "0", "nobody watched the soak for 660 s"),
        ("60 min", 60, "1 minute", "0", ""),
        ("120 min", 70, "1 minute", "50 minutes", "no sample of the thresholds just now (it is 3000 s old)"),
    ):
        await reads_moved(control, ago)
        await samples(control, count, every=every, before=before)
        said = await switching.error_rates_monitored(Subject(plan, control, no_database, "trading"))
        assert words in "; ".join(said.problems)
        assert bool(words) == bool(said.problems), said


def no_database(name: str) -> Database:
    raise AssertionError(f"{name} was asked for")


async def test_a_sample_is_noted(ground: Ground) -> None:
    await ground.prepare()
    service = ground.services[0]
    await ground.do(ground.monitoring.sample, m.SampleRequest(ref=ground.ref(service), reads=True))
    await ground.do(ground.monitoring.sample, m.SampleRequest(ref=ground.ref(service)))
    rows = await ground.control.fetch("SELECT soak, breached FROM control.threshold_sample ORDER BY at")
    assert [one["soak"] for one in rows] == [True, False]
    assert "secondary_failure_rate" in rows[0]["breached"]
    found = await watching.watched(ground.control, ground.plan.migration, service)
    assert (found.soak_samples, found.longest_hole) == (0, None)
    assert found.newest_age is not None


async def test_the_switchovers_items_need_a_way_back_and_summaries_since_the_switch(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.prepare()
    await ground.replicate()
    service = ground.services[0]
    before = await look(ground, "switchover", service)
    assert "writable at the monolith" in before["rollback_command_ready"]
    assert "no summary row" in before["hourly_consistency_reports"]
    await ground.do(ground.monitoring.summarise, ground.ref(service))
    await ground.switch(service)
    ready = await row(ground, f"rollback_command_ready/{service}")
    assert ready.done_at is not None, "the switch's own last step has proved it"
    assert f"cutover rollback migration/{ground.plan.migration}/{service}/switchover" in ready.evidence
    after = await look(ground, "switchover", service)
    assert "no summary row" in after["hourly_consistency_reports"], "the row is from before the switch"
    assert after["rollback_command_ready"] == ""
    await ground.do(ground.monitoring.summarise, ground.ref(service))
    assert (await look(ground, "switchover", service))["hourly_consistency_reports"] == ""
    await ground.control.execute("UPDATE control.summary SET recorded_at = recorded_at + interval '1 hour'")
    await ground.environment(service).stream("reverse").stop()
    monkeypatch.setattr(streaming, "MARKER_SECONDS", 0.2)  # it would be waited for in vain
    assert "rollback_command_ready" in {k for k, v in (await look(ground, "switchover", service)).items() if v}


def cut_short(folder: Path, name: str) -> None:
    """The file's last bytes are lost."""
    file = next(folder.rglob(name))
    file.write_bytes(file.read_bytes()[:-10])


async def test_the_cleanups_items_are_what_is_left_and_what_is_archived(ground: Ground) -> None:
    await ground.prepare()
    await ground.replicate()
    for service in ground.services:
        await ground.switch(service)
    service = ground.services[1]
    measured = await ground.do(ground.cleanup.measure_way_back, ground.gate("give-up-way-back"))
    assert not [one for one in measured.problems if "latency" not in one]
    assert (await row(ground, "data_verified")).evidence == "250 rows of 3 tables, no confirmed difference"
    assert (await row(ground, "full_reconciliation")).done_at is not None
    await ground.control.execute("UPDATE control.report SET unsettled = 7")
    assert "7 rows did not settle" in (await look(ground, "cleanup"))["data_verified"]
    await ground.control.execute("UPDATE control.report SET unsettled = 0")
    open_ones = await look(ground, "cleanup", service)
    for left in ("cutover_fence on outcomes", "_reverse_sub", "row of cutover.epoch"):
        assert left in open_ones["dual_write_disabled"]
    assert "cannot be read" in open_ones["tables_archived"]
    for one in ground.services:
        await ground.do(ground.cleanup.drop_machinery, ground.ref(one))
        await ground.do(ground.cleanup.archive_tables, ground.ref(one))
    assert set((await look(ground, "cleanup", service)).values()) == {""}
    assert "1 tables, 100 rows, checksums verified" in (await row(ground, f"tables_archived/{service}")).evidence
    assert "still has flags" in (await look(ground, "cleanup"))["feature_flags_removed"]
    await ground.do(ground.cleanup.record_migration, ground.ref())
    assert (await row(ground, "feature_flags_removed")).done_at is not None
    path = old_tables.folder(ground.plan, service) / manifest.NAME
    made = manifest.read_manifest(path)
    for name, value, said in (
        ("plan_hash", "of a former plan", "made under another plan"),
        ("system_identifier", "1", "not known to be of this migration"),
    ):
        manifest.write_manifest(path.parent, made.entries, **{**made.facts, name: value})
        assert said in (await look(ground, "cleanup", service))["tables_archived"]
    manifest.write_manifest(path.parent, made.entries, **{**made.facts, "plan_hash": "of a former plan"})
    await ground.do(ground.cleanup.rename_tables, ground.ref(service))
    assert (await look(ground, "cleanup", service))["tables_archived"] == "", "archived once, under the former plan"
    cut_short(Path(ground.plan.cleanup.archive_dir), "*outcomes*.gz")
    assert "checksum" in (await look(ground, "cleanup", service))["tables_archived"]


async def test_the_machinery_counts_as_dropped_only_when_nothing_is_left(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.prepare()
    await ground.replicate()
    service = ground.services[1]
    await ground.switch(service)

    async def forgotten(*_: object) -> None:
        return None

    monkeypatch.setattr(fence, "remove", forgotten)
    with pytest.raises(ApplicationError, match="trigger cutover_fence on outcomes is left at the service"):
        await ground.do(ground.cleanup.drop_machinery, ground.ref(service))
