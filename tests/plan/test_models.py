"""A plan is the same plan after JSON, YAML and a change of key order; its hash changes with every value."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cutover.errors import PlanError
from cutover.plan.checklist import ITEMS, items
from cutover.plan.explain import changes, explain
from cutover.plan.load import load, load_text
from cutover.plan.models import MonolithRef, Plan, Service, SwitchoverRules, Table, Thresholds
from tests.plan.minimal import MINIMAL

EXAMPLES = Path(__file__).parents[2] / "examples" / "ai_trader"
PLANS = {name: load(EXAMPLES / name) for name in ("plan.yaml", "demo.yaml")} | {"minimal": load_text(MINIMAL)}
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@plans
def test_a_plan_survives_json_and_jsonb(plan: Plan) -> None:
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    # jsonb keeps no order of keys
    shuffled = json.loads(json.dumps(plan.model_dump(mode="json"), sort_keys=True))
    again = Plan.model_validate(shuffled)
    assert again == plan
    assert again.hash == plan.hash
    assert list(again.services) == list(plan.services)
    assert Plan.model_validate_json(json.dumps(shuffled)) == plan


@plans
def test_the_explained_plan_is_the_same_plan(plan: Plan) -> None:
    again = load_text(explain(plan))
    assert again == plan
    assert again.hash == plan.hash
    assert list(again.services) == list(plan.services)
    assert explain(again) == explain(plan)


@plans
def test_the_explained_plan_shows_every_key(plan: Plan) -> None:
    text = explain(plan)
    for field in Plan.model_fields:
        assert f"\n{field}:" in text
    assert plan.hash in text.splitlines()[0]


def test_the_hash_ignores_comments_and_key_order_within_a_service() -> None:
    other = """\
    # the same plan
    services:
      orders: {tables: {items: {}, orders: {reconcile: {max_lag: 600s, every: 300000ms}}}, database: orders_db}
      users: {tables: {users: {conflict: source-wins}}, database: users_db}
    compress: 1
    monolith: {database: monolith}   # the old one
    migration: shop
    """
    assert load_text(other).hash == load_text(MINIMAL).hash


def test_the_order_of_the_services_is_a_value_and_can_be_written_out() -> None:
    head, rest = MINIMAL.split("services:\n")
    orders, users = rest.split("  users:\n", 1)
    turned = f"{head}services:\n  users:\n{users}{orders}"
    assert load_text(turned).switchover.order == ["users", "orders"]
    assert load_text(turned).hash != load_text(MINIMAL).hash
    ordered = load_text(turned + "switchover: {order: [orders, users]}\n")
    assert list(ordered.services) == ["orders", "users"]
    assert ordered.hash == load_text(MINIMAL).hash


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path


OTHER_VALUES = {
    "timezone": "Europe/Rome", "conflict": "manual", "truncate": "refuse",
    "write_gate": "threshold", "phase": "cleanup", "at": "sunday 23:59", "service": "analytics", "steps": [1, 100],
    "freeze": [{"at": "sunday 23:59", "window": "1h"}],
}  # fmt: skip


ANOTHER = {
    "loose": "drop", "drop": "loose", "logical": "outbox", "outbox": "logical",
    "eventual": "strong", "strong": "eventual", "best_effort": "eventual",
}  # fmt: skip


def _other(key: str, value: Any) -> Any:
    if key in OTHER_VALUES:
        return "switchover" if key == "phase" and value == "cleanup" else OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str) and value[:1].isdigit():
        return "37%" if value.endswith("%") else "37s" if key == "every" else "37h"
    if isinstance(value, list):
        return ["another"]
    return ANOTHER.get(str(value), "another")


def test_the_hash_changes_with_every_value() -> None:
    plan = PLANS["plan.yaml"]
    hashes = {plan.hash}
    dumped = plan.model_dump(mode="json")
    paths = [path for path in _leaves(dumped) if path not in {("switchover", "order"), ("monolith", "tables")}]
    for path in paths:
        changed = json.loads(json.dumps(dumped))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = _other(path[-1], place[path[-1]])
        if path[-1] in ("consistency", "truncate"):
            place["stream"] = "outbox"
        if path[-1] == "stream":
            place["consistency"] = "eventual"
        hashes.add(Plan.model_validate(changed).hash)
    assert len(paths) > 150
    assert len(hashes) == len(paths) + 1


def test_changes_are_listed_by_path() -> None:
    before = load_text(MINIMAL)
    after = load_text(
        MINIMAL.replace("every: 5m", "every: 1m").replace("      items: {}\n", "") + "approvals: {required: 3}\n"
    )
    assert [str(change) for change in changes(before, after)] == [
        "~ services.orders.tables.orders.reconcile.every: 5m → 1m",
        "- services.orders.tables.items: {conflict, timestamp, alert_on_conflict, decide_within, show_values, "
        "reconcile, compare}",
        "~ approvals.required: 2 → 3",
    ]
    assert changes(before, before) == []


def test_a_plan_built_in_code_obeys_the_same_rules() -> None:
    service = Service(database="d", tables={"t": Table()})
    plan = Plan(
        migration="m",
        monolith=MonolithRef(database="old"),
        services={"b": service, "a": Service(database="e", tables={"u": Table()})},
        thresholds=Thresholds(mismatch_rate=0.5),
        switchover=SwitchoverRules(soak=timedelta(minutes=1)),
    )
    assert plan.switchover.order == ["b", "a"]
    assert (plan.switchover.soak, plan.thresholds.mismatch_rate) == (timedelta(minutes=1), 0.5)
    with pytest.raises(ValidationError, match="table t is in two services"):
        Plan(
            migration="m",
            monolith=MonolithRef(database="old"),
            services={"b": service, "a": Service(database="e", tables={"t": Table()})},
        )


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PLANS["minimal"].compress = 2.0  # type: ignore[misc]


def test_compress_shortens_waits_and_keeps_cadences_at_a_second_or_more() -> None:
    plan = load_text(MINIMAL + "compress: 3600\n")
    assert plan.waited(timedelta(hours=2)) == timedelta(seconds=2)
    assert plan.cadence(timedelta(hours=2)) == timedelta(seconds=2)
    assert plan.cadence(timedelta(minutes=5)) == timedelta(seconds=1)
    slower = plan.model_copy(update={"cadence_floor": timedelta(seconds=10)})
    assert slower.cadence(timedelta(minutes=5)) == timedelta(seconds=10)
    assert slower.cadence(timedelta(seconds=4)) == timedelta(seconds=4)  # the floor makes nothing slower than asked


def test_owners_services_and_rules_are_found_by_name() -> None:
    plan = PLANS["plan.yaml"]
    assert plan.owner("trades") == plan.owner("public.trades") == "trading_engine"
    with pytest.raises(PlanError, match="no service owns table 'trade'; did you mean trades"):
        plan.owner("trade")
    assert plan.service("analytics").database == "analytics_db"
    with pytest.raises(PlanError, match="no service 'analytic'; did you mean analytics"):
        plan.service("analytic")
    assert plan.foreign_key_rule("trades_user_id_fkey", "trading_engine", "api_gateway") == "loose"
    assert plan.foreign_key_rule("trades_user_id_fkey", "api_gateway", "trading_engine") == "loose"
    assert plan.foreign_key_rule("unnamed", "trading_engine") == "drop"


def test_the_reference_plan_is_the_strategys() -> None:
    plan = PLANS["plan.yaml"]
    owners = {table: name for name, service in plan.services.items() for table in service.tables}
    assert owners == {
        "users": "api_gateway",
        "strategies": "orchestrator",
        "agent_status": "orchestrator",
        "trades": "trading_engine",
        "positions": "trading_engine",
        "ai_decisions": "ai_decision",
        "ai_decision_features": "ai_decision",
        "ai_calibration_log": "ai_decision",
        "ai_trade_outcomes": "analytics",
    }
    assert sorted(plan.monolith.tables) == sorted(owners)
    assert plan.thresholds == Thresholds()
    positions = plan.services["trading_engine"].tables["positions"]
    assert (positions.conflict, positions.timestamp) == ("last-write-wins", "last_synced_at")
    assert (positions.reconcile.every, positions.reconcile.max_lag) == (timedelta(minutes=1), timedelta(minutes=2))
    assert not plan.services["ai_decision"].tables["ai_decisions"].alert_on_conflict


def test_the_demo_moves_the_same_tables_by_the_same_rules() -> None:
    plan, demo = PLANS["plan.yaml"], PLANS["demo.yaml"]
    different = {change.path.split(".")[0] for change in changes(plan, demo)}
    assert different == {"compress", "cadence_floor", "dual_write", "thresholds", "approvals", "services"}
    assert {change.path.split(".")[-1] for change in changes(plan, demo) if change.path.startswith("services.")} == {
        "window"
    }
    assert demo.approvals.required == 2


def test_default_tasks_are_the_human_items_of_the_strategys_lists() -> None:
    plan = PLANS["minimal"]
    assert set(plan.tasks) == {item.key for item in ITEMS if item.kind == "human"}
    repository = plan.tasks["dual_write_repository"]
    assert (repository.owner, repository.duration, repository.phase, repository.description) == (
        "backend-team",
        timedelta(days=3),
        "preparation",
        "Implement DualWriteRepository",
    )
    assert list(plan.tasks_of("cleanup")) == [item.key for item in items("cleanup", "human")]
    assert len({item.key for item in ITEMS}) == len(ITEMS)


def test_a_plans_tasks_add_to_the_defaults_and_override_them_key_by_key() -> None:
    tasks = "tasks:\n  team_trained: {owner: hr}\n  dba_ready: {owner: dba, duration: 1h, phase: switchover}\n"
    plan = load_text(MINIMAL + tasks)
    assert plan.tasks["team_trained"].owner == "hr"
    assert plan.tasks["team_trained"].duration == PLANS["minimal"].tasks["team_trained"].duration
    assert list(plan.tasks_of("switchover")) == ["dba_ready"]
    assert len(plan.tasks) == len(PLANS["minimal"].tasks) + 1


def test_default_tasks_can_be_switched_off() -> None:
    tasks = "default_tasks: false\ntasks:\n  dba_ready: {owner: dba, duration: 1h, phase: switchover}\n"
    plan = load_text(MINIMAL + tasks)
    assert list(plan.tasks) == ["dba_ready"]
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
