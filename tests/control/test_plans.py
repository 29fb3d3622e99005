"""Plans: a changed one never applies silently, and a table belongs to one migration."""

import asyncio
from datetime import timedelta

import pytest

from cutover.control import adoption, approvals, audit, plans, stages
from cutover.control.database import Control
from cutover.errors import Conflict, CutoverError, Refused
from tests.control.plans import plan

M = "ai-trader"


async def actions(control: Control) -> list[str]:
    async with control.connection() as connection:
        return [row.action for row in reversed(await audit.entries(connection, M))]


async def test_a_plan_is_read_back_as_it_was_registered(control: Control) -> None:
    first = plan()
    record = await plans.register(control, first, "alice")
    assert (record.hash, record.active, record.message) == (first.hash, True, "")
    assert await plans.register(control, first, "bob") == record
    again = await plans.load(control, M)
    assert (again, again.hash, list(again.services)) == (first, first.hash, list(first.services))
    assert await actions(control) == ["plan.registered"]


async def test_a_migration_that_was_never_registered_is_refused_with_what_to_do(control: Control) -> None:
    with pytest.raises(Refused, match="cutover plan register"):
        await plans.load(control, M)
    with pytest.raises(Refused, match="cutover plan register"):
        await plans.bind(control, M, "0" * 64, "alice")


async def test_before_it_is_bound_the_latest_plan_counts(control: Control) -> None:
    await plans.register(control, plan(), "alice")
    changed = await plans.register(control, plan(soak="2h"), "alice")
    assert changed.active
    assert (await plans.load(control, M)).hash == changed.hash
    back = await plans.register(control, plan(), "alice")
    assert (await plans.load(control, M)).hash == back.hash


async def test_a_changed_plan_is_pending_and_the_bound_one_goes_on(control: Control) -> None:
    bound, changed = plan(), plan(soak="2h")
    await plans.register(control, bound, "alice")
    await plans.bind(control, M, bound.hash, "workflow")
    record = await plans.register(control, changed, "bob")
    assert not record.active
    assert "until a person adopts it" in record.message
    assert (await plans.load(control, M)).hash == bound.hash
    assert (await plans.load(control, M, changed.hash)) == changed
    present = await plans.record(control, M)
    assert present.hash == bound.hash
    assert "pending" in present.message
    assert await actions(control) == ["plan.registered", "plan.bound", "plan.pending"]


async def test_another_plan_is_refused_to_a_running_migration_unless_a_person_adopts_it(control: Control) -> None:
    bound, changed = plan(), plan(soak="2h")
    await plans.register(control, bound, "alice")
    await plans.register(control, changed, "alice")
    await plans.bind(control, M, bound.hash, "workflow")
    await plans.bind(control, M, bound.hash, "workflow")
    await stages.set_stage(control, M, None, "prepared")
    await approvals.record(
        control,
        migration=M,
        service="trading_engine",
        gate="write",
        plan_hash=bound.hash,
        by="alice",
        run_id="r",
        message_id="1",
    )
    with pytest.raises(Refused, match=r"runs by plan .* \(prepared\)"):
        await plans.bind(control, M, changed.hash, "workflow")
    assert (await plans.load(control, M)).hash == bound.hash

    await adoption.adopt(control, changed, "carol")
    assert (await plans.load(control, M)).hash == changed.hash
    day = timedelta(days=1)
    for plan_hash in (bound.hash, changed.hash):
        assert await approvals.valid(control, M, "trading_engine", "write", plan_hash, None, day) == []
    assert (await actions(control))[-1] == "plan.adopted"


async def test_before_it_runs_a_migration_may_be_bound_anew(control: Control) -> None:
    first, second = plan(), plan(soak="2h")
    await plans.register(control, first, "alice")
    await plans.bind(control, M, first.hash, "workflow")
    await stages.set_stage(control, M, None, "registered")
    await plans.register(control, second, "alice")
    await plans.bind(control, M, second.hash, "workflow")
    assert (await plans.record(control, M)).hash == second.hash


async def test_a_second_migration_over_the_same_tables_is_refused_and_claims_nothing(control: Control) -> None:
    await plans.claim_tables(control, plan(), "7001/monolith")
    await plans.claim_tables(control, plan(), "7001/monolith")
    rival = plan("other", ("accounts", "public.trades"))
    with pytest.raises(
        Conflict, match=r"table\(s\) ai_trade_outcomes, trades of this monolith belong to migration ai-trader"
    ):
        await plans.claim_tables(control, rival, "7001/monolith")
    assert await control.fetchval("SELECT count(*) FROM control.claim WHERE migration = 'other'") == 0
    await plans.claim_tables(control, rival, "7002/monolith")


async def test_released_tables_can_be_claimed_by_another_migration(control: Control) -> None:
    await plans.claim_tables(control, plan(), "7001/monolith")
    assert await plans.release_tables(control, M, by="cleanup") == 3
    assert await plans.release_tables(control, M, by="cleanup") == 0
    await plans.claim_tables(control, plan("other"), "7001/monolith")
    assert await actions(control) == ["tables.claimed", "tables.released"]


async def test_of_migrations_that_claim_at_once_one_wins(control: Control) -> None:
    orders = (("a", "b", "c", "d"), ("d", "c", "b", "a"))
    rivals = [plan(f"m{n}", orders[n % 2]) for n in range(4)]
    outcomes = await asyncio.gather(
        *(plans.claim_tables(control, rival, "7001/monolith") for rival in rivals), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 3
    assert all(isinstance(outcome, Conflict | CutoverError) for outcome in refused)
    assert await control.fetchval("SELECT count(DISTINCT migration) FROM control.claim") == 1


async def test_registering_at_once_leaves_one_latest_plan(control: Control) -> None:
    variants = [plan(soak=f"{n}h") for n in range(1, 5)]
    await asyncio.gather(*(plans.register(control, variant, "alice") for variant in variants))
    assert (await plans.load(control, M)).hash in {variant.hash for variant in variants}
    async with control.connection() as connection:
        assert await audit.verify(connection) == []
