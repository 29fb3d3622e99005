"""Flags set by a person: back at any time, forth on evidence, the writes never."""

from datetime import UTC, datetime

import pytest
import pytest_asyncio

from cutover.control import audit, plans, reports
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.errors import Conflict, GateClosed, PlanError, Refused
from cutover.flags import by_hand, store
from tests.control.plans import plan
from tests.flags.test_store import LIMIT

M, S = "ai-trader", "trading_engine"


@pytest_asyncio.fixture
async def migration(control: Control) -> str:
    await plans.register(control, plan(M), "alice")
    await store.ensure(control, M, S)
    return M


async def compared(control: Control, table: str, rate: float = 0.0) -> None:
    now = datetime.now(UTC)
    await reports.record(
        control,
        TableReport(
            migration=M, service=S, table=table, direction="forward", started_at=now, finished_at=now,
            rows_source=1000, rows_target=1000, rate=rate, seed_rate=rate, duration_ms=1.0,
            plan_hash=plan(M).hash, complete=True,
        ),
    )  # fmt: skip


async def test_more_reads_at_the_new_side_need_a_fresh_pass_of_each_table(control: Control, migration: str) -> None:
    async def change(text: str) -> bool:
        return (await by_hand.change(control, M, f"{S}_percentage", text, by="bob", reason="a look"))[1]

    with pytest.raises(GateClosed, match=r"trades has not been compared; positions has not been compared\. Compare"):
        await change("10")
    await compared(control, "trades")
    await compared(control, "positions", rate=0.5)
    with pytest.raises(GateClosed, match=r"50\.0000% of positions differ"):
        await change("10")
    await compared(control, "positions")
    assert await change("10")
    assert not await change("10")
    await control.execute("UPDATE control.report SET recorded_at = recorded_at - interval '1 day'")
    with pytest.raises(GateClosed, match="trades was compared 864"):
        await change("30")
    with pytest.raises(GateClosed):
        await by_hand.change(control, M, f"{S}_read_from_new", "true", by="bob", reason="all of them")
    assert await change("5"), "fewer need nothing"
    assert (await store.get(control, M, S)).percentage == 5
    async with control.connection() as connection:
        newest = (await audit.entries(connection, M))[0]
    assert (newest.actor, newest.detail) == ("bob", {"from": 10, "to": 5, "reason": "a look"})


async def test_the_flag_of_the_writes_is_not_set_by_hand(control: Control, migration: str) -> None:
    with pytest.raises(Refused, match=f"cutover start switchover {M} {S}"):
        await by_hand.change(control, M, f"{S}_write_to_new_primary", "true", by="bob", reason="now")
    route, changed = await by_hand.change(control, M, f"{S}_write_to_new_primary", "false", by="bob", reason="now")
    assert (route.write_to_new_primary, changed) == (False, False)


async def test_no_flag_is_set_in_the_pause_of_a_switch(control: Control, migration: str) -> None:
    await store.set_percentage(control, M, S, 30, actor="alice")
    await store.announce_pause(control, M, S, "p1", LIMIT)
    with pytest.raises(Conflict, match="in its pause"):
        await by_hand.change(control, M, f"{S}_read_from_new", "false", by="bob", reason="back")
    await store.lift_pause(control, M, S, "p1")
    assert (await by_hand.change(control, M, f"{S}_percentage", "0", by="bob", reason="back"))[0].percentage == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("trading_engine", "true", "is no flag"),
        ("_percentage", "1", "is no flag"),
        ("a_percentage", "101", "0 to 100"),
        ("a_percentage", "-1", "0 to 100"),
        ("a_percentage", "1.5", "0 to 100"),
        ("a_percentage", "٣", "0 to 100"),
        ("a_read_from_new", "yes", "true or false"),
    ],
)
def test_a_wrong_name_or_value_is_told(name: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        by_hand.parse(name, value)


async def test_a_service_that_the_plan_does_not_have_is_named(control: Control, migration: str) -> None:
    with pytest.raises(PlanError, match="billing"):
        await by_hand.change(control, M, "billing_percentage", "0", by="bob", reason="back")
