"""Reads that have moved, and of which the new side says that they write: they are done as writes, once."""

import asyncio
from decimal import Decimal

import pytest

from cutover.dualwrite import mirror
from cutover.plan.models import Consistency
from tests.dualwrite.both_sides import Both
from tests.dualwrite.test_read_your_writes import answered_by, moved
from tests.dualwrite.waiting import until

#: Counts how often it was done, and takes its time afterwards.
BOOK = """
CREATE FUNCTION book(seconds float8) RETURNS numeric LANGUAGE sql AS $$
    INSERT INTO positions VALUES ('a', 'x', 1)
    ON CONFLICT (account, symbol) DO UPDATE SET amount = positions.amount + 1;
    SELECT amount FROM positions CROSS JOIN pg_sleep(seconds)
$$
"""
BOOKED = "SELECT sum(amount) FROM positions"
ASLEEP = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.fixture(autouse=True)
def noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process has to be given time."""
    monkeypatch.setattr(mirror, "NOTICED_AFTER", 0.0)


async def with_function(both: Both) -> None:
    await both.on("monolith", BOOK)
    await both.on("service", BOOK)


@pytest.mark.parametrize("level", [None, "eventual"])
async def test_a_select_that_writes_is_seen_by_the_next_read_while_no_relay_runs(
    strong: Both, level: Consistency | None
) -> None:
    await with_function(strong)
    trading = await moved(strong)
    for times in range(1, 4):
        assert await trading.fetchval("SELECT book(0)", level=level) == times
        for _ in range(3):
            assert await trading.fetchval(BOOKED) == times, "its own acknowledged write"
    assert await strong.on("monolith", BOOKED) == 3
    assert await strong.on("service", BOOKED) == (3 if level is None else None)
    assert await answered_by(strong, trading) == ("service" if level is None else "monolith")


async def test_a_select_that_writes_is_done_once_though_the_lease_runs_out_meanwhile(
    strong: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_function(strong)
    trading = await moved(strong)
    running = asyncio.create_task(trading.fetchval("SELECT book(1)"))
    await until(lambda: strong.on("monolith", ASLEEP))
    lease = trading.gate.lease
    monkeypatch.setattr(lease, "extend", lambda until: None)
    lease.until = 0.0
    assert await running == Decimal(1)
    assert await strong.on("monolith", BOOKED) == 1
