"""Schedules of passes on a real server: made on the plan's cadence, held with a paused run, and never by accident."""

from datetime import timedelta
from uuid import uuid4

from temporalio.client import ScheduleDescription, ScheduleOverlapPolicy
from temporalio.testing import WorkflowEnvironment

from activities import schedules
from cutover.plan.load import load_text
from cutover.plan.models import Plan

TEXT = """
migration: {name}
monolith: {{database: monolith}}
services:
  trading: {{database: trading_db, tables: {{trades: {{reconcile: {{every: 100s}}}}}}}}
  users: {{database: users_db, tables: {{users: {{}}}}}}
"""


def a_plan() -> Plan:
    return load_text(TEXT.format(name=f"schedules-{uuid4().hex[:6]}"))


async def described(environment: WorkflowEnvironment, plan: Plan, service: str, table: str) -> ScheduleDescription:
    handle = environment.client.get_schedule_handle(f"{plan.migration}/{service}/{table}")
    return await handle.describe()


async def test_a_schedule_has_the_cadence_of_its_table_and_no_overlap(skipping: WorkflowEnvironment) -> None:
    plan = a_plan()
    for _ in range(2):
        assert await schedules.create(skipping.client, plan, "trading", plan.hash) == 1
    found = (await described(skipping, plan, "trading", "trades")).schedule
    assert [one.every for one in found.spec.intervals] == [timedelta(seconds=100)]
    assert found.spec.jitter == timedelta(seconds=10)
    assert found.policy.overlap == ScheduleOverlapPolicy.SKIP
    assert found.policy.catchup_window == timedelta(minutes=1)
    await schedules.delete(skipping.client, plan, "trading")
    await schedules.delete(skipping.client, plan, "trading")


async def test_schedules_are_held_until_every_run_that_holds_them_lets_go(skipping: WorkflowEnvironment) -> None:
    plan, client = a_plan(), skipping.client
    for service in plan.services:
        await schedules.create(client, plan, service, plan.hash)

    async def paused() -> list[bool]:
        both = [await described(skipping, plan, "trading", "trades"), await described(skipping, plan, "users", "users")]
        return [one.schedule.state.paused for one in both]

    await schedules.hold(client, plan, None, "migration/x", held=True)
    await schedules.hold(client, plan, "trading", "migration/x/trading/replication", held=True)
    await schedules.hold(client, plan, "trading", "migration/x/trading/replication", held=True)
    assert await paused() == [True, True]
    await schedules.create(client, plan, "trading", plan.hash)  # a plan adopted meanwhile
    assert await paused() == [True, True]
    await schedules.hold(client, plan, None, "migration/x", held=False)
    assert await paused() == [True, False]
    await schedules.hold(client, plan, "trading", "migration/x/trading/replication", held=False)
    assert await paused() == [False, False]


async def test_a_schedule_that_a_person_has_paused_stays_so(skipping: WorkflowEnvironment) -> None:
    plan, client = a_plan(), skipping.client
    await schedules.create(client, plan, "users", plan.hash)
    await client.get_schedule_handle(f"{plan.migration}/users/users").pause(note="maintenance")
    for held in (True, False):
        await schedules.hold(client, plan, "users", "migration/x", held=held)
        state = (await described(skipping, plan, "users", "users")).schedule.state
        assert (state.paused, state.note) == (True, "maintenance")
