"""`cutover plan check`, `explain`, `register`: what they print, and their exit status."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cutover.cli.plan import app
from cutover.control import plans
from cutover.control.database import Control
from cutover.plan.load import load_text
from cutover.postgres.databases import Database
from tests.plan.minimal import MINIMAL

DSN = "postgresql://nobody:hunter2@127.0.0.1:1/none"
DSNS = {f"CUTOVER_DSN_{name}": DSN for name in ("MONOLITH", "ORDERS_DB", "USERS_DB")}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUTOVER_ENV_FILE", str(tmp_path / "none"))
    for name in (*DSNS, "CUTOVER_DSN_CONTROL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(MINIMAL)
    return path


def run(*arguments: str | Path, env: dict[str, str] | None = None, answer: str = "") -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=env, input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "hunter2" not in result.output
    return result


def test_check_says_that_a_good_plan_is_good(file: Path) -> None:
    result = run("check", file, env=DSNS)
    assert result.exit_code == 0
    assert "plan shop, 2 services, 3 tables: no problem" in result.output
    assert load_text(MINIMAL).hash in result.output


def test_check_counts_missing_dsns_as_problems_unless_told_not_to(file: Path) -> None:
    result = run("check", file)
    assert result.exit_code == 2
    assert f"{file}:3: monolith.database: database monolith has no DSN; set CUTOVER_DSN_MONOLITH" in result.output
    assert result.output.splitlines()[-1] == "3 problems"
    assert run("check", file, "--no-dsn").exit_code == 0


def test_check_prints_problems_as_json(file: Path) -> None:
    file.write_text(MINIMAL + "compres: 2\n")
    result = run("check", file, "--json", "--no-dsn")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "file": str(file),
        "ok": False,
        "problems": [
            {
                "file": str(file),
                "line": 15,
                "field": "compres",
                "what": "unknown key",
                "right": "did you mean compress?",
            }
        ],
    }


@pytest.mark.parametrize("command", ["check", "explain", "register"])
def test_a_missing_or_broken_file_is_told_plainly(command: str, file: Path) -> None:
    result = run(command, file.with_name("none.yaml"))
    assert result.exit_code == 2
    assert "none.yaml:1: file: there is no such file" in result.output
    file.write_bytes(b"\xff\x00")
    result = run(command, file)
    assert result.exit_code == 2
    assert "the file is not UTF-8 text" in result.output


def test_explain_prints_a_plan_file_with_the_same_hash(file: Path) -> None:
    result = run("explain", file)
    assert result.exit_code == 0
    assert load_text(result.stdout).hash == load_text(MINIMAL).hash
    assert json.loads(run("explain", file, "--json").stdout)["switchover"]["soak"] == "1h"


def test_keys_without_effect_are_told_and_change_nothing(file: Path) -> None:
    assert "note:" not in run("check", file, "--no-dsn").output
    file.write_text(MINIMAL.replace("orders_db\n", "orders_db\n    traffic: {every: 1d}\n", 1))
    result = run("check", file, "--no-dsn")
    assert result.exit_code == 0
    assert "note: services.orders.traffic has no effect yet" in result.output
    assert len(json.loads(run("check", file, "--no-dsn", "--json").stdout)["notes"]) == 1
    assert "# note: traffic has no effect yet" in run("explain", file).stdout


def test_register_without_a_control_database_says_what_to_set(file: Path) -> None:
    result = run("register", file, "--yes")
    assert result.exit_code == 2
    assert "CUTOVER_DSN_CONTROL" in result.output
    result = run("register", file, "--yes", env={"CUTOVER_DSN_CONTROL": DSN})
    assert result.exit_code == 3
    assert "database 'control' cannot be reached" in result.output


async def test_register_shows_changes_and_tells_a_running_migration_that_they_are_pending(
    control: Control, control_db: Database, file: Path
) -> None:
    env = {"CUTOVER_DSN_CONTROL": control_db.dsn}

    async def register(*arguments: str, answer: str = "") -> Result:
        return await asyncio.to_thread(run, "register", file, "--by", "alice", *arguments, env=env, answer=answer)

    first = load_text(MINIMAL)
    result = await register("--yes")
    assert result.exit_code == 0, result.output
    assert f"registered: shop, plan {first.hash}" in result.output
    assert "nothing changes" in (await register()).output

    await plans.bind(control, "shop", first.hash, "alice")
    changed = MINIMAL + "approvals: {required: 3}\n"
    await asyncio.to_thread(file.write_text, changed)
    result = await register(answer="n\n")
    assert result.exit_code == 1
    assert "~ approvals.required: 2 → 3" in result.output
    result = await register(answer="y\n")
    assert result.exit_code == 0
    assert f"pending: plan {load_text(changed).hash}" in result.output
    assert (await plans.load(control, "shop")).hash == first.hash

    facts = json.loads((await register("--yes", "--json")).stdout)
    assert facts["active"] is False
    assert facts["changes"] == [{"path": "approvals.required", "before": "2", "after": "3"}]

    result = await register("--yes", "--adopt")
    assert result.exit_code == 0, result.output
    assert (await plans.load(control, "shop")).approvals.required == 3


async def test_adopting_shows_first_what_changes_and_refuses_what_cannot(
    control: Control, control_db: Database, file: Path
) -> None:
    env = {"CUTOVER_DSN_CONTROL": control_db.dsn, "TEMPORAL_ADDRESS": "127.0.0.1:1"}

    async def adopt(*arguments: str, answer: str = "") -> Result:
        options = ("--by", "carol", "--adopt", *arguments)
        return await asyncio.to_thread(run, "register", file, *options, env=env, answer=answer)

    first = load_text(MINIMAL)
    await plans.register(control, first, "alice")
    await plans.bind(control, "shop", first.hash, "workflow")
    await plans.claim_tables(control, first, "7001/monolith")
    await plans.begin_service(control, "shop", first.hash, "orders")
    await asyncio.to_thread(file.write_text, MINIMAL + "approvals: {required: 3}\n")

    result = await adopt("--dry-run")
    assert result.exit_code == 0
    assert "~ approvals.required: 2 → 3" in result.output
    facts = json.loads((await adopt("--dry-run", "--json")).stdout)
    assert facts["changes"] == [{"path": "approvals.required", "before": "2", "after": "3"}]
    assert (facts["former"], facts["obstacles"]) == (first.hash, [])
    assert (await adopt(answer="n\n")).exit_code == 1
    assert (await plans.load(control, "shop")).hash == first.hash
    assert await control.fetchval("SELECT count(*) FROM control.plan") == 1

    result = await adopt(answer="y\n")
    assert result.exit_code == 0, result.output
    assert "in force: shop" in result.output
    assert "not every open run could be told" in result.output
    assert "does not answer" in result.output
    assert (await plans.load(control, "shop")).approvals.required == 3
    again = json.loads((await adopt("--json")).stdout)
    assert (again["active"], again["changes"], again["approvals_voided"]) == (True, [], 0)

    await asyncio.to_thread(file.write_text, MINIMAL.replace("orders_db", "elsewhere_db"))
    result = await adopt("--yes")
    assert result.exit_code == 1
    assert "services.orders.database: it has begun with orders_db, it cannot become elsewhere_db" in result.output
    assert await control.fetchval("SELECT count(*) FROM control.plan") == 2
