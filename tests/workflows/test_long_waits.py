"""What may be waited for during weeks costs a bounded number of events: a server ends a run that has too many."""

from datetime import timedelta

from activities import ids
from tests.workflows.conftest import Make
from tests.workflows.test_switchover import SERVICE, begin, switched
from workflows import timeouts
from workflows.cleanup import CleanupWorkflow

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
#: A server's limit.
EVENTS = 51_200


async def test_a_gate_whose_evidence_does_not_hold_is_measured_less_and_less_often(make: Make) -> None:
    harness = await make(SERVICE)
    harness.world.stages_of[SERVICE] = "deprecated"
    harness.world.problems["give-up-way-back"] = ["trades: 3 rows differ"]
    run = ids.cleanup(harness.plan)
    handle = await harness.start(CleanupWorkflow, run)
    await harness.until(run, lambda one: "3 rows differ" in one.waiting_for)
    await harness.advance(run, DAY)
    measured, before = harness.world.count("measure_way_back"), (await handle.describe()).history_length
    assert measured < 60
    await harness.advance(run, DAY)
    assert harness.world.count("measure_way_back") - measured in (23, 24, 25)
    assert ((await handle.describe()).history_length - before) * 90 < EVENTS
    harness.world.problems.clear()
    await harness.update(run, "retry", by="alice")
    await harness.at_gate(run, "give-up-way-back")


def test_a_growing_pause_is_a_tenth_of_what_was_waited_within_limits() -> None:
    second = timedelta(seconds=1)
    assert timeouts.growing(second, timedelta()) == second
    assert timeouts.growing(second, 100 * second) == 10 * second
    assert timeouts.growing(second, 30 * DAY) == HOUR
    assert timeouts.growing(2 * HOUR, 30 * DAY) == 2 * HOUR


async def test_cleanup_waits_for_a_hand_over_with_few_events_and_hears_of_it_at_once(make: Make) -> None:
    harness, switchover = await switched(make, deprecation=2 * HOUR, hour=6 * HOUR)
    await harness.advance(switchover, 3 * HOUR)
    await harness.stage(SERVICE, "deprecated")
    await harness.until(switchover, lambda one: one.phase == "deprecated")
    await harness.update(switchover, "pause", by="erin")
    run = ids.cleanup(harness.plan)
    handle = await harness.start(CleanupWorkflow, run)
    await harness.approve(run, "give-up-way-back", "ann", "ben")
    await harness.until(run, lambda one: "to hand over" in one.waiting_for)
    await harness.advance(run, DAY)
    before = (await handle.describe()).history_length
    assert before * 15 < EVENTS
    await harness.advance(run, DAY)
    assert ((await handle.describe()).history_length - before) * 60 < EVENTS
    await harness.update(switchover, "resume", by="erin")
    await harness.until(run, lambda one: "task" in one.waiting_for)


async def test_a_switch_that_begins_anew_soaks_anew(make: Make) -> None:
    harness, run = await begin(make, soak=timedelta(minutes=4), soak_samples=5)
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    await harness.advance(run, timedelta(minutes=2))
    await harness.update(run, "rollback", by="dora")
    await harness.approve(run, "switch-again", "alice")
    await harness.approve(run, "read", "alice")
    await harness.until(run, lambda one: one.phase == "soak")
    samples = harness.world.samples
    await harness.advance(run, timedelta(minutes=3))
    assert (await harness.status(run)).phase == "soak"
    await harness.advance(run, timedelta(minutes=2))
    await harness.at_gate(run, "write")
    assert harness.world.samples - samples >= 5
