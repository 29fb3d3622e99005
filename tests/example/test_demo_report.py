"""The report says what held, and in words what did not; and the watch counts what it is made from."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cutover.control.audit import AuditRow
from cutover.plan.load import load
from examples.ai_trader.check import Verdict
from examples.ai_trader.demo_ground import PLAN, own_environment
from examples.ai_trader.demo_kills import Killed
from examples.ai_trader.demo_report import render
from examples.ai_trader.demo_verdict import (
    Clients,
    Course,
    Findings,
    SwitchLine,
    TableLine,
    problems,
    switch_lines,
)
from examples.ai_trader.demo_watch import Tail, phase_of
from examples.ai_trader.history import Fault

NOW = datetime(2026, 1, 5, 9, tzinfo=UTC)
SERVICES = ("api_gateway", "orchestrator", "trading_engine", "ai_decision", "analytics")
DEMO = load(PLAN)


def switch(service: str, to_side: str = "service", **fields: Any) -> SwitchLine:
    line = SwitchLine(service, to_side, "done", 1, 40.0, 8.0, 41.0, False, "")
    return replace(line, **fields)


@pytest.fixture
def found() -> Findings:
    """A run in which everything held."""
    tables = [
        TableLine(name, table, "reverse", 100, 0, 0) for name, one in DEMO.services.items() for table in one.tables
    ]
    lines = [switch(name) for name in SERVICES]
    lines += [switch("trading_engine", "monolith"), switch("trading_engine")]
    course = Course(240.0, 360.0, {"preparation": 8.0}, [], 390.0, 400.0, 1_000_000, "trading_engine")
    clients = Clients(acknowledged=90_000, psql_fenced=300, psql_acknowledged=500)
    check = Verdict({"ok insert": 90_000}, rows_checked=40_000)
    stages = dict.fromkeys(SERVICES, "archived") | {"": "cleaned"}
    return Findings(course, clients, check, lines, tables, 90, 0, [], stages, "http://127.0.0.1:17301")


def text(found: Findings) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(found))
    return captured.get()


def test_a_run_in_which_all_held_has_no_problem(found: Findings) -> None:
    assert problems(found, DEMO) == []
    shown = text(found)
    assert "everything held" in shown
    assert "http://127.0.0.1:17301" in shown
    assert "40.0" in shown


def test_everything_that_must_not_be_is_said_in_words(found: Findings) -> None:
    def said(changed: Findings) -> str:
        (only,) = problems(changed, DEMO)
        return only

    course, clients = found.course, found.clients
    assert "2 writes failed" in said(replace(found, clients=replace(clients, failed=2)))
    assert "1 reads failed" in said(replace(found, clients=replace(clients, reads_failed=1)))
    assert "nobody was killed" in said(replace(found, clients=replace(clients, unknown=1)))
    assert "250 rows were written" in said(replace(found, course=replace(course, writes_per_second=250.0)))
    assert "more than 360 s" in said(replace(found, course=replace(course, seconds=400.0)))
    assert "alice is away" in said(replace(found, course=replace(course, gave_up="alice is away")))
    lost = Verdict({}, 1, violations={"lost": 1}, shown=[Fault("lost", "trades", 17, "op", "is absent")])
    assert "1 × lost: trades 17" in said(replace(found, check=lost))
    tables = [replace(found.tables[0], differences=3), *found.tables[1:]]
    assert "3 differences" in said(replace(found, tables=tables))
    assert "no complete pass" in said(replace(found, tables=found.tables[1:]))
    assert "6000 ms" in said(
        replace(found, switches=[replace(found.switches[0], pause_ms=6000.0), *found.switches[1:]])
    )


def test_a_missing_rollback_is_a_problem(found: Findings) -> None:
    without = [line for line in found.switches if line.to_side == "service"][:-1]
    (only,) = problems(replace(found, switches=without), DEMO)
    assert "trading_engine: its writable side went service, not service → monolith → service" in only


def test_undone_attempts_are_shown_and_are_no_problem(found: Findings) -> None:
    undone = switch("analytics", result="undone", recovered=True, reason="an earlier attempt ended in the middle")
    changed = replace(found, switches=[*found.switches, undone])
    assert problems(changed, DEMO) == []
    assert "an earlier attempt ended" in text(changed)


def test_with_kills_ten_moments_and_a_client_are_asked_for(found: Findings) -> None:
    kills = [Killed(float(n), f"moment {n}", "worker-1") for n in range(9)]
    course = replace(found.course, kills=kills, kills_wanted=True, writes_per_second=100.0)
    said = problems(replace(found, course=course), DEMO)
    assert said == ["workers were killed at 9 moments of 10", "no traffic process was killed"]
    course.kills = [*kills, Killed(10.0, "moment 9", "worker-2"), Killed(11.0, "a client", "traffic-1")]
    assert problems(replace(found, course=course), DEMO) == []


def test_the_report_is_json(found: Findings) -> None:
    written = json.loads(json.dumps(found.as_json(), default=str))
    assert written["ok"] is True
    assert written["switches"][0]["pause_ms"] == 40.0


def test_a_recovered_switch_has_its_pause_from_the_audit_log() -> None:
    def row(seq: int, action: str, ms: int) -> AuditRow:
        at = NOW + timedelta(milliseconds=ms)
        return AuditRow(seq, at, "switch", action, "m", "s", {"pause_id": "s-1"}, "", "")

    outcome = {"service": "s", "to_side": "service", "result": "done", "epoch": 1, "switch_id": "s-1"}
    rows = [row(2, "route.flipped", 2_750), row(1, "route.pause_announced", 500)]
    (line,) = switch_lines([{**outcome, "pause_ms": 0.0, "write_pause_ms": 0.0, "recovered": True}], rows)
    assert line.client_pause_ms == 2_250.0


def test_a_tail_counts_each_event_once_and_no_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    tail = Tail()
    tail.read([log])
    with log.open("a") as file:
        file.write('{"event":"invoke"}\n{"event":"ok"}\n{"event":"o')
    tail.read([log])
    assert tail.counts["ok"] == 1
    with log.open("a") as file:
        file.write('k"}\n{"event":"fail"}\n')
    tail.read([log])
    tail.read([log])
    assert (tail.counts["ok"], tail.counts["fail"]) == (2, 1)


def test_the_phase_is_what_the_stages_say() -> None:
    ready = dict.fromkeys(SERVICES, "ready")
    assert phase_of({}, SERVICES) == "preparation"
    assert phase_of({"": "prepared"}, SERVICES) == "dual-write"
    assert phase_of({"": "prepared", **ready}, SERVICES) == "switchover"
    assert phase_of({"": "prepared", **ready, "analytics": "replicating"}, SERVICES) == "dual-write"
    assert phase_of({"": "prepared", **dict.fromkeys(SERVICES, "deprecated")}, SERVICES) == "cleanup"
    assert phase_of({"": "cleaned"}, SERVICES) == "done"


def test_the_demo_never_sees_the_persons_own_databases(tmp_path: Path) -> None:
    theirs = {
        "CUTOVER_DSN_MONOLITH": "postgresql://production/",
        "TEMPORAL_ADDRESS": "cloud:7233",
        "PGHOST": "production",
        "CUTOVER_TEMPORAL_CLI": "/opt/temporal",
        "PATH": "/bin",
    }
    own = own_environment(theirs, tmp_path, 17300)
    assert "production" not in str(own)
    assert "cloud" not in str(own)
    assert own["PATH"].endswith("/bin")
    assert own["CUTOVER_TEMPORAL_CLI"] == "/opt/temporal"
    assert own["CUTOVER_ENV_FILE"] == str(tmp_path / "env")
