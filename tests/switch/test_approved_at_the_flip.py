"""Approvals are looked at again right before a switch begins (invariant 7)."""

import pytest
from temporalio.exceptions import ApplicationError

from activities import models as m
from activities.messages import MessageActivities
from activities.switching import SwitchActivities
from cutover.control import switches
from cutover.switch.environment import SwitchEnvironment
from tests.switch.conftest import Work
from tests.switch.test_section import writable


async def decide(work: Work, action: str, by: str, key: str) -> None:
    decision = m.Decision(ref=work.ref, workflow_id="w", key=key, action=action, by=by, gate="write", reason="tested")
    await work.run(MessageActivities(work.context).record_decision, decision)


async def test_an_approval_that_was_rejected_behind_the_gate_lets_no_switch_begin(
    env: SwitchEnvironment, work: Work
) -> None:
    activities = SwitchActivities(work.context)
    order = m.SwitchOrder(ref=work.ref, switch_id="one", to_side="service")
    await work.run(activities.measure_write, m.GateRequest(ref=work.ref, gate="write"))
    await work.run(activities.prepare_reverse, order)
    for by in ("alice", "bob"):
        await decide(work, "approve", by, f"run/{by}")
    await decide(work, "reject", "carol", "run/carol")
    with pytest.raises(ApplicationError, match="0 of 2 approvals of the write gate hold now") as refused:
        await work.run(activities.fenced_section, order)
    assert refused.value.type == "ApprovalLapsed"
    assert await writable(env, "monolith")
    assert await switches.under_way(env.control, "test", env.pair.service) is None
    for by in ("alice", "bob"):
        await decide(work, "approve", by, f"run/{by} again")
    assert (await work.run(activities.fenced_section, order)).result == "done"
