"""Nothing of the way back ends while writes are at the monolith, or may move there."""

from typing import Any
from uuid import uuid4

import pytest
from temporalio.exceptions import ApplicationError

from activities import models as m
from activities.plans import WAY_BACK_GATE
from cutover.control import approvals, evidence, stages, switches
from cutover.control.evidence import Evidence
from cutover.errors import NotYet
from cutover.flags import store as flags
from cutover.switch import reverse, section
from cutover.switch.attempt import open_attempt
from tests.activities.conftest import SERVICE_DATABASES, Ground
from tests.activities.test_cleanup import ours, switched
from tests.switch.conftest import order


async def given_up(ground: Ground) -> None:
    """Every service is deprecated, and people have approved that the ways back end."""
    migration = ground.plan.migration
    for service in ground.services:
        await stages.set_stage(ground.control, migration, service, "deprecated")
    facts: dict[str, Any] = {"measures": {"differences": 0.0}}
    taken = Evidence(migration, None, WAY_BACK_GATE, ground.plan.hash, facts, True)
    code = await evidence.record(ground.control, taken)
    for by in ("ann", "ben"):
        await approvals.record(
            ground.control,
            migration=migration,
            service=None,
            gate=WAY_BACK_GATE,
            plan_hash=ground.plan.hash,
            by=by,
            run_id="run",
            message_id=by,
            evidence_code=code,
        )


async def release(ground: Ground, service: str) -> None:
    change = m.StageChange(ref=ground.ref(service), stage="released")
    await ground.do(ground.plans.set_stage, change)


async def refused(ground: Ground, service: str, words: str) -> None:
    """Neither is the stage written nor anything dropped."""
    with pytest.raises(ApplicationError, match=words):
        await release(ground, service)
    row = (await stages.get_stages(ground.control, ground.plan.migration))[service]
    assert row.stage == "deprecated"
    there = {name: await ours(ground, name) for name in SERVICE_DATABASES}
    with pytest.raises(ApplicationError, match=words):
        await ground.do(ground.cleanup.drop_machinery, ground.ref(service))
    assert {name: await ours(ground, name) for name in SERVICE_DATABASES} == there


async def test_a_service_that_writes_at_the_monolith_again_is_not_released_whatever_its_stage_says(
    ground: Ground,
) -> None:
    await switched(ground)
    await given_up(ground)
    service = ground.services[1]
    environment = ground.environment(service)
    await reverse.make_ready(environment, "monolith")
    # its run is ended before it can say that it has gone back
    assert (await section.run(environment, order(environment, "monolith"), lambda _: None)).result == "done"
    await refused(ground, service, "writable at the monolith.*cutover start switchover")
    await release(ground, ground.services[0])


async def test_a_service_whose_switch_is_under_way_is_not_released(ground: Ground) -> None:
    await switched(ground)
    await given_up(ground)
    service = ground.services[0]
    async with open_attempt(ground.environment(service)) as attempt:
        await switches.begin(
            ground.control, attempt.row, switch_id="back", to_side="monolith", from_side="service", from_epoch=1,
            plan_hash=ground.plan.hash,
        )  # fmt: skip
    await refused(ground, service, "a switch is under way.*--mend")


async def test_once_released_no_switch_back_begins_not_even_by_an_attempt_from_before(ground: Ground) -> None:
    await switched(ground)
    await given_up(ground)
    service = ground.services[0]
    environment = ground.environment(service)
    await reverse.make_ready(environment, "monolith")

    async def released_meanwhile() -> None:
        await release(ground, service)

    with pytest.raises(NotYet):
        await section.run(environment, order(environment, "monolith"), lambda _: None, released_meanwhile)
    again = m.SwitchOrder(ref=ground.ref(service), switch_id=uuid4().hex, to_side="monolith")
    with pytest.raises(ApplicationError, match="way back was given up"):
        await ground.do(ground.switching.fenced_section, again)
    route = await flags.get(ground.control, ground.plan.migration, service)
    assert (route.primary_side, route.pause_id) == ("service", None)
    assert await switches.under_way(ground.control, ground.plan.migration, service) is None
