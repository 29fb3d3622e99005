"""Passes as the worker's activities make them: frozen, told of before they are late, given up at once, counted."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities.passes import fresh_reports, too_slow
from activities.reconciliation import ReconciliationActivities
from cutover.control import plans, reports
from cutover.control.places import places
from cutover.errors import NotYet
from cutover.plan.models import Plan
from cutover.reconcile.passes import Progress
from cutover.switch.environment import SwitchEnvironment
from tests.passing import make_pass
from tests.switch.conftest import Work
from tests.waiting import until


async def adopt(work: Work, env: SwitchEnvironment, **changes: Any) -> Work:
    """The same work under another plan."""
    plan = Plan.model_validate({**env.plan.model_dump(mode="json"), **changes})
    await plans.register(env.control, plan, "test")
    return Work(work.context, work.ref.model_copy(update={"plan_hash": plan.hash}))


def frozen_now() -> dict[str, Any]:
    """A freeze window that is open, and for some hours yet."""
    began = datetime.now(UTC) - timedelta(hours=1)
    return {"freeze": [{"at": f"{began:%A %H:%M}".lower(), "window": "8h"}]}


async def test_a_freeze_window_stops_a_span_and_says_when_it_ends(env: SwitchEnvironment, work: Work) -> None:
    frozen = await adopt(work, env, reconciliation=frozen_now())
    activities = ReconciliationActivities(work.context)
    request = m.PassRequest(ref=frozen.ref, table="trades", pass_id="p")
    opened = await frozen.run(activities.open_pass, request)
    walked = await frozen.run(activities.walk_span, m.SpanRequest(**dict(request), number=1))
    assert opened.spans == 1
    assert timedelta(hours=6) < walked.frozen_until - datetime.now(UTC) < timedelta(hours=7, minutes=1)
    assert await env.control.fetchval("SELECT chunks FROM control.pass WHERE id = 'p'") == 0


async def test_a_gate_that_needs_a_pass_waits_for_the_end_of_the_freeze(env: SwitchEnvironment, work: Work) -> None:
    frozen = await adopt(work, env, reconciliation=frozen_now())

    async def measure() -> Any:
        return await fresh_reports(frozen.context, frozen.ref, newer_than=0.0)

    with pytest.raises(NotYet, match="freeze window"):
        await ActivityEnvironment().run(measure)


async def test_a_report_of_the_other_direction_that_came_late_has_a_gate_run_its_own_pass(
    env: SwitchEnvironment, work: Work
) -> None:
    async def measure() -> Any:
        return await fresh_reports(work.context, work.ref)

    before, *others = await ActivityEnvironment().run(measure)
    kept = [before.id, *(one.id for one in others)]
    assert [one.id for one in await ActivityEnvironment().run(measure)] == kept
    await reports.record(env.control, before.model_copy(update={"direction": "reverse", "id": None}))
    after, *same = await ActivityEnvironment().run(measure)
    assert [one.id for one in same] == kept[1:]
    assert after.direction == "forward"
    assert after.id > before.id


async def test_a_pass_waits_for_a_place_at_its_databases(env: SwitchEnvironment, work: Work) -> None:
    one = await adopt(work, env, reconciliation={"connections": 1})
    activities = ReconciliationActivities(work.context)
    async with places(env.control, "test", [env.service.database], 1):
        running = asyncio.create_task(make_pass(one.run, activities, one.ref, "trades"))
        done, _ = await asyncio.wait({running}, timeout=0.5)
        assert not done
    assert (await running).rows_source > 0


async def test_a_span_that_is_cancelled_leaves_no_statement_behind(env: SwitchEnvironment, work: Work) -> None:
    activities = ReconciliationActivities(work.context)
    request = m.PassRequest(ref=work.ref, table="trades", pass_id="p")
    await work.run(activities.open_pass, request)
    target = env.pair.target
    async with target.session("test") as watcher, target.session("test") as holder, holder.transaction():
        await holder.execute("LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
        environment = ActivityEnvironment()
        span = m.SpanRequest(**dict(request), number=1)
        running = asyncio.ensure_future(environment.run(activities.walk_span, span))

        async def waits() -> bool:
            return bool(await watcher.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cutover-compare%' "
                "AND wait_event_type = 'Lock'"
            ))  # fmt: skip

        await until(waits, "a statement of the pass waits for the lock")
        environment.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)

        async def gone() -> bool:
            return not await waits()

        await until(gone, "the statement is ended")


def progress(rows: int, seconds: float, estimated: int = 1000) -> Progress:
    return Progress("p", "trades", rows, rows, estimated, 3, 0, 10.0, seconds)


@pytest.mark.parametrize(
    ("seen", "late"),
    [
        (progress(100, 31), True),  # 310 s for the whole
        (progress(100, 29), False),
        (progress(1000, 290), False),
        (progress(1200, 301), True),  # the estimate is passed, and the time too
        (progress(1, 1), False),  # its first second says nothing
        (progress(0, 400), True),
    ],
)
def test_a_pass_is_called_late_before_it_is(seen: Progress, late: bool) -> None:
    text = too_slow(seen, timedelta(minutes=5))
    assert bool(text) is late
    assert not late or "300 s until the next one is due" in text


async def test_a_late_pass_alerts_once(env: SwitchEnvironment, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.passes.too_slow", lambda progress, every: f"{progress.table} is late")
    for _ in range(2):
        await make_pass(work.run, ReconciliationActivities(work.context), work.ref, "trades")
    (alert,) = await work.alerts("reconciliation-cadence")
    assert (alert.severity, alert.subject) == ("warning", "trades")
