"""A case from its opening to its end, by the activities that the schedules run, on a live stream."""

import itertools
from dataclasses import replace
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities.context import Context
from activities.reconciliation import ReconciliationActivities
from cutover.alerts import store as alerts
from cutover.control import conflicts, plans
from cutover.plan.load import load_text
from cutover.postgres.applier import applier_session
from cutover.settings import Settings
from cutover.switch.environment import SwitchEnvironment
from tests.passing import make_pass
from tests.switch.conftest import PLAN

TABLE = "trades"
_numbers = itertools.count(1)


async def perform(activity: Any, argument: Any) -> Any:
    """An activity under an id of its own, as the server gives one to each."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, activity_id=str(next(_numbers)))
    return await environment.run(activity, argument)


async def reconcile(env: SwitchEnvironment, plan_hash: str) -> tuple[int, m.Resolved]:
    """What the reconciliation workflow does with a table: how many rows differed, and what became of them."""
    pair = env.pair
    dsns = {"CUTOVER_DSN_MONOLITH": pair.monolith.dsn, f"CUTOVER_DSN_{pair.service.upper()}_DB": pair.target.dsn}
    activities = ReconciliationActivities(Context(Settings(dsns), env.control))
    ref = m.Ref(migration="test", plan_hash=plan_hash, service=pair.service)
    found = await make_pass(perform, activities, ref, TABLE)
    request = m.ResolveRequest(ref=ref, table=TABLE, report_id=found.report_id)
    resolved = await perform(activities.resolve_conflicts, request) if found.differences else m.Resolved()
    return found.differences, resolved


async def spoil(env: SwitchEnvironment, key: int) -> None:
    """Change a row on the side that is not the primary, as nobody should."""
    async with applier_session(env.pair.target, env.pair.service, "repair") as writer:
        await writer.execute("UPDATE trades SET note = 'spoilt' WHERE id = $1", key)


async def test_a_case_is_opened_told_decided_applied_and_closed(env: SwitchEnvironment) -> None:
    plan = load_text(PLAN.format(service=env.pair.service).replace("trades: {}", "trades: {conflict: manual}"))
    await plans.register(env.control, plan, "alice")
    await spoil(env, 7)
    assert await reconcile(env, plan.hash) == (1, m.Resolved(cases=1))
    await reconcile(env, plan.hash)
    (case,) = await conflicts.list_open(env.control, "test")
    told = [row for row in await alerts.recent(env.control, "test") if row.alert.kind == "conflict-case"]
    assert [row.count for row in told] == [2]
    assert f"cutover conflicts list test --service {env.pair.service}" in told[0].alert.text
    await conflicts.decide(env.control, "test", case.id, "alice", "primary", "the copy was spoilt")
    assert await reconcile(env, plan.hash) == (1, m.Resolved(repaired=1))
    async with env.pair.target.session() as connection:
        assert await connection.fetchval("SELECT note FROM trades WHERE id = 7") == "row 7"
    closed = await conflicts.get(env.control, "test", case.id)
    assert (closed.resolved_by, closed.reason) == ("alice", "the copy was spoilt")

    await spoil(env, 8)
    assert (await reconcile(env, plan.hash))[1] == m.Resolved(cases=1)
    (case,) = await conflicts.list_open(env.control, "test")
    assert sum(row.alert.kind == "conflict-case" for row in await alerts.recent(env.control, "test")) == 2
    await conflicts.decide(env.control, "test", case.id, "bob", "mended")
    async with env.pair.monolith.session() as application:
        await application.execute("UPDATE trades SET note = 'agreed' WHERE id = 8")
    assert (await reconcile(env, plan.hash))[0] == 0
    closed = await conflicts.get(env.control, "test", case.id)
    assert (closed.resolved_by, closed.resolution) == ("bob", "both sides agree")
