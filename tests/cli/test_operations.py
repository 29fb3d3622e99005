"""`setup`, `reconcile`, `doctor`, `conflicts` and `status` as typed; exit statuses of all commands."""

import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

from activities import ids
from cutover.cli import doctor, operations, runs
from cutover.cli.conflicts import Decide
from cutover.control import audit, conflicts, reports
from cutover.control.reports import Difference, TableReport
from cutover.errors import ConfigError, CutoverError, Exit, GateClosed, NotYet, PlanError, Unreachable, exit_status
from cutover.postgres.databases import Database
from cutover.settings import Settings
from cutover.telemetry import temporal
from tests.cli.conftest import SERVICE, Desk, typed
from workers import worker
from workflows.cleanup import CleanupWorkflow

TABLE = "trades"


async def report(desk: Desk, keys: tuple[int, ...], table: str = TABLE) -> int:
    """A complete pass in which those keys differed."""
    now = datetime.now(UTC)
    found = [Difference(table, f'["{key}"]', "mismatched", 10 + key, -20 - key, True) for key in keys]
    made = TableReport(
        migration=desk.plan, service=SERVICE, table=table, direction="forward", started_at=now, finished_at=now,
        rows_source=100, rows_target=100, mismatched=len(keys), rate=len(keys) / 100, seed_rate=0, duration_ms=5,
        plan_hash="h", complete=True,
    )  # fmt: skip
    return await reports.record(desk.control, made, found)


async def case(desk: Desk, key: int = 7) -> int:
    detail = {"reason": "the rule is manual", "direction": "forward", "source_hash": 17, "target_hash": -27}
    return await conflicts.open_case(
        desk.control, migration=desk.plan, service=SERVICE, table=TABLE, key_json=f'["{key}"]', kind="mismatched",
        rule="manual", detail=detail,
    )  # fmt: skip


# --- setup ---------------------------------------------------------------------------------------


async def retention(desk: Desk) -> int:
    client = desk.harness.client
    shown = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    return int(shown.config.workflow_execution_retention_ttl.seconds)


async def test_setup_prepares_a_server_and_may_run_again(desk: Desk) -> None:
    said = await desk.type("setup", "--retention", "30d")
    assert "search attributes: all there" in said.output
    assert "control schema: up to date" in said.output
    assert await retention(desk) == 30 * 86400
    facts = json.loads((await desk.type("setup", "--json")).stdout)
    assert facts == {"search_attributes_added": [], "retention": "90d", "migrations_applied": []}


@pytest.mark.parametrize("wrong", ["abc", "500ms", "30", "-1d", "0s", "59m", "1h0.5s", ""])
async def test_a_retention_that_makes_no_sense_is_refused_before_anything_is_changed(
    desk: Desk, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: Any) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr(operations, "connect", unexpected)
    refused = await desk.type("setup", f"--retention={wrong}", status=2)
    assert "--retention" in refused.output


# --- reconcile -----------------------------------------------------------------------------------


async def test_reconcile_compares_through_a_worker_and_ends_in_1_where_rows_differ(desk: Desk) -> None:
    await report(desk, ())
    options = ("--service", SERVICE, "--table", TABLE, "--now")
    world = desk.harness.world
    world.rules = world.rules.model_copy(
        update={"services": [one.model_copy(update={"tables": [one.tables[0].model_copy(update={"name": TABLE})]})
                             for one in world.rules.services]}
    )  # fmt: skip
    said = await desk.type("reconcile", desk.plan, *options)
    assert f"1 of 1: comparing {SERVICE}: {TABLE}" in said.stderr
    assert world.count("open_pass") == 1
    await report(desk, (3, 4))
    assert "2" in (await desk.type("reconcile", desk.plan, *options, status=1)).stdout


# --- conflicts -----------------------------------------------------------------------------------


async def test_cases_are_listed_shown_and_decided_with_an_audit_row(desk: Desk) -> None:
    assert "no open case" in (await desk.type("conflicts", "list", desk.plan)).output
    number = str(await case(desk))
    listed = await desk.type("conflicts", "list", desk.plan, "--service", SERVICE)
    assert f"cutover conflicts show {desk.plan} {number}" in listed.output
    (facts,) = json.loads((await desk.type("conflicts", "list", desk.plan, "--json")).stdout)
    assert (facts["key"], facts["kind"], facts["rule"], facts["decision"]) == ("7", "mismatched", "manual", "")
    shown = await desk.type("conflicts", "show", desk.plan, number)
    assert f"cutover conflicts resolve {desk.plan} {number} --decision primary" in shown.output
    assert "0000000000000011" in shown.output
    decide = ("conflicts", "resolve", desk.plan, number, "--decision", "primary", "--by", "alice", "--reason", "stale")
    answered = await desk.type(*decide)
    assert f"cutover reconcile {desk.plan} --service {SERVICE} --table {TABLE} --now" in answered.output
    assert "primary, by alice" in json.loads((await desk.type(*decide, "--json")).stdout)["decision"]
    async with desk.control.connection() as connection:
        newest = (await audit.entries(connection, desk.plan))[0]
    assert (newest.actor, newest.action, newest.detail["reason"]) == ("alice", "conflict.decided", "stale")
    assert "7" not in str(newest.detail.get("key", ""))


async def test_a_case_shows_its_deadline_and_whether_it_has_passed(desk: Desk) -> None:
    number = str(await case(desk))
    (facts,) = json.loads((await desk.type("conflicts", "list", desk.plan, "--json")).stdout)
    opened, deadline = (datetime.fromisoformat(facts[name]) for name in ("opened", "deadline"))
    assert (facts["overdue"], round((deadline - opened).total_seconds())) == (False, 86400)
    assert "OVERDUE" not in (await desk.type("conflicts", "list", desk.plan)).stdout
    await desk.control.execute("UPDATE control.conflict SET due_at = clock_timestamp() - interval '1 s'")
    assert "OVERDUE" in (await desk.type("conflicts", "list", desk.plan)).stdout
    shown = (await desk.type("conflicts", "show", desk.plan, number)).stdout
    assert "overdue      True" in shown
    assert f"cutover diff {desk.plan} {TABLE} --key '[\"7\"]'" in shown


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("list", "nosuch"), 1),
        (("list", "PLAN", "--service", "nosuch"), 2),
        (("show", "PLAN", "99999"), 1),
        (("show", "PLAN", "x"), 2),
        (("resolve", "PLAN", "99999", "--decision", "primary", "--by", "alice"), 1),
        (("resolve", "PLAN", "1", "--decision", "both", "--by", "alice"), 2),
        (("resolve", "PLAN", "1", "--by", "alice"), 2),
    ],
)
async def test_a_wrong_question_about_cases_changes_nothing(
    desk: Desk, arguments: tuple[str, ...], status: int
) -> None:
    await desk.type("conflicts", *(desk.plan if one == "PLAN" else one for one in arguments), status=status)


def test_the_decisions_on_the_command_line_are_those_of_the_control_database() -> None:
    from typing import get_args

    assert {one.value for one in Decide} == set(get_args(conflicts.Decision))


# --- doctor --------------------------------------------------------------------------------------


async def test_doctor_reads_both_databases_and_says_what_is_wrong(
    desk: Desk, monolith_db: Database, service_db: Database
) -> None:
    for database in (monolith_db, service_db):
        async with database.session("test") as connection:
            await connection.execute("CREATE TABLE trades (id int PRIMARY KEY); CREATE TABLE positions (id int)")
    env = {"CUTOVER_DSN_MONOLITH": monolith_db.dsn, "CUTOVER_DSN_TRADING_ENGINE_DB": service_db.dsn}
    said = await desk.type("doctor", desk.plan, "--service", SERVICE, status=1, env=env)
    assert "has no fence, so it takes writes" in said.output
    (facts,) = json.loads(
        (await desk.type("doctor", desk.plan, "--service", SERVICE, "--json", status=1, env=env)).stdout
    )
    assert facts["service"] == SERVICE
    assert "cutover start preparation" in facts["problems"][0]
    assert facts["remedy"] == f"cutover start preparation {desk.plan}"
    away = {**env, "CUTOVER_DSN_MONOLITH": "postgresql://u:hunter2@127.0.0.1:1/none"}
    assert (
        "cannot be reached" in (await desk.type("doctor", desk.plan, "--service", SERVICE, status=1, env=away)).output
    )
    await desk.type("doctor", desk.plan, "--service", "nosuch", status=2, env=env)
    await desk.type("doctor", "nosuch", status=1)


async def test_rebuild_stream_prints_json_and_nothing_else_where_asked(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rebuilt(_env: Any, say: Callable[[str], None]) -> None:
        say("dropping and making anew")

    monkeypatch.setattr(doctor, "rebuild", rebuilt)
    env = {"CUTOVER_DSN_MONOLITH": "postgresql://m/m", "CUTOVER_DSN_TRADING_ENGINE_DB": "postgresql://t/t"}
    options = ("doctor", desk.plan, "--service", SERVICE, "--rebuild-stream")
    said = await desk.type(*options, "--yes", "--json", env=env)
    assert json.loads(said.stdout) == {
        "service": SERVICE, "from": "monolith", "to": "service", "rebuilt": True, "steps": ["dropping and making anew"],
    }  # fmt: skip
    assert "the stream is whole again" in (await desk.type(*options, answer="y\n", env=env)).stdout
    await desk.type(*options, answer="n\n", status=1, env=env)
    await desk.type("doctor", desk.plan, "--rebuild-stream", status=2)


# --- status --------------------------------------------------------------------------------------


async def test_status_shows_what_waits_and_the_commands(desk: Desk) -> None:
    empty = await desk.type("status", desk.plan)
    assert f"cutover start migration {desk.plan}" in empty.output
    desk.harness.world.stages_of.update({SERVICE: "deprecated", "analytics": "deprecated"})
    run = ids.cleanup(desk.plan)
    await desk.harness.start(CleanupWorkflow, run)
    await desk.harness.at_gate(run, "give-up-way-back")
    await case(desk)
    shown = " ".join((await desk.type("status", desk.plan)).output.split())
    assert f"cutover approve {run} --by YOU --evidence k7gi" in shown
    assert f"cutover conflicts list {desk.plan}" in shown
    facts = json.loads((await desk.type("status", desk.plan, "--json")).stdout)
    assert facts["cases_command"] == f"cutover conflicts list {desk.plan}"
    assert [(one["service"], one["cases"]) for one in facts["services"]] == [("analytics", 0), (SERVICE, 1)]
    assert facts["runs"][0]["gates"][0]["evidence"] == "k7gi"
    await desk.harness.signal(run, "reject", by="bob")
    await desk.harness.parked(run)
    assert "NEEDS_ATTENTION" in (await desk.type("status", desk.plan, status=1)).output


# --- how commands end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PlanError("x"), 2),
        (ConfigError("x"), 2),
        (Unreachable("x"), 3),
        (NotYet("x"), 1),
        (GateClosed("x"), 1),
    ],
)
def test_an_error_has_one_exit_status(error: CutoverError, status: int) -> None:
    assert exit_status(error) == status


def test_the_documented_table_of_exit_statuses_is_the_one_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = page.partition("## Exit statuses")[2].partition("\n## ")[0]
    documented = {
        int(line.split("|")[1]) for line in section.splitlines() if line.startswith("| ") and line[2].isdigit()
    }
    assert documented == {int(one) for one in Exit}


EVERY = [
    ("status", "x"), ("history", "x"), ("reconcile", "x"), ("doctor", "x"), ("setup",), ("conflicts", "list", "x"),
    ("conflicts", "show", "x", "1"), ("conflicts", "resolve", "x", "1", "--decision", "primary", "--by", "a"),
    ("start", "migration", "x"), ("approve", "x", "--by", "a"), ("reject", "x", "--by", "a"),
    ("pause", "x", "--by", "a"), ("resume", "x", "--by", "a"), ("rollback", "x", "--by", "a"),
    ("retry", "x", "--by", "a"), ("skip", "x", "--by", "a"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", EVERY, ids=" ".join)
def test_a_server_that_is_away_ends_every_command_in_status_3(arguments: tuple[str, ...]) -> None:
    env = {"TEMPORAL_ADDRESS": "127.0.0.1:1", "CUTOVER_DSN_CONTROL": "postgresql://u:hunter2@127.0.0.1:1/none"}
    ended = typed(*arguments, env=env)
    assert ended.exit_code == 3, ended.output
    assert ended.output.strip()


def test_a_temporal_server_that_is_there_and_does_not_answer_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        address = f"127.0.0.1:{stopped.getsockname()[1]}"
        begun = time.monotonic()
        ended = typed("status", "x", env={"TEMPORAL_ADDRESS": address})
    assert time.monotonic() - begun < 20  # by itself the client waits for half a minute
    assert ended.exit_code == 3
    assert f"the Temporal server at {address} does not answer" in ended.output


def test_wrong_surroundings_end_in_status_2(tmp_path: Path) -> None:
    assert typed("dev", "status", env={"CUTOVER_DEV_PORT_BASE": "x", "CUTOVER_DEV_HOME": str(tmp_path)}).exit_code == 2
    assert typed("plan", "explain", str(tmp_path / "none.yaml")).exit_code == 2
    assert typed("preflight", str(tmp_path / "none.yaml")).exit_code == 2
    assert typed("history", "x").exit_code == 2  # no DSN is set
    (tmp_path / "env").write_bytes(b"\xff\xfe")
    ended = typed("history", "x", env={"CUTOVER_ENV_FILE": str(tmp_path / "env")})
    assert ended.exit_code == 2, ended.output
    ended = typed("status", "x", env={"TEMPORAL_PROFILE": "of-nobody"})
    assert ended.exit_code == 2, ended.output
    assert "'of-nobody' not found" in ended.output


async def test_command_line_and_worker_take_the_server_from_the_same_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "temporal.toml"
    profile.write_text('[profile.staging]\naddress = "127.0.0.1:1"\nnamespace = "theirs"\napi_key = "k"\n')
    settings = Settings({"TEMPORAL_CONFIG_FILE": str(profile), "TEMPORAL_PROFILE": "staging"})
    asked: dict[str, Any] = {}

    async def connected(**config: Any) -> None:
        asked.update(config)

    monkeypatch.setattr("cutover.telemetry.temporal.Client.connect", connected)
    await temporal.connect(settings, "me")
    assert (asked["target_host"], asked["namespace"], asked["api_key"]) == ("127.0.0.1:1", "theirs", "k")
    assert (asked["tls"], asked["identity"]) == (True, "me")
    assert vars(worker)["connect"] is vars(runs)["connect"] is temporal.connect


def test_a_mistake_of_ours_is_one_line_and_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("hunter2")

    monkeypatch.setattr("cutover.cli.runs.control", broken)
    ended = typed("history", "x", env={"CUTOVER_DSN_CONTROL": "postgresql://c/c"})
    assert (ended.exit_code, ended.output) == (70, "error: a mistake in cutover itself: KeyError; please report it\n")
