"""A switchover run that is cancelled: what was done is undone where the writes have not moved, and people are told."""

import asyncio

import pytest
from temporalio.client import WorkflowFailureError

from tests.workflows.conftest import Make
from tests.workflows.harness import DEADLINE, Harness
from tests.workflows.test_half_done import LOST, broken
from tests.workflows.test_switchover import SERVICE, soaked, switched
from tests.workflows.world import refused
from workflows.switchover import SwitchoverWorkflow


async def cancelled(harness: Harness, run: str) -> str:
    """The alert that tells of it."""
    await harness.handle(run).cancel()
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(harness.handle(run).result(), DEADLINE)
    [text] = [one.text for one in harness.world.alerts if one.kind == "switchover-cancelled"]
    return text


def undone(harness: Harness) -> list[str]:
    names = ("take_back_reverse", "restore_keys", "set_read_flag")
    return [name for name, _ in harness.world.calls if name in names]


async def test_a_parked_write_switch_that_is_cancelled_leaves_nothing_standing(make: Make) -> None:
    harness, run = await soaked(make)
    harness.world.faults["prepare_reverse"] = [refused("max_replication_slots is reached")]
    await harness.approve(run, "write", "alice", "bob")
    await harness.parked(run)
    assert "writable side: monolith" in await cancelled(harness, run)
    assert undone(harness)[-3:] == ["take_back_reverse", "restore_keys", "set_read_flag"]
    assert not harness.world.read_new[SERVICE]


async def test_what_cannot_be_undone_is_told_and_holds_nothing_else_up(make: Make) -> None:
    harness, run = await soaked(make)
    harness.world.faults["prepare_reverse"] = [refused("max_replication_slots is reached")]
    await harness.approve(run, "write", "alice", "bob")
    await harness.parked(run)
    harness.world.faults["restore_keys"] = [refused("a key would not validate")]
    text = await cancelled(harness, run)
    assert "not undone: foreign keys back on the monolith" in text
    assert "a key would not validate" in text
    assert not harness.world.read_new[SERVICE]


async def test_a_rollback_that_is_cancelled_half_way_is_told_and_undone_to_its_end(make: Make) -> None:
    harness, run = await switched(make)
    harness.world.faults["restore_keys"] = [refused("a key would not validate")]
    await harness.update(run, "rollback", by="dora")
    await harness.parked(run)
    assert harness.world.primary[SERVICE] == "monolith"
    harness.world.read_new[SERVICE] = True
    assert "writable side: monolith" in await cancelled(harness, run)
    assert not harness.world.read_new[SERVICE]
    assert harness.world.count("restore_keys") == 2
    assert harness.world.stages_of[SERVICE] == "rolled-back"


async def test_a_rollback_whose_run_was_terminated_half_way_is_told_by_the_next_run(make: Make) -> None:
    harness, run = await switched(make)
    harness.world.faults["restore_keys"] = [refused("a key would not validate")]
    await harness.update(run, "rollback", by="dora")
    await harness.parked(run)
    await harness.handle(run).terminate("ended by hand")
    assert harness.world.stages_of[SERVICE] == "switched"
    await harness.start(SwitchoverWorkflow, run, service=SERVICE)
    await harness.at_gate(run, "read")
    assert harness.world.stages_of[SERVICE] == "rolled-back"


async def test_a_switch_that_is_half_done_is_ended_before_anything_is_undone(make: Make) -> None:
    harness, run = await broken(make)
    assert "writable side: monolith" in await cancelled(harness, run)
    assert harness.world.unfinished == ""
    assert undone(harness)[-1] == "set_read_flag"


async def test_a_switch_that_is_half_done_and_turns_out_to_be_journaled_stays_where_it_is(make: Make) -> None:
    harness, run = await broken(make)
    harness.world.ends_as = "done"
    assert "writable side: service" in await cancelled(harness, run)
    assert harness.world.read_new[SERVICE]
    assert undone(harness) == ["set_read_flag"]


async def test_a_switch_that_cannot_be_ended_is_left_to_a_person_and_told(make: Make) -> None:
    harness, run = await broken(make)
    harness.world.down["fenced_section"] = refused(LOST)
    text = await cancelled(harness, run)
    assert LOST in text
    assert "cutover doctor" in text
    assert undone(harness) == ["set_read_flag"], "nobody knows which side is the writable one"
