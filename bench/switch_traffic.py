"""Writers that follow the route through a RoutedPool, in a process of their own: `python -m bench.switch_traffic {…}`.

Closed loops: each sends its next request when the last one was answered (and `think_ms` later). By turns a row with a
number of its own is inserted and a version of the writer's own keys is raised, so that each acknowledged write can be
looked for afterwards. Commands come in by lines: `rows N` is answered once N more writes were acknowledged, `end` with
the `Traffic` of all.
"""

import asyncio
import json
import sys
import time
from array import array
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from statistics import median

import asyncpg

from cutover.dualwrite import RoutedPool, ServicePool
from cutover.dualwrite.gate import Counters
from cutover.postgres.databases import SIDES, Database

#: Keys of each writer whose versions it raises.
KEYS = 20
INSERT = "INSERT INTO trades (writer, number, symbol, price) VALUES ($1, $2, 'ABC', 1.5)"
UPDATE = "UPDATE positions SET version = $2, at = clock_timestamp() WHERE id = $1"
#: Seconds that one answer of the writers may take.
_PATIENCE = 120.0


@dataclass(frozen=True)
class Wanted:
    """Who writes where; DSNs of the control database and of both sides."""

    migration: str
    service: str
    control: str
    monolith: str
    target: str
    writers: int
    think_ms: float


@dataclass
class Traffic:
    """What the writers met, milliseconds, and what they were promised."""

    requests: int = 0
    per_second: float = 0.0
    p50_ms: float = 0.0
    #: Of requests that met a pause: the whole latency, and how long the pool held them.
    waits: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    retried: int = 0
    #: Requests that ended with an error, by its kind.
    failures: dict[str, int] = field(default_factory=dict)
    #: By writer: the last number that was sent, and those of them that were not acknowledged.
    last: list[int] = field(default_factory=list)
    unacknowledged: list[list[int]] = field(default_factory=list)
    #: By key: the last version that was acknowledged.
    versions: dict[int, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


class Holds(Counters):
    """The gate's counters, which also tell each task how long its request was held."""

    def __init__(self) -> None:
        super().__init__()
        self._by_task: dict[asyncio.Task[object] | None, float] = {}

    def waited(self, seconds: float) -> None:
        super().waited(seconds)
        self._by_task[asyncio.current_task()] = seconds

    def taken(self) -> float | None:
        """Seconds for which the present task's last request was held; None where it was not."""
        return self._by_task.pop(asyncio.current_task(), None)


class Writers:
    """The closed loops and their log."""

    def __init__(self, pool: ServicePool, wanted: Wanted) -> None:
        self._pool = pool
        self._wanted = wanted
        self._holds = pool.gate.counters = Holds()
        self._latencies = array("d")
        self._ended = False
        self.traffic = Traffic(last=[0] * wanted.writers, unacknowledged=[[] for _ in range(wanted.writers)])
        self._failures: Counter[str] = Counter()
        self.acknowledged = 0

    async def write(self, writer: int) -> None:
        """Until `end`."""
        turn, versions = 0, 0
        while not self._ended:
            turn += 1
            if turn % 2:
                number = self.traffic.last[writer] = self.traffic.last[writer] + 1
                if not await self._request(INSERT, writer, number, "INSERT 0 1"):
                    self.traffic.unacknowledged[writer].append(number)
            else:
                versions += 1
                key = writer * KEYS + versions % KEYS
                if await self._request(UPDATE, key, versions, "UPDATE 1"):
                    self.traffic.versions[key] = versions
            if self._wanted.think_ms:
                await asyncio.sleep(self._wanted.think_ms / 1000)

    async def _request(self, sql: str, first: int, second: int, expected: str) -> bool:
        """Whether the write was acknowledged; an error of any kind is a request that failed."""
        begun = time.perf_counter()
        try:
            answer = await self._pool.execute(sql, first, second)
            if answer != expected:
                raise LookupError(answer)
        except Exception as error:
            self._failures[type(error).__name__] += 1
            return False
        finally:
            took = (time.perf_counter() - begun) * 1000
            self._latencies.append(took)
            held = self._holds.taken()
            if held is not None:
                self.traffic.waits.append(round(took, 3))
                self.traffic.held.append(round(held * 1000, 3))
        self.acknowledged += 1
        return True

    async def more(self, rows: int) -> None:
        """Returns once so many more writes were acknowledged."""
        enough = self.acknowledged + rows
        while self.acknowledged < enough:
            await asyncio.sleep(0.005)

    async def end(self, tasks: list[asyncio.Task[None]], seconds: float) -> Traffic:
        self._ended = True
        await asyncio.gather(*tasks)
        traffic = self.traffic
        traffic.requests = len(self._latencies)
        traffic.per_second = traffic.requests / seconds
        traffic.p50_ms = median(self._latencies)
        traffic.retried = self._holds.retried
        traffic.failures = dict(self._failures)
        return traffic


async def _commands() -> AsyncIterator[list[str]]:
    """The words of each line of standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().split()


async def serve(wanted: Wanted) -> None:
    """Writes until it is told to end, or nobody is left who could tell it."""
    sides = {"monolith": wanted.monolith, "service": wanted.target}
    async with await RoutedPool.open(
        migration=wanted.migration, services=[wanted.service], control=Database("control", wanted.control),
        database={wanted.service: {side: Database(side, sides[side]) for side in SIDES}},
        application="bench", min_size=wanted.writers, max_size=wanted.writers,
    ) as pool:  # fmt: skip
        writers = Writers(pool.service(wanted.service), wanted)
        begun = time.perf_counter()
        tasks = [asyncio.create_task(writers.write(number)) for number in range(wanted.writers)]
        async for command, *arguments in _commands():
            if command == "rows":
                await writers.more(int(arguments[0]))
                print(writers.acknowledged, flush=True)
            elif command == "end":
                traffic = await writers.end(tasks, time.perf_counter() - begun)
                print(json.dumps(asdict(traffic)), flush=True)
                return


class TrafficProcess:
    """The writers, seen from the process that measures."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def _ask(self, command: str) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n".encode())
        async with asyncio.timeout(_PATIENCE):
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the writers ended; their error stands above")
        return answer

    async def more(self, rows: int) -> None:
        """Returns once so many more writes were acknowledged."""
        await self._ask(f"rows {rows}")

    async def end(self) -> Traffic:
        """Ends the writers; what they met."""
        found = json.loads(await self._ask("end"))
        return Traffic(**{**found, "versions": {int(key): version for key, version in found["versions"].items()}})


@asynccontextmanager
async def traffic(wanted: Wanted) -> AsyncIterator[TrafficProcess]:
    """Writers for a block; killed at its end where they were not told to end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.switch_traffic", json.dumps(asdict(wanted)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 28,
    )  # fmt: skip
    try:
        yield TrafficProcess(process)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def lost(primary: asyncpg.Connection, traffic: Traffic) -> int:
    """Acknowledged writes that the primary does not have: rows that are missing, versions that are behind."""
    there = {(row["writer"], row["number"]) for row in await primary.fetch("SELECT writer, number FROM trades")}
    count = 0
    for writer, last in enumerate(traffic.last):
        promised = set(range(1, last + 1)) - set(traffic.unacknowledged[writer])
        count += sum((writer, number) not in there for number in promised)
    versions: dict[int, int] = {
        row["id"]: row["version"] for row in await primary.fetch("SELECT id, version FROM positions")
    }
    return count + sum(versions.get(key, 0) < version for key, version in traffic.versions.items())


if __name__ == "__main__":
    asyncio.run(serve(Wanted(**json.loads(sys.argv[1]))))
