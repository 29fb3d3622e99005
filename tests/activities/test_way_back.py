"""Whether the way back was given up, by what stands in the control database."""

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import models as m
from activities.context import Context
from activities.plans import WAY_BACK_GATE, PlanActivities
from cutover.control import approvals, evidence, plans
from cutover.control.database import Control
from cutover.control.evidence import Evidence
from cutover.flags import store as flags
from cutover.settings import Settings
from tests.control.plans import plan

PLAN = plan()
M, S = PLAN.migration, "trading_engine"


class Office:
    """The activities on a control database in which the plan is in force."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.activities = PlanActivities(Context(Settings({}), control))
        self.ref = m.Ref(migration=M, plan_hash=PLAN.hash, service=S)
        self.messages = 0

    async def measured(self, differences: int = 0) -> str:
        facts = {"measures": {"differences": float(differences)}}
        return await evidence.record(self.control, Evidence(M, None, WAY_BACK_GATE, PLAN.hash, facts, True))

    async def approved(self, code: str, *people: str) -> None:
        for by in people:
            self.messages += 1
            await approvals.record(
                self.control,
                migration=M,
                service=None,
                gate=WAY_BACK_GATE,
                plan_hash=PLAN.hash,
                by=by,
                run_id="run",
                message_id=str(self.messages),
                evidence_code=code,
            )

    async def standing(self, code: str = "") -> m.Standing:
        query = m.GivenUpQuery(ref=self.ref, evidence=code)
        found: m.Standing = await ActivityEnvironment().run(self.activities.given_up, query)
        return found

    async def stage(self, stage: str) -> None:
        change = m.StageChange(ref=self.ref, stage=stage)
        await ActivityEnvironment().run(self.activities.set_stage, change)


@pytest.fixture
async def office(control: Control) -> Office:
    await plans.register(control, PLAN, "test")
    await plans.bind(control, M, PLAN.hash, "test")
    return Office(control)


async def test_approvals_from_before_a_rollback_do_not_give_up_the_way_back_of_the_next_switch(office: Office) -> None:
    code = await office.measured()
    await office.approved(code, "ann", "ben")
    assert (await office.standing(code)).ok
    await flags.ensure(office.control, M, S)
    await flags.flip(office.control, M, S, primary_side="service", epoch=1, actor="test", pause_id=None)
    await office.stage("rolled-back")
    await office.stage("deprecated")
    assert "0 of 2 approvals" in (await office.standing(code)).detail
    with pytest.raises(ApplicationError, match="0 of 2 approvals"):
        await office.stage("released")
    await office.approved(code, "ann", "ben")
    await office.stage("released")


async def test_approvals_count_for_the_evidence_that_is_named_and_not_for_worse(office: Office) -> None:
    code = await office.measured()
    await office.approved(code, "ann", "ben")
    assert (await office.standing(code.upper())).ok
    worse = await office.standing(await office.measured(differences=3))
    assert "0 of 2 approvals" in worse.detail
    unknown = await office.standing("zzzz")
    assert not unknown.ok
    assert "no evidence 'zzzz'" in unknown.detail
