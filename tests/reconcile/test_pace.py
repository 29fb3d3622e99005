"""A pass gives way: to slow writes, to a stream that falls behind, and to the other passes at a database."""

import asyncio

import pytest

from cutover.control.database import Control
from cutover.control.places import places
from cutover.reconcile import pace
from cutover.reconcile.pace import Pace, Pressure

QUIET = Pressure(0.001, 0.01)


class Looks:
    """Looks that were planned: `without` a statement of ours each is quiet, unless `hour` says what it takes."""

    def __init__(self, coming: list[Pressure], hour: float = QUIET.write) -> None:
        self.coming, self.hour = coming, hour

    async def write(self) -> float:
        return self.hour

    async def pressure(self) -> Pressure:
        return self.coming.pop(0)

    async def close(self) -> None:
        self.coming.clear()


async def after(looks: list[Pressure], busy: float = 1.0, hour: float = QUIET.write) -> list[float]:
    """The share of the time after each of these looks, beside what a write takes without us."""
    made = Pace(busy, Looks([*looks], hour), lag_limit=5.0)
    await made.begin()
    shares = []
    for _ in looks:
        await made.rest(0)
        await asyncio.sleep(0)
        await made.rest(0)
        shares.append(round(made.share, 3))
    await made.end()
    return shares


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "EVERY", 0.0)


async def test_the_share_is_what_the_mean_write_may_lose_and_is_given_back_bit_by_bit() -> None:
    slow = Pressure(0.0015, 0.01)  # half a millisecond more is within the slack
    slower = Pressure(0.0026, 0.01)
    looks = [slow, slow, slower, slower, slower, QUIET, QUIET, QUIET]
    assert await after(looks) == [1.0, 1.0, 1.0, 0.125, 0.125, 0.125, 0.188, 0.281]


async def test_a_slow_hour_that_is_not_our_doing_slows_nothing_down() -> None:
    assert await after([Pressure(0.05, 0.01)] * 3, hour=0.05) == [1.0, 1.0, 1.0]


async def test_a_lagging_stream_halves_the_share_down_to_a_floor() -> None:
    lagging = Pressure(0.001, 6.0)
    shares = await after([lagging] * 8)
    assert shares[0] == 0.5
    assert shares[-1] == pace.LEAST_BUSY


async def test_one_slow_write_alone_is_no_sign() -> None:
    assert await after([Pressure(0.9, 0.01), QUIET, QUIET]) == [1.0, 1.0, 1.0]


async def test_the_share_never_passes_what_was_allowed() -> None:
    assert await after([QUIET] * 5, busy=0.4) == [0.4] * 5


async def test_a_look_without_an_answer_counts_as_slow_and_holds_nothing_up() -> None:
    class Silent(Looks):
        async def pressure(self) -> Pressure:
            await asyncio.Event().wait()
            raise AssertionError

    made = Pace(look=Silent([]), lag_limit=5.0)
    await made.begin()
    for _ in range(3):
        await made.rest(0)
    assert made.share == 0.25
    await made.end()


async def test_no_more_places_are_held_at_a_database_than_the_plan_allows(control: Control) -> None:
    held, most = 0, 0

    async def work(*names: str) -> None:
        nonlocal held, most
        async with places(control, "m", names, 2):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0.02)
            held -= 1

    # each of them needs a place at the monolith, in either order
    await asyncio.gather(*(work(*(["mono", f"db{n % 3}"][:: (-1) ** n])) for n in range(12)))
    assert most == 2


async def test_the_places_of_a_process_that_is_gone_are_free(control: Control) -> None:
    async with places(control, "m", ("mono",), 1):
        waiting = asyncio.create_task(_take(control))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
        await control.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cutover places' "
            "AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
        )
        await asyncio.wait_for(waiting, 10)


async def _take(control: Control) -> None:
    async with places(control, "m", ("mono",), 1):
        return
