"""`make bench-reconcile`: what a pass costs, beside the floor and beside other tools, in rounds that alternate.

ROWS (5000000), ROUNDS (3), TOOLS (1; 0 leaves the other tools out), WRITER_SECONDS (20). Prints progress to stderr, a
table, and as the last line one JSON object. A figure that is wanted cold and warm is the worse of the two there.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field

from bench.floor import floor
from bench.ground import DATABASE, TABLE, Ground, Scattered, ground
from bench.processes import Load, Writers, pass_over
from bench.tools import TOOLS, Tool
from cutover.control.database import Control
from cutover.postgres import epoch
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName
from cutover.streams.logical import LogicalStream

SMALL_TABLE = "trades_small"
DIFFERENCES = 5_000
MEGABYTE = 1_000_000


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass
class Figures:
    """All that was measured, by name, one value a round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)
        say(f"  {name:<34} {value:10.3f}")

    def median(self, name: str) -> float:
        """The median of the rounds; not a number where it was not measured."""
        return statistics.median(self.values[name]) if name in self.values else float("nan")


@dataclass
class Bench:
    """One run."""

    ground: Ground
    rows: int
    rounds: int
    tools: tuple[Tool, ...]
    writer_seconds: float
    figures: Figures = field(default_factory=Figures)

    @property
    def differences(self) -> int:
        return min(DIFFERENCES, self.rows // 10)

    async def prepare(self) -> None:
        for tool in self.tools:
            say(f"{tool.name}: its environment")
            tool.install()
        control = await Control.open(Database("control", self.ground.target.dsn("control")))
        await control.migrate()
        await control.close()
        for table, rows in ((TABLE, self.rows), (SMALL_TABLE, min(self.rows, 1_000_000))):
            say(f"{rows} rows of {table} on both sides")
            size = await self.ground.fill(table, rows)
            say(f"  {size / rows:.0f} bytes a row")

    async def equal(self, number: int, state: str) -> None:
        """Equal tables; `cold` before each of them the servers are restarted without their files in memory."""
        jobs = ["floor", "pass", *(tool.name for tool in self.tools)]
        for job in jobs[number % len(jobs) :] + jobs[: number % len(jobs)]:
            if state == "cold":
                self.ground.chill()
            if job == "floor":
                self.figures.add(f"{state} floor s", await floor(self.ground, TABLE))
            elif job == "pass":
                self._equal_pass(state)
            else:
                tool = next(t for t in self.tools if t.name == job)
                seconds, keys = tool.compare(self.ground, TABLE)
                if keys:
                    raise RuntimeError(f"{job} found {len(keys)} differences in equal tables")
                self.figures.add(f"{state} {job} s", seconds)

    def _equal_pass(self, state: str) -> None:
        found = pass_over(self.ground, TABLE)
        if found.differing or found.unsettled or found.rows != self.rows:
            raise RuntimeError(f"the pass over equal tables went wrong: {found}")
        self.figures.add(f"{state} pass s", found.seconds)
        self.figures.add("pass MB moved", found.bytes_moved / MEGABYTE)
        self.figures.add("pass MB on sockets", found.socket_bytes / MEGABYTE)
        self.figures.add("pass RSS MB", found.rss_mb)

    async def scattered(self, state: str) -> None:
        """The same with rows that differ; every key and its column must be reported, and nothing else."""
        rows = Scattered.over(self.ground.target, TABLE, self.rows, self.differences)
        await rows.differ()
        if state == "cold":
            self.ground.chill()
        found = pass_over(self.ground, TABLE)
        if found.differing != {str(key): [column] for key, column in rows.keys.items()}:
            raise RuntimeError(f"the pass found {len(found.differing)} keys, not the {len(rows.keys)} that differ")
        self.figures.add(f"{state} scattered pass s", found.seconds)
        self.figures.add("scattered pass MB moved", found.bytes_moved / MEGABYTE)
        self.figures.add("scattered pass RSS MB", found.rss_mb)
        if self.tools:
            tool = self.faster(state)
            if state == "cold":
                self.ground.chill()
            seconds, keys = tool.compare(self.ground, TABLE)
            say(f"  {tool.name} reports {len(keys & rows.keys.keys())} of the {len(rows.keys)} keys")
            # data-diff does not see one of the kinds of change; far fewer means that it broke off
            if len(keys & rows.keys.keys()) < 0.8 * len(rows.keys):
                raise RuntimeError(f"{tool.name} broke off: its time would say nothing")
            self.figures.add(f"{state} scattered {tool.name} s", seconds)
        await rows.agree()

    def faster(self, state: str) -> Tool:
        """The other tool that is the faster one over equal tables in this run."""
        return min(self.tools, key=lambda tool: self.figures.median(f"{state} {tool.name} s"))

    async def small(self) -> None:
        self.figures.add("small pass RSS MB", pass_over(self.ground, SMALL_TABLE).rss_mb)

    async def writers(self) -> None:
        """Latency of writers at the source, without and with passes, while the product's logical stream runs."""
        source, target = (Database(c.name, c.dsn(DATABASE)) for c in self.ground.both)
        pair = Pair("bench", "svc", source, target, (TableName("public", TABLE),))
        async with source.session() as left, target.session() as right:
            await epoch.install(left, "svc", "monolith")
            await epoch.install(right, "svc", "service")
        stream = LogicalStream(pair, "forward")
        await stream.start(copy=False)
        while not await stream.ready():
            await asyncio.sleep(0.1)
        self._load(2.0)  # caches, and the server's first full-page images
        for number in range(self.rounds):
            for busy in (False, True) if number % 2 == 0 else (True, False):
                load = self._load_with_passes() if busy else self._load(self.writer_seconds)
                name = "writers with pass" if busy else "writers alone"
                self.figures.add(f"{name} p50 ms", load.p50_ms)
                self.figures.add(f"{name} p99 ms", load.p99_ms)
                self.figures.add(f"{name} writes/s", load.per_second)
                await stream.await_marker(await stream.put_marker(), 300.0)
        await stream.drop()

    def _load(self, seconds: float) -> Load:
        with Writers(self.ground, TABLE, self.rows, seconds) as writers:
            return writers.load()

    def _load_with_passes(self) -> Load:
        with Writers(self.ground, TABLE, self.rows, self.writer_seconds) as writers:
            while writers.writing:
                found = pass_over(self.ground, TABLE, stream=True)
                if found.differing:
                    raise RuntimeError(f"{len(found.differing)} false differences under writes")
                self.figures.add("pass under writes s", found.seconds)
            return writers.load()

    def result(self) -> dict[str, float | None]:
        """The figures that have goals, each the worse one of cold and warm."""
        median = self.figures.median
        states = ("cold", "warm")
        floors = [median(f"{s} pass s") / median(f"{s} floor s") for s in states]
        scattered = [median(f"{s} scattered pass s") / median(f"{s} pass s") for s in states]
        found: dict[str, float] = {"equal_to_floor": max(floors), "scattered_to_equal": max(scattered)}
        if self.tools:
            names = [(s, self.faster(s).name) for s in states]
            found["equal_to_tool"] = max(median(f"{s} pass s") / median(f"{s} {tool} s") for s, tool in names)
            found["scattered_to_tool"] = max(
                median(f"{s} scattered pass s") / median(f"{s} scattered {tool} s") for s, tool in names
            )
        found["rss_mb_1m"] = max(self.figures.values["small pass RSS MB"])
        found["rss_mb_5m"] = max(self.figures.values["pass RSS MB"])
        found["mb_moved_equal"] = max(self.figures.values["pass MB on sockets"])
        found["writer_p50_cost"] = median("writers with pass p50 ms") / median("writers alone p50 ms") - 1
        order = ("equal_to_floor", "equal_to_tool", "scattered_to_equal", "scattered_to_tool", "rss_mb_1m",
                 "rss_mb_5m", "mb_moved_equal", "writer_p50_cost")  # fmt: skip
        return {name: round(found[name], 3) if name in found else None for name in order}


async def run(rows: int, rounds: int, tools: tuple[Tool, ...], writer_seconds: float) -> None:
    with ground() as both:
        bench = Bench(both, rows, rounds, tools, writer_seconds)
        await bench.prepare()
        await floor(both, TABLE)
        for number in range(rounds):
            for state in ("warm", "cold"):
                say(f"round {number + 1} of {rounds}, {state}")
                await bench.equal(number, state)
                await bench.scattered(state)
            await bench.small()
        say("writers")
        await bench.writers()
        print(f"PostgreSQL {await both.version()}, {os.cpu_count()} cores, {rows} rows, {rounds} rounds")
    print(f"{'':<34} {'median':>10}  rounds")
    for name, values in bench.figures.values.items():
        print(f"{name:<34} {statistics.median(values):10.3f}  {' '.join(f'{v:.3f}' for v in values)}")
    print(json.dumps(bench.result()))


def main() -> None:
    environment = os.environ
    asyncio.run(
        run(
            int(environment.get("ROWS") or 5_000_000),
            int(environment.get("ROUNDS") or 3),
            () if environment.get("TOOLS") == "0" else TOOLS,
            float(environment.get("WRITER_SECONDS") or 20),
        )
    )


if __name__ == "__main__":
    main()
