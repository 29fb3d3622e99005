"""The monitor's run: what is found is shown, an adopted plan is taken over, and it ends with the migration."""

from activities import ids
from activities import models as m
from tests.waiting import until
from tests.workflows.conftest import Make
from workflows.monitor import MonitorWorkflow

LOST = m.Found(key="a/slot/b", severity="critical", text="a: its slot is gone → cutover doctor a --rebuild-stream")


async def test_findings_are_shown_with_what_helps_until_they_are_mended(make: Make) -> None:
    harness = await make("trading_engine", "analytics")
    harness.world.on["watch"] = harness.world.watching
    run = ids.monitor(harness.plan)
    handle = await harness.start(MonitorWorkflow, run)
    await harness.until(run, lambda one: "2 services; all is well" in one.waiting_for)
    harness.world.found = [LOST]
    shown = await harness.until(run, lambda one: bool(one.attention))
    assert shown.attention == LOST.text
    assert "cutover doctor a --rebuild-stream" in shown.waiting_for
    assert shown.progress == {"1. critical": LOST.text}
    harness.world.found = []
    assert (await harness.until(run, lambda one: not one.attention)).progress == {}
    harness.world.stage = "cleaned"
    assert await handle.result() == "cleaned"


async def test_an_adopted_plan_is_what_is_watched_by(make: Make) -> None:
    harness = await make("trading_engine")
    harness.world.on["watch"] = harness.world.watching
    run = ids.monitor(harness.plan)
    await harness.start(MonitorWorkflow, run)
    await harness.until(run, lambda one: "all is well" in one.waiting_for)
    harness.world.adopt()
    harness.world.found = [LOST]

    async def watched_by_it() -> bool:
        return any(name == "watch" and one.ref.plan_hash == "hash-2" for name, one in harness.world.calls)

    await until(watched_by_it, "the monitor goes by the adopted plan")
    status = await harness.until(run, lambda one: "its slot is gone" in one.attention)
    assert status.plan_hash == "hash-2"
