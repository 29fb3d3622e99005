"""`released` ends a replication run where people have given up the way back, and only there, whenever it comes."""

from datetime import timedelta

from activities import ids
from activities.models import Standing
from tests.workflows.conftest import Make
from tests.workflows.world import refused
from workflows.replication import ReplicationWorkflow

SERVICE = "trading_engine"
DAY = timedelta(days=1)


async def test_a_release_that_nobody_decided_is_refused_in_the_dual_write_phase(make: Make) -> None:
    harness = await make(SERVICE, dual_write_at_least=2 * DAY, watch_every=DAY / 4)
    harness.world.stage = "prepared"
    harness.world.standing = Standing(ok=False, detail="0 of 2 approvals")
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "dual-write" and one.state == "WAITING")
    await harness.signal(run, "released", by="mallory")
    await harness.advance(run, 3 * DAY)
    await harness.stage(SERVICE, "ready")
    status = await harness.until(run, lambda one: one.phase == "watching")
    assert any("0 of 2 approvals" in one.text for one in status.refused)


async def test_a_release_that_comes_while_it_looks_around_is_looked_into_as_well(make: Make) -> None:
    harness = await make(SERVICE, watch_every=timedelta(hours=1))
    harness.world.stage, harness.world.stages_of[SERVICE] = "prepared", "ready"
    harness.world.standing = Standing(ok=False, detail="0 of 2 approvals")
    run = ids.replication(harness.plan, SERVICE)

    async def release() -> None:
        if harness.world.count("process_loose_keys") == 1:
            await harness.signal(run, "released", by="mallory")

    harness.world.on["process_loose_keys"] = release
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "watching" and one.state == "WAITING")
    await harness.advance(run, timedelta(hours=1, minutes=1))
    status = await harness.until(run, lambda one: any("0 of 2" in refusal.text for refusal in one.refused))
    assert status.phase == "watching"


async def test_a_release_that_cannot_be_looked_into_parks_and_does_not_wedge_the_run(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stage, harness.world.stages_of[SERVICE] = "prepared", "ready"
    harness.world.faults["given_up"] = [refused("no such plan")]
    run = ids.replication(harness.plan, SERVICE)
    await harness.start(ReplicationWorkflow, run, service=SERVICE)
    await harness.until(run, lambda one: one.phase == "watching" and one.state == "WAITING")
    await harness.signal(run, "released", by="ann")
    assert "no such plan" in (await harness.parked(run)).attention
    await harness.update(run, "retry", by="ann")
    assert await harness.handle(run).result() == "released"
