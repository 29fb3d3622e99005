"""A network that swallows everything: a strong write has its end in bounded time all the same."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest

from cutover import faults
from cutover.dualwrite import SecondaryAway, ServicePool, sessions, two_sides
from cutover.postgres import two_phase
from cutover.postgres.databases import Side
from tests.dualwrite.black_hole import BlackHole
from tests.dualwrite.both_sides import SERVICE, Both, add

T = TypeVar("T")

#: Seconds within which the machine has done what has a limit of a second.
BOUNDED = 10.0


@dataclass
class Swallowed:
    """A pool with a black hole on the way to one side."""

    trading: ServicePool
    hole: BlackHole


@asynccontextmanager
async def on_the_way_to(both: Both, side: Side, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Swallowed]:
    monkeypatch.setattr(sessions, "COMMAND_TIMEOUT", 1.0, raising=False)
    monkeypatch.setattr(sessions, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(two_sides, "DECIDE_WITHIN", 0.5)
    hole = BlackHole(both.databases[side])
    async with hole:
        trading = await both.service(databases={**both.databases, side: hole.database}, patience=0.2)
        yield Swallowed(trading, hole)


async def bounded(work: Awaitable[T]) -> T:
    """Its result; a work that cannot be cancelled is left where it stands."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=BOUNDED)
    assert task.done(), f"nothing has come of it in {BOUNDED:g} s"
    return task.result()


@pytest.mark.parametrize("point", ["strong.read.before", "strong.apply.before", "strong.prepare.before"])
async def test_the_other_side_that_says_nothing_is_away_and_holds_no_locks_at_the_primary(
    both: Both, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    async with on_the_way_to(both, "service", monkeypatch) as at:
        await at.trading.run_in_transaction(lambda c: add(c, 1))

        async def swallow(where: str) -> None:
            if where == point:
                at.hole.swallow()

        with faults.armed(swallow), pytest.raises(SecondaryAway):
            await bounded(at.trading.execute("UPDATE trades SET note = 'b'"))
        await bounded(both.on("monolith", "UPDATE trades SET note = 'c' RETURNING id"))
        await at.hole.cut()
        await at.hole.mend()
        await both.janitor().resolve(older_than=0)
        await at.trading.execute("UPDATE trades SET note = 'd'")
        await both.require_equal()


async def test_a_write_that_was_decided_is_answered_though_the_other_side_says_nothing(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_the_way_to(both, "service", monkeypatch) as at:

        async def swallow(where: str) -> None:
            if where == "strong.commit.after":
                at.hole.swallow()

        with faults.armed(swallow):
            await bounded(at.trading.run_in_transaction(lambda c: add(c, 1)))
        assert at.trading.gate.counters.in_doubt == 1
        assert [one.decision for one in await both.janitor().resolve(older_than=0)] in (["commit"], [])
        await both.require_equal()


async def test_a_primary_that_says_nothing_is_asked_for_a_decision_in_bounded_time(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_the_way_to(both, "monolith", monkeypatch) as at:
        sides = at.trading._sides
        assert sides is not None
        gid, begun = two_phase.write_id(SERVICE), asyncio.get_running_loop().time()
        assert await sides.decided(gid, "monolith", begun) == "abort"
        at.hole.swallow()
        assert await bounded(sides.decided(gid, "monolith", begun)) is None
