"""`make bench-dualwrite`: what a write costs at each level, beside a single write of asyncpg, in rounds that alternate.

ROUNDS (5), WRITES (400: of one writer in each round and mode), SECONDS (3: of twenty writers), ROWS (5000000: of the
first copy). Two clusters with fsync on; every mode in every round, in another order each time; the first round warms up
and is left out. Prints a table, and as the last line one JSON object; ratios are to the single write of the same run.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import asyncpg

from bench import ground
from bench.outbox import DDL, FSYNC, RelayProcess, copy, relay, visible
from cutover import pairs
from cutover.control import plans
from cutover.control.database import Control
from cutover.devstack.cluster import Cluster
from cutover.dualwrite import RoutedPool, ServicePool
from cutover.flags import store
from cutover.plan.models import Consistency, Plan
from cutover.postgres import epoch, fence
from cutover.postgres.databases import Database, Pair
from cutover.streams.outbox import OutboxStream

SERVICE = "trading"
LEVELS: tuple[Consistency, ...] = ("eventual", "best_effort", "strong")
SINGLE = "single"
MANY = 20
INSERT = "INSERT INTO trades (account, symbol, price, note) VALUES ($1, 'ABC', 1.5, 'a note of some length')"
UPDATE = "UPDATE trades SET note = 'another' WHERE id = $1"

Execute = Callable[[str, int], Awaitable[object]]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def database(cluster: Cluster, name: str) -> Database:
    connection = await asyncpg.connect(cluster.superuser_dsn("postgres"))
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return Database(name, cluster.superuser_dsn(name))


async def streamed(clusters: Sequence[Cluster], control: Control) -> Pair:
    """A service whose outbox stream has been started."""
    rules = {"database": "service_db", "stream": "outbox", "consistency": "strong", "tables": {"trades": {}}}
    plan = Plan.model_validate(
        {"migration": "bench", "monolith": {"database": "monolith"}, "services": {SERVICE: rules}}
    )
    both = {
        "monolith": await database(clusters[0], "monolith"),
        "service_db": await database(clusters[1], "service_db"),
    }
    pair = pairs.pair(plan, SERVICE, lambda name: both[name])
    for side in ("monolith", "service"):
        async with pair.at(side).session() as connection:
            await connection.execute(DDL)
            await epoch.install(connection, SERVICE, side)
            await fence.install(connection, SERVICE, pair.tables, closed=side == "service")
    async with pair.target.session() as connection:
        await fence.make_always(connection, pair.tables)
    await plans.register(control, plan, "bench")
    await store.ensure(control, "bench", SERVICE)
    await OutboxStream(pair, "forward").start(copy=False)
    return pair


class Modes:
    """A way to execute a statement, by the name of its mode."""

    def __init__(self, plain: asyncpg.Pool, routed: ServicePool) -> None:
        self._plain = plain
        self._routed = routed

    def named(self, name: str) -> Execute:
        if name == SINGLE:
            return self._plain.execute
        level = next(level for level in LEVELS if level == name)
        return lambda sql, number: self._routed.execute(sql, number, level=level)


async def one_writer(execute: Execute, writes: int) -> dict[str, float]:
    """Milliseconds, the median of so many inserts and as many updates of rows that are there."""
    found = {}
    for kind, sql in (("insert", INSERT), ("update", UPDATE)):
        took = []
        for number in range(1, writes + 1):
            begun = time.perf_counter()
            await execute(sql, number)
            took.append((time.perf_counter() - begun) * 1000)
        found[kind] = statistics.median(took)
    return found


async def many_writers(execute: Execute, seconds: float) -> tuple[float, float]:
    """Milliseconds (median) and writes a second of twenty closed loops: an insert and an update in turn."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def loop(number: int) -> None:
        turn = 0
        while (begun := time.perf_counter()) < end:
            await execute(INSERT if turn % 2 == 0 else UPDATE, 1 + number * 10 + turn % 10)
            took.append((time.perf_counter() - begun) * 1000)
            turn += 1

    await asyncio.gather(*(loop(number) for number in range(MANY)))
    return statistics.median(took), len(took) / seconds


async def levels(clusters: Sequence[Cluster], rounds: int, writes: int, seconds: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        control_db = await database(clusters[1], "control")
        control = await Control.open(control_db)
        stack.push_async_callback(control.close)
        await control.migrate()
        pair = await streamed(clusters, control)
        alone = await database(clusters[0], "alone")
        async with alone.session() as connection:
            await connection.execute(DDL)
        plain = await stack.enter_async_context(asyncpg.create_pool(alone.dsn, min_size=MANY, max_size=MANY))
        routed = await RoutedPool.open(
            migration="bench", services=[SERVICE], control=control_db,
            database={SERVICE: {side: pair.at(side) for side in ("monolith", "service")}},
            application="bench", min_size=MANY, max_size=MANY,
        )  # fmt: skip
        stack.push_async_callback(routed.close)
        modes = Modes(plain, routed.service(SERVICE))
        names = [SINGLE, *LEVELS]
        with RelayProcess(pair):
            for number in range(rounds + 1):
                say(f"round {number} of {rounds}")
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    execute = modes.named(name)
                    one = await one_writer(execute, writes)
                    many, per_second = await many_writers(execute, seconds)
                    if number == 0:
                        continue
                    for kind, value in one.items():
                        found[f"{name} {kind} p50 ms, 1 writer"].append(value)
                    found[f"{name} p50 ms, {MANY} writers"].append(many)
                    found[f"{name} writes/s, {MANY} writers"].append(per_second)
            stream = OutboxStream(pair, "forward")
            await stream.await_marker(await stream.put_marker(), 300)
    return found


def result(found: dict[str, list[float]], relayed: dict[str, float], seen: dict[str, float], copied: dict[str, float]) \
        -> dict[str, float]:  # fmt: skip
    """The figures that have goals: of insert and update the worse one."""

    def ratio(name: str) -> float:
        return max(
            statistics.median(found[f"{name} {kind} p50 ms, 1 writer"])
            / statistics.median(found[f"{SINGLE} {kind} p50 ms, 1 writer"])
            for kind in ("insert", "update")
        )

    def of_many(name: str, what: str) -> float:
        return statistics.median(found[f"{name} {what}, {MANY} writers"]) / statistics.median(
            found[f"{SINGLE} {what}, {MANY} writers"]
        )

    return {
        "eventual_p50_1": round(ratio("eventual"), 3),
        "eventual_p50_20": round(of_many("eventual", "p50 ms"), 3),
        "best_effort_p50_1": round(ratio("best_effort"), 3),
        "strong_p50_1": round(ratio("strong"), 3),
        "eventual_tps_20": round(of_many("eventual", "writes/s"), 3),
        "relay_rows_s": min(relayed["insert_rows_cpu_second"], relayed["update_rows_cpu_second"]),
        "visible_p99_ms": seen["p99_ms"],
        "backfill_to_pipe": round(copied["seconds"] / copied["pipe_seconds"], 3),
    }


async def measure(clusters: list[Cluster]) -> None:
    environment = os.environ
    rounds, writes = int(environment.get("ROUNDS") or 5), int(environment.get("WRITES") or 400)
    found = await levels(clusters, rounds, writes, float(environment.get("SECONDS") or 3))
    say("relay")
    relayed = await relay(clusters)
    say("visible")
    seen = await visible(clusters)
    say("first copy")
    copied = await copy(clusters, int(environment.get("ROWS") or 5_000_000))
    print(f"{os.cpu_count()} cores, {rounds} rounds")
    for name, values in found.items():
        print(f"{name:<42} {statistics.median(values):9.3f}  {' '.join(f'{v:.3f}' for v in values)}")
    for title, figures in (("relay", relayed), ("visible", seen), ("first copy", copied)):
        print(f"{title:<12} {figures}")
    print(json.dumps(result(found, relayed, seen, copied)))


def main() -> None:
    settings = {**FSYNC, "max_prepared_transactions": "64", "max_connections": "200"}
    with ground.clusters(("monolith", "services"), settings) as both:
        asyncio.run(measure([*both]))


if __name__ == "__main__":
    main()
