"""`cutover reconcile` as typed: which tables are compared, progress, Ctrl-C, the strategy's report, history."""

import asyncio
import json
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError

from activities import ids
from cutover.cli import passes
from cutover.cli.passes import Watch
from cutover.cli.reports import Chosen
from cutover.control import reports
from cutover.control.passes import PassProgress
from cutover.control.reports import Difference, DifferenceKind, TableReport
from tests.cli.conftest import SERVICE, Desk, hears_ctrl_c
from tests.waiting import until

TABLE = "trades"
ONE = ("--service", SERVICE, "--table", TABLE)


async def report(desk: Desk, keys: dict[int, DifferenceKind] | None = None, **fields: Any) -> TableReport:
    """A complete pass in which those keys differed."""
    now = datetime.now(UTC)
    found = [
        Difference(
            TABLE, f'["{key}"]', kind, None if kind == "extra" else 10 + key, None if kind == "missing" else -key, True,
            ("price",) if kind == "mismatched" else (),
        )
        for key, kind in (keys or {}).items()
    ]  # fmt: skip
    counts = {kind: sum(d.kind == kind for d in found) for kind in ("missing", "extra", "mismatched")}
    facts = {
        "migration": desk.plan, "service": SERVICE, "table": TABLE, "direction": "forward", "started_at": now,
        "finished_at": now, "rows_source": 100, "rows_target": 101, "rate": len(found) / 100,
        "seed_rate": counts["mismatched"] / 100, "duration_ms": 500, "plan_hash": "h", "complete": True,
        **counts, **fields,
    }  # fmt: skip
    made = TableReport.model_validate(facts)
    return made.model_copy(update={"id": await reports.record(desk.control, made, found)})


def known(desk: Desk) -> None:
    """The fake world's service has the table."""
    world = desk.harness.world
    tables = [world.rules.services[0].tables[0].model_copy(update={"name": TABLE})]
    services = [one.model_copy(update={"tables": tables}) for one in world.rules.services]
    world.rules = world.rules.model_copy(update={"services": services})


def passes_made(desk: Desk) -> int:
    return max(desk.harness.world.count(name) for name in ("reconcile_table", "open_pass"))


async def test_a_table_is_compared_where_its_report_is_too_old_or_of_the_other_direction(desk: Desk) -> None:
    known(desk)
    await report(desk)
    said = await desk.type("reconcile", desk.plan, *ONE)
    assert (passes_made(desk), said.stderr) == (0, "")
    await desk.control.execute("UPDATE control.report SET recorded_at = recorded_at - interval '11 min'")
    shown = await desk.type("reconcile", desk.plan, *ONE, "--show", status=1)
    assert "11.0 min (stale)" in shown.stdout
    assert passes_made(desk) == 0
    said = await desk.type("reconcile", desk.plan, *ONE)
    assert passes_made(desk) == 1
    assert f"1 of 1: comparing {SERVICE}: {TABLE}" in said.stderr
    assert "300 rows" in said.stderr
    await report(desk, direction="reverse")
    await desk.type("reconcile", desk.plan, *ONE)
    assert passes_made(desk) == 2
    await report(desk)
    await desk.type("reconcile", desk.plan, *ONE, "--now")
    assert passes_made(desk) == 3


async def test_a_table_without_a_report_is_not_in_order(desk: Desk) -> None:
    shown = await desk.type("reconcile", desk.plan, *ONE, "--show", status=1)
    assert "never compared" in shown.stdout
    (facts,) = json.loads((await desk.type("reconcile", desk.plan, *ONE, "--show", "--json", status=1)).stdout)
    assert facts == {"service": SERVICE, "table": TABLE, "complete": False, "fresh": False}


async def test_rows_that_nobody_could_judge_are_not_in_order(desk: Desk) -> None:
    await report(desk, unsettled=100)
    for option in ((), ("--show",)):
        said = await desk.type("reconcile", desk.plan, *ONE, *option, status=1)
        assert "100 rows would not hold still" in said.stdout


async def test_reconcile_show_starts_nothing_and_shows_the_keys_that_differ(desk: Desk) -> None:
    await report(desk, {1: "mismatched", 2: "mismatched"})
    await report(desk, {3: "mismatched", 4: "missing", 5: "extra"})
    shown = await desk.type("reconcile", desk.plan, "--show", status=1)
    assert desk.harness.world.calls == []
    lines = [[part.strip() for part in line.split("│")] for line in shown.stdout.splitlines() if line.count("│") == 4]
    assert [line[1:4] for line in lines] == [["3", "mismatched", "price"], ["4", "missing", ""], ["5", "extra", ""]]
    fewer = await desk.type("reconcile", desk.plan, *ONE, "--show", "--keys", "1", status=1)
    assert "… and 2 more" in fewer.stdout
    for wrong in (("--service", "nosuch"), ("--table", "nosuch"), ("--now",), ("--dry-run",)):
        await desk.type("reconcile", desk.plan, "--show", *wrong, status=2)
    await desk.type("reconcile", "nosuch", "--show", status=1)


async def test_what_a_reader_should_know_stands_under_the_table(desk: Desk) -> None:
    await report(desk, replica=True, orphans=3, warnings=["no primary key"], left_out=["seen (excluded by the plan)"])
    said = (await desk.type("reconcile", desk.plan, *ONE, "--show")).stdout
    for words in ("read from a replica", "3 rows whose loose foreign key", "no primary key", "not compared: seen"):
        assert f"{SERVICE}.{TABLE}: " in said
        assert words in said
    await report(desk, direction="reverse")
    said = (await desk.type("reconcile", desk.plan, *ONE, "--show", status=1)).stdout
    assert "rows flow forward now, and this report is of before" in said


async def test_the_json_holds_the_strategys_own_report_under_its_own_names(desk: Desk) -> None:
    await report(desk, {3: "mismatched", 4: "missing", 5: "extra"})
    (facts,) = json.loads((await desk.type("reconcile", desk.plan, *ONE, "--show", "--json", status=1)).stdout)
    own = facts["ReconciliationReport"]
    assert own == {
        "table": TABLE, "totalSource": 100, "totalTarget": 101, "mismatchRate": 0.01,
        "mismatches": [{"source": {"key": ["3"], "hash": 13}, "target": {"key": ["3"], "hash": -3},
                        "columns": ["price"]}],
        "missing": [{"key": ["4"], "hash": 14}], "extra": [{"key": ["5"], "hash": -5}],
    }  # fmt: skip
    assert (facts["missing"], facts["mismatched"], facts["fresh"], facts["keys_left_out"]) == (1, 1, True, 0)
    assert facts["keys"][0] == {
        "key": ["3"], "kind": "mismatched", "columns": ["price"], "source_hash": 13, "target_hash": -3,
    }  # fmt: skip


async def test_the_history_shows_each_pass_with_its_speed_newest_first(desk: Desk) -> None:
    await report(desk, rows_source=5000, duration_ms=2000, complete=False)
    await report(desk, {3: "mismatched"})
    past = json.loads((await desk.type("reconcile", desk.plan, *ONE, "--history", "--json")).stdout)
    assert [(one["complete"], one["mismatched"], one["rows_per_second"]) for one in past] == [
        (True, 1, 200.0), (False, 0, 2500.0),
    ]  # fmt: skip
    shown = await desk.type("reconcile", desk.plan, "--history")
    assert "2,500" in shown.stdout
    assert "NO" in shown.stdout
    assert len(json.loads((await desk.type("reconcile", desk.plan, "--history", "--last", "1", "--json")).stdout)) == 1
    assert (
        "nothing was compared" in (await desk.type("reconcile", desk.plan, "--history", "--table", "positions")).stdout
    )


async def test_a_pass_that_fails_does_not_hide_the_others_and_ends_in_1(desk: Desk) -> None:
    known(desk)
    await report(desk)
    said = await desk.type("reconcile", desk.plan, "--service", SERVICE, "--now", status=1)
    # the world's service has `trades` and not `positions`
    assert "error: positions: " in said.stderr
    assert passes_made(desk) == 1


class Held:
    """A pass that a worker holds in its middle, and what the control database says of it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.let_go = asyncio.Event()
        self.run = f"{ids.reconciliation(desk.plan, SERVICE, TABLE)}/by-hand"
        for name in ("reconcile_table", "finish_pass"):
            desk.harness.world.on[name] = self.let_go.wait

    async def status(self) -> WorkflowExecutionStatus | None:
        return (await self.desk.harness.handle(self.run).describe()).status

    async def there(self) -> bool:
        try:
            return await self.status() is not None
        except RPCError:
            return False

    async def walked(self, rows: int) -> None:
        run_id = (await self.desk.harness.handle(self.run).describe()).run_id
        await self.desk.control.execute(
            "INSERT INTO control.pass (id, migration, service, table_name, direction, plan_hash, seed, rows_source,"
            " started_at) VALUES ($1, $2, $3, $4, 'forward', 'h', 1, $5, clock_timestamp() - interval '10 s')",
            f"{run_id}/1", self.desk.plan, SERVICE, TABLE, rows,
        )  # fmt: skip


def typed_at_a_shell(desk: Desk, *arguments: str) -> Any:
    program = (sys.executable, "-m", "cutover.cli.main", *arguments)
    environment = {
        **desk.env,
        "CUTOVER_ENV_FILE": "/nonexistent",
        "PATH": "/usr/bin:/bin",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "240",
    }
    pipe = asyncio.subprocess.PIPE
    return asyncio.create_subprocess_exec(*program, env=environment, stdout=pipe, stderr=pipe, preexec_fn=hears_ctrl_c)


async def test_ctrl_c_leaves_the_pass_to_the_workers_and_says_how_to_look_again(desk: Desk) -> None:
    known(desk)
    held = Held(desk)
    command = await typed_at_a_shell(desk, "reconcile", desk.plan, "--service", SERVICE, "--now")
    assert b"1 of 2: comparing" in await command.stderr.readline()
    await until(held.there, "the run is there")
    command.send_signal(signal.SIGINT)
    _, told = await command.communicate()
    assert command.returncode == 130
    assert f"the pass over {TABLE} goes on on the workers; the 1 behind it were not begun" in told.decode()
    assert f"cutover reconcile {desk.plan} --service {SERVICE} --table {TABLE} --show" in told.decode()
    assert await held.status() == WorkflowExecutionStatus.RUNNING
    await report(desk)
    again = await typed_at_a_shell(desk, "reconcile", desk.plan, *ONE, "--now")
    said = b""
    while b"was begun by hand is under way; this follows it" not in said:
        said = await again.stderr.readline()
        assert said, "it ended without a word of the pass that is under way"
    held.let_go.set()
    await again.communicate()
    assert passes_made(desk) == 1


async def test_a_ctrl_c_that_was_swallowed_on_its_way_still_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handle:
        result_run_id = run_id = "r"

        async def result(self) -> None:
            await asyncio.Event().wait()

    looking = asyncio.Event()

    async def swallowing(*_: object) -> None:
        looking.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr("cutover.cli.passes.passes.progress", swallowing)
    table = Chosen(SERVICE, TABLE, "forward", 1.0)
    handle: Any = Handle()
    control: Any = None
    following = asyncio.create_task(passes._followed(handle, control, "shop", table, Watch(1, quiet=True)))
    async with asyncio.timeout(20):
        await looking.wait()
        following.cancel()
        await asyncio.wait([following])
    assert following.cancelled()


async def test_progress_is_read_from_where_the_pass_keeps_its_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(desk)
    monkeypatch.setattr("cutover.cli.passes.LINE", 0.1)
    await report(desk, rows_source=4000)
    held = Held(desk)
    typing = asyncio.create_task(desk.type("reconcile", desk.plan, *ONE, "--now"))
    await until(held.there, "the run is there")
    await asyncio.sleep(0.8)
    await held.walked(1000)
    await asyncio.sleep(1.5)
    held.let_go.set()
    said = (await typing).stderr
    assert "trades: waiting for a worker to begin" in said
    assert "trades: 1,000 of about 4,000 rows, " in said
    assert "rows/s, " in said
    assert " left" in said


def bars(watch: Watch) -> str:
    assert watch.bars is not None
    plain = Console(width=200, file=StringIO())
    with plain.capture() as shown:
        plain.print(watch.bars.get_renderable())
    return shown.get()


def test_on_a_terminal_each_table_has_a_bar_with_rows_speed_and_time_left() -> None:
    console = Console(force_terminal=True, width=160, file=StringIO())
    tables = [Chosen(SERVICE, name, "forward", 60) for name in ("[bold]trades", "positions")]
    with Watch(2, console=console) as watch:
        watch.begin(1, tables[0])
        watch.look(tables[0], PassProgress(250_000, 1_000_000, 10.0, 0))
        first = bars(watch)
        watch.look(tables[0], PassProgress(1_000_000, 1_000_000, 10.0, 2))
        second = bars(watch)
        watch.end("done")
        watch.begin(2, tables[1])
        third = bars(watch)
    assert "1 of 2  trading_engine: [bold]trades" in first
    assert "250,000 of about 1,000,000 rows, 25,000 rows/s, 30 s left" in first
    assert "settling what differs (look 2)" in second
    assert "2 of 2  trading_engine: positions" in third
