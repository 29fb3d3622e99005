"""`cutover flags` and `cutover fleet` as typed."""

import json

import pytest_asyncio

from cutover.control import plans
from cutover.control.database import Control
from cutover.flags import instances, store
from cutover.flags.instances import Instance
from cutover.postgres.databases import Database
from tests.cli.conftest import Desk, typed
from tests.control.plans import plan

M, S = "ai-trader", "trading_engine"


@pytest_asyncio.fixture
async def desk(control: Control, control_db: Database) -> Desk:
    """No worker and no Temporal server: these commands need the control database alone."""
    await plans.register(control, plan(M), "alice")
    await store.ensure(control, M, S)
    return Desk(None, control, {"CUTOVER_DSN_CONTROL": control_db.dsn})  # type: ignore[arg-type]


async def test_flags_are_listed_and_set_with_who_and_why(desk: Desk, control: Control) -> None:
    await store.set_percentage(control, M, S, 30, actor="alice")
    shown = (await desk.type("flags", "list", M)).output
    assert f"{S}_percentage" in shown
    assert "30 %" in shown
    facts = json.loads((await desk.type("flags", "list", M, "--service", S, "--json")).output)
    assert {fact["flag"]: fact["value"] for fact in facts} == (await store.get(control, M, S)).flags
    change = ["flags", "set", M, f"{S}_percentage", "10", "--by", "bob", "--reason", "too slow"]
    told = await desk.type(*change)
    assert f"{S}_percentage is 10 %, as bob" in told.output
    assert "already" in (await desk.type(*change)).output
    again = json.loads((await desk.type(*change, "--json")).output)
    assert (again["changed"], again["by"]) == (False, "bob")
    assert "too slow" in await control.fetchval(
        "SELECT detail::text FROM control.audit WHERE actor = 'bob' AND action = 'route.percentage'"
    )
    assert "no flags yet" in (await desk.type("flags", "list", M, "--service", "analytics")).output


async def test_what_is_not_allowed_and_what_is_mistyped_end_in_their_own_status(desk: Desk) -> None:
    why = ("--by", "bob", "--reason", "a look")
    closed = await desk.type("flags", "set", M, f"{S}_percentage", "10", *why, status=1)
    assert "has not been compared" in closed.stderr
    refused = await desk.type("flags", "set", M, f"{S}_write_to_new_primary", "true", *why, status=1)
    assert "cutover start switchover" in refused.stderr
    for arguments in (
        (f"{S}_percentage", "101", *why),
        (f"{S}_percentage", "-1", *why),
        ("nothing", "true", *why),
        (f"{S}_percentage", "0", "--reason", " "),
        (f"{S}_percentage", "0"),
    ):
        await desk.type("flags", "set", M, *arguments, status=2)
    await desk.type("flags", "list", "another", status=1)
    await desk.type("flags", "list", M, "--service", "another", status=2)


async def test_the_fleet_is_shown_and_an_instance_behind_the_route_ends_it_in_status_1(
    desk: Desk, control: Control
) -> None:
    assert "no instance has registered" in (await desk.type("fleet", M)).output
    one = Instance("orders-1", "host-a", 7, "orders-api", "2.3.1")
    route = await store.get(control, M, S)
    await instances.renew(control, one, M, S, route.revision)
    shown = (await desk.type("fleet", M)).output
    for word in (S, "orders-api", "2.3.1", "host-a:7", "orders-1", "live"):
        assert word in shown
    assert "BEHIND" not in shown
    await store.set_percentage(control, M, S, 30, actor="alice")
    shown = (await desk.type("fleet", M, status=1)).output
    assert "BEHIND" in shown
    assert f"{route.revision} of {route.revision + 1}" in shown
    await control.execute("UPDATE control.instance SET lease_until = clock_timestamp() - interval '3 s'")
    lapsed = await desk.type("fleet", M, "--service", S, "--json", status=1)
    (facts,) = json.loads(lapsed.output)
    assert (facts["instance"], facts["version"], facts["host"], facts["behind"], facts["lease"]) == (
        "orders-1", "2.3.1", "host-a", True, "lapsed",
    )  # fmt: skip
    assert "ran out 3" in (await desk.type("fleet", M, status=1)).output
    assert json.loads((await desk.type("fleet", M, "--service", "analytics", "--json")).output) == []


def test_without_a_control_database_the_variable_is_named() -> None:
    for command in (("flags", "list", M), ("fleet", M), ("flags", "serve", M, "--port", "0")):
        ended = typed(*command)
        assert ended.exit_code == 2
        assert "CUTOVER_DSN_CONTROL" in ended.stderr


async def test_serve_asks_which_migration_where_it_is_not_plain(desk: Desk, control: Control) -> None:
    await control.execute("DELETE FROM control.route")
    none = await desk.type("flags", "serve", "--port", "0", status=1)
    assert "no migration has flags yet" in none.stderr
    await store.ensure(control, M, S)
    await store.ensure(control, "shop", "orders")
    both = await desk.type("flags", "serve", "--port", "0", status=1)
    assert "several migrations have flags (ai-trader, shop)" in both.stderr
