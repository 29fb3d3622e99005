"""kill -9 of a janitor at each of its steps: the next one finishes, whatever was decided stays decided."""

import asyncio
import os
import sys

import pytest

from cutover import faults
from cutover.dualwrite import SecondaryAway, ServicePool
from cutover.postgres import two_phase
from tests.dualwrite.both_sides import Both, add
from tests.dualwrite.janitor_process import STEPS

OUTCOME = "SELECT outcome FROM cutover.decision WHERE gid = $1"


async def leave_in_doubt(
    both: Both, trading: ServicePool, monkeypatch: pytest.MonkeyPatch, number: int, *, decided: bool
) -> str:
    """A strong write whose process ended before or after its decision; the id of its branch."""
    before = set(await both.branches())

    async def gone(*_: object) -> bool:
        raise ConnectionResetError

    async def dies_before(point: str) -> None:
        if point == "strong.prepare.after":
            raise SecondaryAway("the test ends this write here")

    with monkeypatch.context() as patched:
        patched.setattr(two_phase, "end", gone)
        if not decided:
            with faults.armed(dies_before), pytest.raises(SecondaryAway):
                await trading.run_in_transaction(lambda c: add(c, number), attempts=1)
        else:
            await trading.run_in_transaction(lambda c: add(c, number))
    [gid] = set(await both.branches()) - before
    return gid


async def janitor_dies(both: Both, step: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.dualwrite.janitor_process", step,
        env={
            **os.environ,
            "BOTH_MONOLITH": both.databases["monolith"].dsn,
            "BOTH_SERVICE": both.databases["service"].dsn,
        },
    )  # fmt: skip
    assert await process.wait() == -9, f"{step} was reached"


@pytest.mark.parametrize("first_is_decided", [True, False], ids=["commit-first", "abort-first"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_janitor_killed_at_any_step_leaves_the_rest_to_the_next(
    both: Both, monkeypatch: pytest.MonkeyPatch, step: str, first_is_decided: bool
) -> None:
    trading = await both.service()
    order = [first_is_decided, not first_is_decided, True]
    gids = [
        await leave_in_doubt(both, trading, monkeypatch, number, decided=decided)
        for number, decided in enumerate(order, start=1)
    ]
    assert await both.branches() == gids, "the oldest comes first"
    await janitor_dies(both, step)

    assert await both.branches() == (gids[1:] if step == "ended" else gids)
    known = "commit" if first_is_decided else None if step == "found" else "abort"
    assert await both.on("monolith", OUTCOME, gids[0]) == known
    # killed a second time, one branch further on
    await janitor_dies(both, step)
    assert len(await both.branches()) == (1 if step == "ended" else 3)

    found = await both.janitor().resolve(older_than=0)
    expected = ["commit" if decided else "abort" for decided in order]
    assert [one.decision for one in found] == (expected[2:] if step == "ended" else expected)
    assert await both.janitor().resolve(older_than=0) == []
    assert await both.branches() == []
    assert await both.ids("monolith") == [number for number, decided in enumerate(order, start=1) if decided]
    await both.require_equal()
    # whoever was aborted cannot commit any more, and the keys are free for new writes
    assert [await both.on("monolith", OUTCOME, gid) for gid in gids] == expected
    [aborted] = [number for number, decided in enumerate(order, start=1) if not decided]
    await trading.run_in_transaction(lambda c: add(c, aborted))
    await both.drained()
    assert await both.ids("monolith") == [1, 2, 3]
    await both.require_equal()


async def test_janitors_at_once_end_each_branch_once(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    trading = await both.service()
    for number in range(1, 9):
        await leave_in_doubt(both, trading, monkeypatch, number, decided=number % 2 == 0)
    # one that finds a branch busy gives the round up, and comes again
    await asyncio.gather(*(both.janitor().resolve(older_than=0) for _ in range(3)), return_exceptions=True)
    await both.janitor().resolve(older_than=0)
    assert await both.branches() == []
    assert await both.ids("monolith") == [2, 4, 6, 8]
    await both.require_equal()
