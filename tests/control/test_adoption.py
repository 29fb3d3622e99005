"""Adoption: what a person decides, what it voids, and what no plan may change under way."""

from datetime import timedelta
from typing import Any, cast

import pytest

from activities import models as m
from activities.context import Context
from activities.evidence import as_evidence
from activities.monitoring import MonitoringActivities
from activities.plans import PlanActivities
from activities.preparation import PreparationActivities
from activities.switching import SwitchActivities
from cutover.control import adoption, approvals, audit, plans, stages, switches, tasks
from cutover.control.database import Control
from cutover.errors import Conflict, PlanReplaced, Refused
from cutover.plan.models import Plan
from tests.control.plans import plan

M, S = "ai-trader", "trading_engine"
MONOLITH = "7001/monolith"
DAY = timedelta(days=1)


def varied(**values: Any) -> Plan:
    """The plan of these tests with other values; `trading_engine`'s own by their keys."""
    data = plan().model_dump(mode="json")
    for key, value in values.items():
        where = data if key in data else data["services"][S]
        where[key] = value
    return Plan.model_validate(data)


async def begun(control: Control, *services: str) -> Plan:
    """A migration whose preparation has claimed the tables and begun to build these services."""
    first = plan()
    await plans.register(control, first, "alice")
    await plans.bind(control, M, first.hash, "workflow")
    await plans.claim_tables(control, first, MONOLITH)
    await tasks.ensure(control, first)
    for service in services:
        await plans.begin_service(control, M, first.hash, service)
    return first


async def adopted(control: Control, new: Plan) -> adoption.Adoption:
    await plans.register(control, new, "carol")
    return await adoption.adopt(control, new, "carol")


async def approve(control: Control, by: str, number: str, plan_hash: str) -> None:
    await approvals.record(
        control, migration=M, service=S, gate="write", plan_hash=plan_hash, by=by, run_id="r", message_id=number
    )


async def claims(control: Control) -> set[tuple[str, str]]:
    rows = await control.fetch("SELECT table_name, service FROM control.claim WHERE migration = $1", M)
    return {(row["table_name"], row["service"]) for row in rows}


async def test_the_preparation_alone_makes_a_migration_running(control: Control) -> None:
    await begun(control)
    changed = plan(soak="2h")
    await plans.register(control, changed, "alice")
    with pytest.raises(Refused, match="in preparation"):
        await plans.bind(control, M, changed.hash, "workflow")


async def test_a_run_under_the_former_plan_is_told_the_adopted_one(control: Control) -> None:
    first = await begun(control)
    changed = plan(soak="2h")
    done = await adopted(control, changed)
    assert (done.former, [str(one) for one in done.changes]) == (first.hash, ["~ switchover.soak: 1h → 2h"])
    assert await plans.bind(control, M, first.hash, "a run") == changed.hash
    third = plan(soak="3h")
    await plans.register(control, third, "alice")
    with pytest.raises(Refused, match="until a person adopts it"):
        await plans.bind(control, M, third.hash, "a run")
    await adopted(control, first)
    assert await plans.bind(control, M, changed.hash, "a run") == first.hash
    async with control.connection() as connection:
        rows = [one for one in await audit.entries(connection, M) if one.action == "plan.adopted"]
        assert await audit.verify(connection) == []
    assert (rows[0].actor, rows[0].detail["changes"]) == ("carol", ["~ switchover.soak: 2h → 1h"])


async def test_approvals_of_a_replaced_plan_never_count_again_even_when_it_comes_back(control: Control) -> None:
    first = await begun(control, S)
    await approve(control, "alice", "1", first.hash)
    assert (await adopted(control, plan(soak="2h"))).approvals_voided == 1
    # a run that was not told yet records what was sent to it under the plan it knows
    with pytest.raises(PlanReplaced, match="goes by plan"):
        await approve(control, "bob", "2", first.hash)
    await adopted(control, first)
    assert await approvals.valid(control, M, S, "write", first.hash, None, DAY) == []
    await approve(control, "alice", "3", first.hash)
    assert len(await approvals.valid(control, M, S, "write", first.hash, None, DAY)) == 1


async def test_a_rejection_is_recorded_whatever_plan_it_was_given_under(control: Control) -> None:
    first = await begun(control, S)
    await adopted(control, plan(soak="2h"))
    await approvals.record(
        control,
        migration=M,
        service=S,
        gate="write",
        plan_hash=first.hash,
        by="bob",
        run_id="r",
        message_id="1",
        decision="reject",
    )
    assert [one.decision for one in await approvals.history(control, M)] == ["reject"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"database": "elsewhere"}, "services.trading_engine.database: it has begun with trading_engine_db"),
        ({"stream": "outbox"}, "services.trading_engine.stream: it has begun with logical"),
        ({"tables": {"trades": {}}}, "services.trading_engine.tables: it has begun, it cannot go on without positions"),
        ({"foreign_keys": {"fk": "loose"}}, "services.trading_engine.foreign_keys"),
        ({"app_roles": ["app"]}, "services.trading_engine.app_roles"),
        ({"monolith": {"database": "other"}}, "monolith.database"),
        ({"compress": 10.0}, "compress"),
    ],
)
async def test_what_was_built_cannot_be_changed_under_way(control: Control, values: dict[str, Any], names: str) -> None:
    first = await begun(control, S)
    new = varied(**values)
    assert names in "; ".join((await adoption.preview(control, new)).obstacles)
    await plans.register(control, new, "carol")
    with pytest.raises(Refused, match="cannot be adopted") as refused:
        await adoption.adopt(control, new, "carol")
    assert names in str(refused.value)
    assert (await plans.load(control, M)).hash == first.hash


async def test_before_a_service_has_begun_its_tables_may_change_and_claims_and_tasks_follow(control: Control) -> None:
    await begun(control, "analytics")
    new = varied(tables={"trades": {}, "accounts": {}}, tasks={"rehearsed": {"owner": "qa", "duration": "1d",
                 "phase": "preparation"}})  # fmt: skip
    await adopted(control, new)
    assert await claims(control) == {("trades", S), ("accounts", S), ("ai_trade_outcomes", "analytics")}
    assert [one.name for one in await tasks.every(control, M)] == ["rehearsed"]


async def test_an_adoption_that_takes_a_table_of_another_migration_changes_nothing(control: Control) -> None:
    first = await begun(control)
    await plans.claim_tables(control, plan("other", ("accounts",)).model_copy(
        update={"services": {S: plan("other", ("accounts",)).services[S]}}), MONOLITH)  # fmt: skip
    with pytest.raises(Conflict, match="belong to migration other"):
        await adopted(control, varied(tables={"accounts": {}}))
    assert (await plans.load(control, M)).hash == first.hash
    assert ("positions", S) in await claims(control)


async def test_after_the_preparation_no_service_is_added_and_none_is_left_out(control: Control) -> None:
    await begun(control, S, "analytics")
    await stages.set_stage(control, M, None, "prepared")
    services = plan().model_dump(mode="json")["services"]
    more = {**services, "users": {"database": "users_db", "tables": {"users": {}}}}
    order = {"order": list(more)}
    with pytest.raises(Refused, match=r"services\.users: the preparation is over"):
        await adopted(control, varied(services=more, switchover=order))
    with pytest.raises(Refused, match=r"services\.analytics: it has begun"):
        await adopted(control, varied(services={S: services[S]}, switchover={"order": [S]}))


async def test_a_plan_is_not_adopted_in_the_middle_of_a_switch_nor_after_the_end(control: Control) -> None:
    first = await begun(control, S)
    row = await switches.raise_token(control, M, S)
    assert row is not None
    row = await switches.begin(
        control, row, switch_id="1", to_side="service", from_side="monolith", from_epoch=1, plan_hash=first.hash
    )
    with pytest.raises(Refused, match="trading_engine is being switched at this moment"):
        await adopted(control, plan(soak="2h"))
    await switches.advance(control, row, "undone", only_from=("fencing",))
    await adopted(control, plan(soak="2h"))
    await stages.set_stage(control, M, None, "cleaned")
    with pytest.raises(Refused, match="the migration is complete"):
        await adopted(control, first)


async def test_a_switch_that_was_approved_under_a_replaced_plan_does_not_begin_but_a_way_back_does(
    control: Control,
) -> None:
    first = await begun(control, S)
    await adopted(control, plan(soak="2h"))
    row = await switches.raise_token(control, M, S)
    assert row is not None
    facts: dict[str, Any] = {"switch_id": "1", "from_epoch": 1, "plan_hash": first.hash}
    with pytest.raises(PlanReplaced):
        await switches.begin(control, row, to_side="service", from_side="monolith", **facts)
    assert (await switches.begin(control, row, to_side="monolith", from_side="service", **facts)).state == "fencing"


async def test_the_stage_prepared_and_a_service_are_begun_by_the_plan_in_force_only(control: Control) -> None:
    first = await begun(control)
    await adopted(control, plan(soak="2h"))
    with pytest.raises(PlanReplaced):
        await plans.begin_service(control, M, first.hash, S)
    with pytest.raises(PlanReplaced):
        await stages.set_stage(control, M, None, "prepared", by_plan=first.hash)
    await stages.set_stage(control, M, S, "switched")


async def test_every_activity_that_a_run_waits_by_says_that_the_plan_was_replaced(control: Control) -> None:
    first = await begun(control, S)
    changed = plan(soak="2h")
    await adopted(control, changed)
    context = Context(settings=cast(Any, None), control=control)
    ref = m.Ref(migration=M, plan_hash=first.hash, service=S)
    acts, switching = PlanActivities(context), SwitchActivities(context)
    order = m.SwitchOrder(ref=ref, switch_id="1", to_side="service", evidence="k7f2")
    for call in (
        acts.stages(ref),
        acts.claim_tables(ref),
        acts.calendar(m.CalendarRequest(ref=ref, services=[S], at="2026-01-01T00:00:00Z")),
        acts.set_stage(m.StageChange(ref=ref.model_copy(update={"service": None}), stage="prepared")),
        MonitoringActivities(context).sample(m.SampleRequest(ref=ref)),
        as_evidence(control, m.GateRequest(ref=ref, gate="write"), [], {}, {}),
        switching._approved(order),
    ):
        with pytest.raises(Exception, match="goes by plan") as refused:
            await call
        assert getattr(refused.value, "type", type(refused.value).__name__) == "PlanReplaced"
    await switching._approved(order.model_copy(update={"to_side": "monolith"}))
    assert await PreparationActivities(context).context.plan(ref) == first
    rules = await acts.bind_plan(m.BindRequest(plan=M, plan_hash=first.hash, workflow_id="a run"))
    assert (rules.plan_hash, rules.soak, rules.adopted_by) == (changed.hash, timedelta(hours=2), "carol")
    assert rules.former is not None
    assert rules.former.soak == timedelta(hours=1)
    assert rules.changes == "~ switchover.soak: 1h → 2h"
