"""Twelve kinds of corruption are found beside about 2,000 writes a second and a real subscription that lags.

What was there before the pass is found, what is only in flight is not, and nothing else is confirmed.
CUTOVER_PROVE_LIVE_SECONDS says how long passes are made one after the other (`make prove-reconcile`).
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from cutover.control import reports
from cutover.plan.models import Reconcile
from cutover.postgres.keys import Key, key_from_json
from cutover.reconcile import ranges
from tests.reconcile.conftest import World, until
from tests.reconcile.corruption import Table, draw, found, wrongly
from tests.reconcile.values import EQUAL, Pairs, pairs_at

SECONDS = float(os.environ.get("CUTOVER_PROVE_LIVE_SECONDS", "4"))
SEED = int(os.environ.get("CUTOVER_PROVE_LIVE_SEED", "1"))
#: Four writers, each with so many transactions a second of so many rows.
WRITERS, TRANSACTIONS, ROWS = 4, 50, 10
#: Seconds in which the subscription stands still; the bytes behind at which the writers wait for it.
STILL, MOST_BEHIND = 0.4, 8_000_000
_BEHIND = """
SELECT confirmed_flush_lsn >= $2::text::pg_lsn AS reached,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8 AS behind
FROM pg_replication_slots WHERE slot_name = $1
"""


@dataclass
class Traffic:
    """Writers at the source that leave the corrupt rows alone; `rows` is what they have committed."""

    world: World
    keys: list[Key]
    hot: list[Key]
    rows: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    held: bool = False
    stopping: bool = False

    async def write(self, seed: int) -> None:
        """Paced: a writer that was held up makes up for it, but never more than a second's worth."""
        rng = random.Random(seed)
        mine = self.keys[seed::WRITERS]
        async with self.world.pair.monolith.session("writer") as connection:
            await connection.execute("CREATE TEMP TABLE away (LIKE t)")
            due = time.monotonic()
            while not self.stopping:
                if self.held:
                    await asyncio.sleep(0.01)
                    continue
                await self._transaction(connection, rng, mine)
                due = max(due + 1 / TRANSACTIONS, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _transaction(self, connection: asyncpg.Connection, rng: random.Random, mine: list[Key]) -> None:
        keys = [int(key[0]) for key in rng.sample(mine, ROWS - 1)]
        match rng.randrange(5):
            case 0:  # away in one transaction, back in the next one
                gone = (
                    "WITH gone AS (DELETE FROM t WHERE key0 = ANY($1) RETURNING *) INSERT INTO away SELECT * FROM gone"
                )
                await connection.execute(gone, keys)
                await connection.execute("INSERT INTO t SELECT * FROM away")
                await connection.execute("TRUNCATE away")
            case 1:  # there and back, so that the row reads as before
                flip = "UPDATE t SET num = -num, txt = reverse(txt) WHERE key0 = ANY($1)"
                await connection.execute(flip, keys)
                await connection.execute(flip, keys)
            case _:
                await connection.execute(
                    "UPDATE t SET num = num + 0.1, dbl = -dbl, at = at + interval '1 microsecond', txt2 = txt2 || 'x' "
                    "WHERE key0 = ANY($1)", keys,
                )  # fmt: skip
        await connection.execute("UPDATE t SET num = num + 1 WHERE key0 = $1", int(rng.choice(self.hot)[0]))
        self.rows += ROWS


@asynccontextmanager
async def lagging(traffic: Traffic, name: str) -> AsyncIterator[None]:
    """The subscription's worker stands still and catches up, in turns.

    Where the machine cannot apply as fast as it writes, the writers wait: a lag without bound would prove nothing.
    """
    over = asyncio.Event()
    world = traffic.world

    async def turns() -> None:
        async with world.pair.monolith.session("lag") as source:

            async def caught_up(position: str) -> bool:
                row = await source.fetchrow(_BEHIND, name, position)
                assert row is not None
                traffic.held = row["behind"] > MOST_BEHIND
                return bool(row["reached"])

            while not over.is_set():
                await world.right.execute(f"ALTER SUBSCRIPTION {name} DISABLE")
                await asyncio.sleep(STILL)
                position = await source.fetchval("SELECT pg_current_wal_lsn()::text")
                await world.right.execute(f"ALTER SUBSCRIPTION {name} ENABLE")
                await until(partial(caught_up, position), 60)
            traffic.held = False

    task = asyncio.create_task(turns())
    try:
        yield
    finally:
        over.set()
        await task


@asynccontextmanager
async def writing(world: World, table: Table) -> AsyncIterator[Traffic]:
    corrupt = table.expected
    sound = [key for key in table.source if key not in corrupt]
    traffic = Traffic(world, sound[3:], sound[:3])
    traffic.tasks = [asyncio.create_task(traffic.write(n)) for n in range(WRITERS)]
    try:
        yield traffic
    finally:
        traffic.stopping = True
        await asyncio.gather(*traffic.tasks)


async def unsettled(world: World, report: reports.TableReport) -> set[Key]:
    rows = await world.control.fetch(
        "SELECT key_json FROM control.difference WHERE report_id = $1 AND NOT confirmed", report.id
    )
    return {key_from_json(row["key_json"]) for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(120 + 3 * SECONDS)
async def test_two_thousand_writes_a_second_and_a_lagging_stream_neither_hide_nor_feign_a_difference(
    world: World, live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 500)
    world.rules = world.rules.model_copy(
        update={"reconcile": Reconcile(every=timedelta(minutes=1), max_lag=timedelta(seconds=2))}
    )
    pairs: Pairs = [pair for pair in await pairs_at(world.left, world.right) if pair in EQUAL]
    table = draw(SEED, "integer", pairs, each=3, sound=3000)
    expected = table.expected
    await table.load(world.left, world.right)
    stream = await live("t", copy=False)
    in_flight = passes = 0
    began = time.monotonic()
    async with writing(world, table) as traffic, lagging(traffic, stream.name):
        while time.monotonic() < began + SECONDS or passes < 2:
            written = traffic.rows
            report = await world.compare("t", settle=stream.settle)
            passes += 1
            assert traffic.rows > written  # all through the pass
            assert wrongly(await found(world, report), expected) == {}, f"seed {SEED}, pass {passes}"
            busy = await unsettled(world, report)
            assert len(busy) == report.unsettled
            assert not busy & expected.keys(), f"seed {SEED}: a difference that stood still was not confirmed"
            in_flight += report.unsettled
        seconds = time.monotonic() - began
    record_property("rows_written_per_second", round(traffic.rows / seconds))
    record_property("unsettled", in_flight)
    print(f"{traffic.rows / seconds:.0f} rows written a second, {passes} passes, {in_flight} rows unsettled")
    await stream.settle()
    report = await world.compare("t", settle=stream.settle)
    assert wrongly(await found(world, report), expected) == {}
    assert report.unsettled == 0
