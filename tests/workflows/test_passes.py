"""A pass of many spans as a workflow: bounded in what runs at once and in its history, held, frozen, begun anew."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError

from tests.waiting import until
from tests.workflows.harness import Harness
from tests.workflows.world import refused, unreachable
from workflows.reconciliation import ReconciliationWorkflow

Make = Callable[..., Awaitable[Harness]]
SERVICE = "trading_engine"
MOST_SPANS = 256


async def start(harness: Harness, spans: int) -> Any:
    harness.world.stage, harness.world.stages_of[SERVICE] = "prepared", "ready"
    harness.world.spans = spans
    table = {"plan": harness.plan, "service": SERVICE, "table": f"{SERVICE}_rows"}
    return await harness.start(ReconciliationWorkflow, f"{harness.plan}/pass", table)


def walked(harness: Harness) -> list[int]:
    return [request.number for name, request in harness.world.calls if name == "walk_span"]


async def test_a_thousand_million_rows_stay_under_two_thousand_events_and_two_spans_at_once(make: Make) -> None:
    harness = await make(SERVICE)
    running, most = 0, 0

    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    harness.world.on["walk_span"] = count
    handle = await start(harness, MOST_SPANS)
    assert "300 rows" in await handle.result()
    assert sorted(walked(harness)) == list(range(1, MOST_SPANS + 1))
    assert most == 2
    events = len((await handle.fetch_history()).events)
    assert events < 2000


async def test_a_pause_takes_the_running_spans_back_and_a_resume_goes_on_with_them(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.on["walk_span"] = harness.world.never
    handle = await start(harness, 3)
    await until(lambda: _walked(harness, [1, 2]), "two spans run")
    await harness.update(handle.id, "pause", by="erin")
    await harness.until(handle.id, lambda one: one.state == "PAUSED")
    await until(lambda: _quiet(handle), "nothing runs while it is paused")
    del harness.world.on["walk_span"]
    await harness.update(handle.id, "resume", by="erin")
    assert "300 rows" in await handle.result()
    assert sorted(walked(harness)) == [1, 1, 2, 2, 3]
    assert harness.world.count("open_pass") == 1


async def test_a_cancellation_takes_the_running_spans_back_and_ends_the_run(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.on["walk_span"] = harness.world.never
    handle = await start(harness, 3)
    await until(lambda: _walked(harness, [1, 2]), "two spans run")
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(handle.result(), 10)
    assert harness.world.count("finish_pass") == 0


async def test_a_span_that_waits_an_outage_out_is_taken_back_as_well(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.down["walk_span"] = unreachable()
    handle = await start(harness, 1)
    await harness.until(handle.id, lambda one: "cannot be reached" in one.waiting_for)
    harness.world.on["walk_span"] = harness.world.never
    attempts = harness.world.count("walk_span")
    await until(lambda: _walked(harness, [1] * (attempts + 1)), "it runs again")
    await harness.update(handle.id, "pause", by="erin")
    await until(lambda: _quiet(handle), "nothing runs while it is paused")
    harness.world.on.clear()
    harness.world.down.clear()
    await harness.update(handle.id, "resume", by="erin")
    assert "300 rows" in await handle.result()


async def test_a_freeze_window_is_waited_out_and_the_pass_goes_on(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.frozen_for = timedelta(hours=4)
    handle = await start(harness, 3)
    await harness.until(handle.id, lambda one: "freeze window" in one.waiting_for)
    await harness.advance(handle.id, timedelta(hours=4))
    assert "300 rows" in await handle.result()
    assert len(walked(harness)) == 4


async def test_an_adopted_plan_begins_the_pass_anew(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.on["walk_span"] = harness.world.never
    handle = await start(harness, 3)
    await until(lambda: _walked(harness, [1, 2]), "two spans run")
    harness.world.adopt()
    del harness.world.on["walk_span"]
    await harness.signal(handle.id, "plan_adopted", {})
    assert "300 rows" in await handle.result()
    ids = [request.pass_id for name, request in harness.world.calls if name == "open_pass"]
    assert len(ids) == len(set(ids)) == 2
    assert [request.pass_id for name, request in harness.world.calls if name == "finish_pass"] == ids[1:]


async def test_a_span_that_fails_for_good_ends_the_pass_and_the_other_spans(make: Make) -> None:
    harness = await make(SERVICE)

    async def first_fails() -> None:
        if walked(harness)[-1] != 1:
            await harness.world.never()

    harness.world.on["walk_span"] = first_fails
    harness.world.faults["walk_span"] = [refused("no primary key")]
    handle = await start(harness, 3)
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(handle.result(), 20)
    assert harness.world.count("finish_pass") == 0


async def _walked(harness: Harness, numbers: list[int]) -> bool:
    return walked(harness) == numbers


async def _quiet(handle: Any) -> bool:
    return not (await handle.describe()).raw_description.pending_activities
