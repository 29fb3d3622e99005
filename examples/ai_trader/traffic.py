"""One process of the trading platform's traffic: some tasks in a closed loop, over RoutedPool.

    python -m examples.ai_trader.traffic --client 3 --log traffic-3.jsonl --rate 100 --seconds 60 --migration ai-trader

`--client` is unique among the processes that run at the same time. SIGTERM ends it gracefully: what is under way is
finished and written to the log. Killed with SIGKILL it leaves writes of unknown outcome, as a real one does.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutover.dualwrite.routed_pool import RoutedPool
from cutover.errors import ConfigError, CutoverError
from cutover.postgres.databases import Database, Side
from cutover.settings import CONTROL, Settings
from examples.ai_trader.client import Client, Tally
from examples.ai_trader.oplog import OpLog
from examples.ai_trader.roles import as_role
from examples.ai_trader.tables import SERVICES
from examples.ai_trader.workload import LANES, Lane

#: After a pause the rate is not made up for by a burst; seconds of it that may be.
CATCH_UP = 0.2


@dataclass(frozen=True)
class Options:
    """What one process is asked to do; `rate` is rows written a second, over all tasks; 0 seconds: until SIGTERM."""

    client: int
    log: Path
    rate: float = 100.0
    seconds: float = 0.0
    tasks: int = 6
    reads: float = 0.3
    migration: str = "ai-trader"
    role: str = "trader_app"
    stats: Path | None = None


class Pace:
    """Lets rows through at a steady rate; a task that is late waits no longer."""

    def __init__(self, rate: float) -> None:
        self._each = 1 / rate
        self._next = time.monotonic()

    async def wait(self) -> None:
        delay = self._next - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)

    def spent(self, rows: int) -> None:
        self._next = max(self._next, time.monotonic() - CATCH_UP) + rows * self._each


async def run(
    options: Options,
    control: Database,
    database: Callable[[str, Side], Database],
    stop: asyncio.Event,
    appliers: Callable[[str, Side], Database] | None = None,
) -> dict[str, Any]:
    """Traffic until `stop` is set or the seconds are over; gives the statistics that `main` writes.

    `database(service, side)` is where a service's tables are; `appliers` the same under cutover's own role.
    Raises CutoverError if it cannot begin.
    """
    if not 0 <= options.client < LANES // options.tasks:
        raise ConfigError(
            f"--client is {options.client}; with {options.tasks} tasks it is 0 to {LANES // options.tasks - 1}"
        )
    tally = Tally()
    begun = time.monotonic()
    log = OpLog(options.log, run=f"c{options.client}.{os.getpid()}.{time.time_ns() // 1_000_000:x}")
    try:
        async with await RoutedPool.open(
            migration=options.migration,
            services=list(SERVICES),
            control=control,
            database=database,
            appliers=appliers,
            application=f"traffic-{options.client}",
            min_size=1,
            max_size=options.tasks,
        ) as pool:
            client = Client(pool, log, tally)
            pace = Pace(options.rate)

            async def task(number: int) -> None:
                lane = Lane(client, number)
                await lane.adopt()
                due = 0.0
                while not stop.is_set():
                    await pace.wait()
                    if stop.is_set():
                        break
                    rows = await lane.act()
                    pace.spent(rows)
                    due += options.reads * rows
                    while due >= 1:
                        due -= 1
                        await lane.look()

            async with asyncio.TaskGroup() as group:
                for index in range(options.tasks):
                    group.create_task(task(options.client * options.tasks + index))
                if options.seconds:
                    group.create_task(stop_after(stop, options.seconds))
            waits = pool.stats()
    finally:
        await log.close()
    seconds = time.monotonic() - begun
    used = time.process_time()
    return {
        "client": options.client,
        "run": log.run,
        "seconds": round(seconds, 3),
        "cpu_share": round(used / seconds, 4),
        "writes_per_second": round(tally.writes / seconds, 1),
        **tally.as_json(),
        "retried": sum(counters.retried for counters in waits.values()),
        "held": sum(counters.held for counters in waits.values()),
        "longest_wait_ms": round(max(counters.longest_wait_ms for counters in waits.values()), 1),
        "services": {service: asdict(counters) for service, counters in waits.items()},
    }


async def stop_after(stop: asyncio.Event, seconds: float) -> None:
    """Sets `stop` after so many seconds; returns once it is set by anybody."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        stop.set()


async def _main(options: Options) -> None:
    settings = Settings.from_environment()
    monolith = as_role(settings.database("monolith"), options.role)
    targets = {service: as_role(settings.database(name), options.role) for service, name in SERVICES.items()}
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stats = await run(
        options,
        settings.database(CONTROL),
        lambda service, side: monolith if side == "monolith" else targets[service],
        stop,
        # what a strong write needs at the side that follows: a role that may write behind the fence
        lambda service, side: settings.database("monolith" if side == "monolith" else SERVICES[service]),
    )
    text = json.dumps(stats)
    if options.stats is not None:
        # Written aside and moved: a reader never sees half of it.
        part = options.stats.with_suffix(".part")
        part.write_text(text + "\n")
        part.replace(options.stats)
    print(text, flush=True)


def main() -> int:
    """The command; exit status 0 unless it could not begin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--client", type=int, required=True, help="number of this process, unique while it runs")
    parser.add_argument("--log", type=Path, required=True, help="JSONL file that its writes are appended to")
    parser.add_argument("--rate", type=float, default=100.0, help="rows written a second")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: until SIGTERM")
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--reads", type=float, default=0.3, help="reads for each row written")
    parser.add_argument("--migration", default="ai-trader")
    parser.add_argument("--role", default="trader_app", help="role to connect as; '' for the one in the DSN")
    parser.add_argument("--stats", type=Path, help="JSON file for the statistics at the end")
    try:
        asyncio.run(_main(Options(**vars(parser.parse_args()))))
    except CutoverError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 1
    except BaseExceptionGroup as group:
        refused, rest = group.split(CutoverError)
        if refused is None or rest is not None:
            raise
        print(f"traffic: {refused.exceptions[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
