"""A fenced section that fails for good while its switch is under way: its words, the same switch again, a way back."""

from typing import Any

from activities import models as m
from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from tests.workflows.test_switchover import SERVICE, soaked, switched
from tests.workflows.world import refused

LOST = "the monolith is in use under epoch 4 and the journal does not know it: a person has to look"


async def broken(make: Make) -> tuple[Harness, str]:
    """Parked with both sides shut."""
    harness, run = await soaked(make)
    harness.world.break_in_the_middle(LOST)
    await harness.approve(run, "write", "alice", "bob")
    status = await harness.parked(run)
    assert LOST in status.attention
    return harness, run


def orders(harness: Harness) -> list[Any]:
    return [order for name, order in harness.world.calls if name == "fenced_section"]


async def test_a_section_that_fails_half_way_parks_with_its_own_words_and_retry_calls_it_again(make: Make) -> None:
    harness, run = await broken(make)
    assert harness.world.count("take_back_reverse") == 0, "the switch may have to be finished: it needs its way back"
    harness.world.ends_as = "done"
    await harness.update(run, "retry", by="alice")
    await harness.stage(SERVICE, "switched")
    assert len(orders(harness)) == 2
    assert len({order.switch_id for order in orders(harness)}) == 1
    assert harness.world.count("prepare_reverse") == 1


async def test_it_is_called_again_whatever_plan_was_adopted_meanwhile(make: Make) -> None:
    harness, run = await broken(make)
    harness.world.adopt()
    harness.world.fenced_section = (  # type: ignore[method-assign]
        lambda order: m.SwitchReport(result="undone", switch_id=order.switch_id, reason="recovered")
    )
    await harness.signal(run, "plan_adopted", hash="x")
    await harness.until(run, lambda one: one.plan_hash == "hash-2")
    harness.world.unfinished = ""
    await harness.update(run, "retry", by="alice")
    await harness.at_gate(run, "write")
    assert len({order.switch_id for order in orders(harness)}) == 1
    assert len(orders(harness)) == 2


async def test_a_rollback_ends_the_switch_that_is_half_done_first(make: Make) -> None:
    harness, run = await broken(make)
    await harness.update(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")
    assert len({order.switch_id for order in orders(harness)}) == 1
    assert len(orders(harness)) == 2
    assert harness.world.primary[SERVICE] == "monolith"
    assert not harness.world.read_new[SERVICE]


async def test_a_rollback_of_a_switch_that_was_journaled_moves_the_writes_back(make: Make) -> None:
    harness, run = await broken(make)
    harness.world.ends_as = "done"
    await harness.update(run, "rollback", by="dora")
    await harness.at_gate(run, "switch-again")
    assert [order.to_side for order in orders(harness)] == ["service", "service", "monolith"]
    assert harness.world.primary[SERVICE] == "monolith"
    names = [name for name, _ in harness.world.calls]
    assert names.index("finish_switch") < len(names) - 1 - names[::-1].index("fenced_section")


async def test_a_switch_that_a_person_finished_meanwhile_counts_as_done(make: Make) -> None:
    harness, run = await broken(make)
    harness.world.unfinished, harness.world.primary[SERVICE] = "", "service"
    harness.world.read_new[SERVICE] = True
    harness.world.faults["fenced_section"] = [refused(f"{SERVICE} is writable at the service already")]
    await harness.update(run, "retry", by="alice")
    await harness.stage(SERVICE, "switched")
    assert harness.world.read_new[SERVICE]
    status = await harness.until(run, lambda one: one.phase == "deprecation")
    assert "would pause writes about a few ms" in status.rollback_note


async def test_a_switch_back_that_fails_half_way_is_called_again_too(make: Make) -> None:
    harness, run = await switched(make)
    harness.world.break_in_the_middle(LOST)
    await harness.update(run, "rollback", by="dora")
    status = await harness.parked(run)
    assert LOST in status.attention
    harness.world.ends_as = "done"
    await harness.update(run, "retry", by="dora")
    await harness.at_gate(run, "switch-again")
    assert [order.to_side for order in orders(harness)] == ["service", "monolith", "monolith"]
    assert len({order.switch_id for order in orders(harness)}) == 2
    assert harness.world.primary[SERVICE] == "monolith"


async def test_a_rollback_waits_for_a_step_that_has_to_succeed_first_and_says_so(make: Make) -> None:
    harness, run = await soaked(make)
    harness.world.faults["finish_switch"] = [refused("a subscription could not be dropped")]
    await harness.approve(run, "write", "alice", "bob")
    status = await harness.parked(run)
    assert status.waiting_for.startswith("'retry': proving the way back")
    assert "once this step has succeeded" in status.rollback_note
    answer = await harness.update(run, "rollback", by="dora")
    assert answer.startswith("rolls back once 'proving the way back")
    assert "waits for 'retry'" in answer
    await harness.update(run, "retry", by="dora")
    await harness.at_gate(run, "switch-again")
    assert harness.world.primary[SERVICE] == "monolith"
