"""A write gate that opens again after its approvals: the way back that was made ready is taken down before."""

from collections.abc import Callable

import pytest
from temporalio.exceptions import ApplicationError

from tests.workflows.conftest import Make
from tests.workflows.harness import Harness
from tests.workflows.test_switchover import SERVICE, soaked
from tests.workflows.world import replaced
from workflows.failures import APPROVAL_LAPSED


def lapsed(harness: Harness) -> None:
    harness.world.faults["fenced_section"] = [ApplicationError("too old", type=APPROVAL_LAPSED, non_retryable=True)]


def another_plan(harness: Harness) -> None:
    harness.world.adopt()
    harness.world.faults["fenced_section"] = [replaced()]


def worse(harness: Harness) -> None:
    """Undone once; measured again, the evidence is worse than what was approved."""

    async def get_worse() -> None:
        harness.world.worse["write"] = "differences 0 → 3"

    harness.world.undone = ["a lock was not obtained"]
    harness.world.on["fenced_section"] = get_worse


@pytest.mark.parametrize("happens", [lapsed, another_plan, worse])
async def test_nothing_holds_back_a_servers_log_while_people_are_asked_again(
    make: Make, happens: Callable[[Harness], None]
) -> None:
    harness, run = await soaked(make)
    world = harness.world

    async def happen() -> None:
        """Once the gate is passed."""
        del world.on["prepare_reverse"]
        happens(harness)

    world.on["prepare_reverse"] = happen
    await harness.approve(run, "write", "alice", "bob")
    await harness.until(run, lambda one: world.count("fenced_section") > 0 and one.phase == "write gate")
    await harness.at_gate(run, "write")
    ways = [(name, order) for name, order in world.calls if name in ("prepare_reverse", "take_back_reverse")]
    assert ways[-1][0] == "take_back_reverse"
    assert {order.to_side for _, order in ways} == {"service"}
    world.on.clear()
    await harness.approve(run, "write", "alice", "bob")
    await harness.stage(SERVICE, "switched")
    assert [name for name, _ in world.calls if name in ("prepare_reverse", "finish_switch")][-2:] == [
        "prepare_reverse",
        "finish_switch",
    ]
