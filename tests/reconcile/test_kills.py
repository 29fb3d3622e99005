"""Processes that walk a pass are killed with kill -9 at random moments, several at once; the report is the same."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from cutover.reconcile import ranges, spans
from cutover.reconcile.passes import finish_pass, open_pass
from tests.reconcile.conftest import World, until
from tests.reconcile.corruption import draw, found, wrongly
from tests.reconcile.pass_process import Order, finish, processes, walk

SEEDS = range(1, 1 + int(os.environ.get("CUTOVER_PROVE_SEEDS", "1")))
STEP = 60
SIZES = {
    "SPAN_ROWS": 500, "SHARE_ROWS": 500, "FIRST_STEP": STEP, "SMALLEST_STEP": STEP, "LARGEST_STEP": STEP,
    "OPEN_ROWS": 100,
}  # fmt: skip
KILLS = 12

Start = Callable[..., ForkServerProcess]


def kill(process: ForkServerProcess) -> bool:
    """Whether it was alive when it was killed."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


async def walked_under_kills(start: Start, order: Order, count: int, rng: random.Random) -> int:
    """Three processes walk all spans in orders of their own; how many were killed in the middle."""

    def shuffled() -> list[int]:
        return rng.sample(range(1, count + 1), count)

    killed = 0
    running = [start(walk, order, shuffled()) for _ in range(3)]
    for _ in range(KILLS):
        lines = len(order.noted())
        await noted(order, lines, running)
        await asyncio.sleep(rng.uniform(0, 0.2))  # any moment will do
        victim = rng.randrange(3)
        killed += kill(running[victim])
        running[victim] = start(walk, order, shuffled())
    for process in running:
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == 0
    return killed


async def noted(order: Order, lines: int, running: Sequence[ForkServerProcess]) -> None:
    """Waits for one more line of notes, or for the end of those who could write it."""

    async def more() -> bool:
        return len(order.noted()) > lines or not any(process.is_alive() for process in running)

    await until(more, 60)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("key", ["integer", "text"])
async def test_processes_killed_at_random_change_nothing_and_read_no_finished_span_again(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, seed: int
) -> None:
    table = draw(seed, key, [], each=10, sound=4000)
    await table.load(world.left, world.right)
    if key == "text":  # shares of the keys' hashes, for nobody knows how an extension's type is ordered
        await world.both("CREATE EXTENSION citext; ALTER TABLE t ALTER key0 TYPE citext")
    undisturbed = await world.compare("t")
    assert wrongly(await found(world, undisturbed), table.expected) == {}

    for module, name in ((m, n) for m in (ranges, spans) for n in SIZES if hasattr(m, n)):
        monkeypatch.setattr(module, name, SIZES[name])
    order = Order(
        world.pair.monolith, world.pair.target, world.control.database, f"killed {seed}", tmp_path / "notes", SIZES
    )
    job = order.job(world.control)
    count = await open_pass(job)
    assert count >= 4
    rng = random.Random(seed)
    with processes() as start:
        assert await walked_under_kills(start, order, count, rng) > KILLS / 3, f"seed {seed}: too few were alive"
        rows = len(table.source)
        walked = await world.control.fetchrow(
            "SELECT count(*) FILTER (WHERE done) AS done, sum(attempt) AS walks FROM control.pass_span "
            "WHERE pass_id = $1", order.pass_id,
        )  # fmt: skip
        assert walked is not None
        assert walked["done"] == count
        read = order.noted()
        assert rows <= sum(map(int, read)) <= rows + 3 * STEP * walked["walks"], f"seed {seed}"
        process = start(walk, order, range(1, count + 1))
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == 0
        assert order.noted() == read  # nothing of what is finished is read again
        order.notes.unlink()
        for kills in range(1, 6):
            process = start(finish, order)
            await noted(order, kills - 1, [process])
            await asyncio.sleep(rng.uniform(0, 0.15))
            kill(process)
    report = await finish_pass(job)
    assert wrongly(await found(world, report), table.expected) == {}, f"seed {seed}"
    for name in ("rows_source", "rows_target", "missing", "extra", "mismatched", "unsettled", "rate", "left_out"):
        assert getattr(report, name) == getattr(undisturbed, name), f"seed {seed}: {name}"
    assert await world.control.fetchval("SELECT count(*) FROM control.report WHERE complete") == 2
    assert await world.control.fetchval("SELECT count(*) FROM control.pass_candidate") == 0
