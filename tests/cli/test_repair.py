"""`cutover reconcile --repair` and `cutover diff` as typed, on two databases with a running stream between them."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import Result

from cutover.alerts.store import recent
from cutover.control import audit, conflicts, plans, switches
from cutover.plan.dsn import variable
from cutover.plan.load import load_text
from cutover.postgres.applier import applier_session
from cutover.reconcile import conflicts as repairing
from cutover.reconcile import mending
from cutover.switch.environment import SwitchEnvironment
from tests.cli.conftest import typed
from tests.switch.conftest import PLAN, verify
from tests.switch.conftest import env as env  # two tables between two clusters, streaming

PLAN_NAME = "test"


@dataclass
class Place:
    """Somebody at the command line of a migration whose stream runs."""

    env: SwitchEnvironment

    @property
    def service(self) -> str:
        return self.env.pair.service

    async def type(self, *arguments: str, status: int = 0, answer: str = "") -> Result:
        dsns = {
            variable("monolith"): self.env.pair.monolith.dsn,
            variable(f"{self.service}_db"): self.env.pair.target.dsn,
            variable("control"): self.env.control.database.dsn,
        }
        result = await asyncio.to_thread(typed, *arguments, env=dsns, answer=answer)
        assert result.exit_code == status, (result.exit_code, result.output)
        return result

    async def repair(self, *options: str, **how: Any) -> Result:
        return await self.type("reconcile", PLAN_NAME, "--repair", "--table", "trades", *options, **how)

    async def go_by(self, rules: str) -> None:
        """Another plan: `trades` under these rules."""
        plan = load_text(PLAN.format(service=self.service).replace("trades: {}", f"trades: {rules}"))
        await plans.register(self.env.control, plan, "alice")
        self.env = replace(self.env, plan=plan)

    async def spoil(self, *statements: str) -> None:
        """Changes on the side that is not the primary, as nobody should make them; then a pass finds them."""
        async with applier_session(self.env.pair.target, self.service, "repair") as writer:
            for statement in statements:
                await writer.execute(statement)
        await verify(self.env)

    async def at(self, side: str, sql: str) -> Any:
        async with (self.env.pair.monolith if side == "monolith" else self.env.pair.target).session() as connection:
            return await connection.fetchval(sql)

    async def actions(self) -> list[tuple[str, str]]:
        async with self.env.control.connection() as connection:
            return [(one.actor, one.action) for one in await audit.entries(connection, PLAN_NAME)]


SPOILT = (
    "UPDATE trades SET note = 'spoilt' WHERE id = 7",
    "DELETE FROM trades WHERE id = 8",
    "INSERT INTO trades (id, price, note) OVERRIDING SYSTEM VALUE VALUES (900, 1, 'nobody wrote this')",
)


@pytest_asyncio.fixture
async def place(env: SwitchEnvironment) -> AsyncIterator[Place]:
    await plans.register(env.control, env.plan, "alice")
    yield Place(env)


async def test_a_dry_run_says_what_would_be_written_where_by_which_rule_and_writes_nothing(place: Place) -> None:
    await place.spoil(*SPOILT)
    before = await place.at("service", "SELECT string_agg(t::text, ';' ORDER BY id) FROM trades t")
    log = await place.actions()
    said = await place.repair("--dry-run", status=1)
    assert f"to be written at the service ({place.service}_db)" in said.stdout
    assert "1 × update: the source wins" in said.stdout
    facts = json.loads((await place.repair("--dry-run", "--json", status=1)).stdout)
    (table,) = facts["tables"]
    assert (facts["done"], table["rule"], table["side"]) == (False, "source-wins", "service")
    assert {(one["key"][0], one["kind"], one["action"], one["database"], one["reason"]) for one in table["steps"]} == {
        ("7", "mismatched", "update", f"{place.service}_db", "the source wins"),
        ("8", "missing", "insert", f"{place.service}_db", "the source wins"),
        ("900", "extra", "delete", f"{place.service}_db", "the source wins"),
    }
    assert table["planned"] == {"insert": 1, "update": 1, "delete": 1, "case": 0, "skip": 0}
    assert await place.at("service", "SELECT string_agg(t::text, ';' ORDER BY id) FROM trades t") == before
    assert await place.actions() == log
    assert "spoilt" not in said.output + json.dumps(facts)


async def test_a_repair_after_a_pass_that_could_judge_nothing_is_not_done(place: Place) -> None:
    await place.spoil()
    assert "nothing to repair" in (await place.repair("--yes")).stdout
    await place.env.control.execute("UPDATE control.report SET unsettled = 100")
    assert "100 rows would not hold still" in (await place.repair("--yes", status=1)).stdout


async def test_a_repair_asks_first_and_does_nothing_on_no(place: Place) -> None:
    await place.spoil(*SPOILT)
    asked = await place.repair(answer="n\n", status=1)
    assert f"Insert 1, update 1, delete 1 rows in the service's database '{place.service}_db'?" in asked.stderr
    assert await place.at("service", "SELECT note FROM trades WHERE id = 7") == "spoilt"


async def test_a_repair_writes_compares_every_key_again_and_names_who_did_it(place: Place) -> None:
    await place.spoil(*SPOILT)
    primary = await place.at("monolith", "SELECT string_agg(t::text || t.xmin::text, ';' ORDER BY id) FROM trades t")
    done = await place.repair("--by", "alice", answer="y\n")
    assert "every repaired key was compared again" in done.stdout
    both = [await place.at(side, "SELECT string_agg(t::text, ';' ORDER BY id) FROM trades t")
            for side in ("monolith", "service")]  # fmt: skip
    assert both[0] == both[1]
    assert (
        await place.at("monolith", "SELECT string_agg(t::text || t.xmin::text, ';' ORDER BY id) FROM trades t")
        == primary
    )
    assert (await place.actions())[:2] == [("alice", "repair"), ("alice", "repair.begun")]
    (told,) = [row.alert.text for row in await recent(place.env.control, PLAN_NAME) if row.alert.kind == "conflict"]
    assert "3 rows repaired" in told
    assert "nothing to repair" in (await place.repair("--yes")).stdout
    facts = json.loads((await place.repair("--yes", "--json")).stdout)
    assert (facts["done"], facts["tables"][0]["planned"]["skip"]) == (False, 3)


async def test_json_of_a_repair_has_each_outcome(place: Place) -> None:
    await place.spoil(*SPOILT)
    facts = json.loads((await place.repair("--yes", "--json", "--by", "alice")).stdout)
    (table,) = facts["tables"]
    assert (facts["done"], facts["by"], table["outcomes"]) == (True, "alice", {"repaired": 3})
    assert {one["outcome"] for one in table["steps"]} == {"repaired"}


async def test_rows_under_the_manual_rule_become_cases_with_an_alert_and_end_in_1(place: Place) -> None:
    await place.go_by("{conflict: manual, decide_within: 2h}")
    await place.spoil(*SPOILT)
    asked = await place.repair(answer="y\n", status=1)
    assert "Open 3 cases for a person?" in asked.stderr
    assert f"cutover conflicts list {PLAN_NAME}" in asked.stdout
    assert await place.at("service", "SELECT note FROM trades WHERE id = 7") == "spoilt"
    cases = await conflicts.list_open(place.env.control, PLAN_NAME)
    assert {round((one.due_at - one.opened_at).total_seconds()) for one in cases} == {7200}
    kinds = {row.alert.kind for row in await recent(place.env.control, PLAN_NAME)}
    assert {"conflict", "conflict-case"} <= kinds


async def test_a_row_that_changed_since_the_report_is_passed_over_and_the_command_ends_in_1(place: Place) -> None:
    await place.spoil(*SPOILT)
    async with applier_session(place.env.pair.target, place.service, "repair") as writer:
        await writer.execute("UPDATE trades SET note = 'newer' WHERE id = 7")
    done = await place.repair("--yes", status=1)
    assert "trades: 1 × changed since it was confirmed" in done.stdout
    assert await place.at("service", "SELECT note FROM trades WHERE id = 7") == "newer"
    assert await place.at("service", "SELECT count(*) FROM trades WHERE id IN (8, 900)") == 1


async def test_a_repair_that_is_stopped_goes_on_where_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.spoil("UPDATE trades SET note = 'spoilt' WHERE id <= 50")
    monkeypatch.setattr(repairing, "BATCH", 10)
    write, calls = mending.update, []

    async def stops(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise asyncio.CancelledError
        return await write(*arguments)

    monkeypatch.setattr(repairing, "update", stops)
    stopped = await place.repair("--yes", status=130)
    assert "stopped: 20 of 50 keys are done for good; give the same command again" in stopped.stderr
    assert await place.at("service", "SELECT count(*) FROM trades WHERE note = 'spoilt'") == 30
    facts = json.loads((await place.repair("--yes", "--json")).stdout)
    assert facts["tables"][0]["outcomes"] == {"repaired": 30, "equal by now": 20}


async def test_a_table_that_cannot_be_repaired_does_not_hold_up_the_others(place: Place) -> None:
    await place.spoil(*SPOILT, "INSERT INTO positions VALUES (1, 1)")
    for side in ("monolith", "service"):
        await place.at(side, "ALTER TABLE positions DROP CONSTRAINT positions_pkey")
    done = await place.type("reconcile", PLAN_NAME, "--repair", "--yes", status=1)
    assert "table positions has no key" in done.stderr
    assert await place.at("service", "SELECT note FROM trades WHERE id = 7") == "row 7"


async def test_nothing_is_repaired_while_a_switch_is_under_way_or_without_a_report(place: Place) -> None:
    control, service = place.env.control, place.service
    await place.spoil(*SPOILT)
    row = await switches.raise_token(control, PLAN_NAME, service)
    assert row is not None
    await switches.begin(
        control, row, switch_id="s1", to_side="service", from_side="monolith", from_epoch=0,
        plan_hash=place.env.plan.hash,
    )  # fmt: skip
    assert "a switch is fencing" in (await place.repair("--yes", status=1)).stderr
    await control.execute("DELETE FROM control.switch; DELETE FROM control.report")
    said = await place.repair("--dry-run", status=1)
    assert f"compare first: cutover reconcile {PLAN_NAME} --now --service {service} --table trades" in said.stderr


# --- diff ----------------------------------------------------------------------------------------


async def differing(place: Place, *options: str, status: int = 1) -> Any:
    return json.loads((await place.type("diff", PLAN_NAME, "trades", *options, "--json", status=status)).stdout)["rows"]


async def test_diff_sets_the_rows_of_the_last_report_side_by_side_and_masks_their_values(place: Place) -> None:
    await place.spoil("UPDATE trades SET note = 'secret words' WHERE id = 7", *SPOILT[1:])
    shown = await place.type("diff", PLAN_NAME, "trades", status=1)
    assert "trades 7: note differ" in shown.stdout
    assert "monolith (primary)" in shown.stdout
    assert "trades 8: missing at the service" in shown.stdout
    assert "trades 900: extra at the service" in shown.stdout
    assert "secret words" not in shown.output
    rows = {row["key"][0]: row for row in await differing(place)}
    columns = {one["column"]: one for one in rows["7"]["columns"]}
    assert {name: one["differs"] for name, one in columns.items()} == {"id": False, "note": True, "price": False}
    assert columns["id"]["monolith"] == {"length": 1, "value": "7", "masked": False, "cut": False}
    assert (columns["note"]["monolith"]["length"], columns["note"]["service"]["length"]) == (5, 12)
    assert columns["note"]["monolith"]["digest"] != columns["note"]["service"]["digest"]
    assert columns["price"]["monolith"] == columns["price"]["service"]
    assert "value" not in columns["price"]["service"]
    assert {one["column"]: one["service"] for one in rows["8"]["columns"]} == {"id": None, "note": None, "price": None}
    again = {one["column"]: one for one in (await differing(place, "--key", "7"))[0]["columns"]}
    assert again["note"]["monolith"]["digest"] != columns["note"]["monolith"]["digest"]


async def test_diff_shows_the_values_of_columns_that_the_plan_allows(place: Place) -> None:
    await place.go_by("{show_values: [note]}")
    await place.spoil("UPDATE trades SET note = E'\\x1b[31mred', price = NULL WHERE id = 7")
    shown = await place.type("diff", PLAN_NAME, "public.trades", "--columns", "note,price", status=1)
    assert "row 7" in shown.stdout
    assert "\\x1b[31mred" in shown.stdout
    assert "\x1b" not in shown.stdout
    (row,) = await differing(place, "--columns", "note, price")
    values = [(one["column"], one["monolith"], one["service"]) for one in row["columns"]]
    assert values[0][2] == {"length": 8, "value": "\x1b[31mred", "masked": False, "cut": False}
    assert (values[1][1]["length"], values[1][2]["length"]) == (10, None)
    assert "value" not in values[1][1]
    await place.env.control.execute("DELETE FROM control.report")
    assert "never compared" in (await place.type("diff", PLAN_NAME, "trades")).stdout


async def test_diff_of_a_given_key_looks_at_the_rows_of_now(place: Place) -> None:
    assert (await differing(place, "--key", "7", "--key", '["8"]', status=0))[1]["verdict"] == "equal"
    assert (await differing(place, "--key", "12345", status=0))[0]["verdict"] == "on neither side"
    assert "found no difference" in (await place.type("diff", PLAN_NAME, "trades")).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nosuch",), "no service owns table 'nosuch'"),
        (("trades", "--key", "seven"), "its key is id (bigint)"),
        (("trades", "--key", "[1, 2]"), "the key has 1 columns (id) and 2 values were given"),
        (("trades", "--key", "[null]"), "no null"),
        (("trades", "--key", "7", "--columns", "nota"), "did you mean"),
    ],
)
async def test_a_wrong_question_of_diff_says_what_would_be_right(
    place: Place, arguments: tuple[str, ...], words: str
) -> None:
    said = await place.type("diff", PLAN_NAME, *arguments, status=2)
    assert words in " ".join(said.stderr.replace("│", " ").split())
    assert "seven" not in said.output
