"""One process of the clients that a migration must not harm: writers and readers in closed loops, over RoutedPool.

    python -m chaos.traffic --client 0 --clients 2 --service strong --service logical --log client-0.jsonl --rate 100

`--clients`, `--loops` and `--keys` are the same for all processes of a run, and say which keys belong to whom. SIGTERM
ends it: what is under way is finished, or noted as unknown after `--grace` seconds. Killed with SIGKILL it leaves
operations of unknown outcome; started again with the same log it reads the truth of its keys first.
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

from chaos.client import Client
from chaos.lanes import Lane, Reader, recall
from chaos.oplog import Log
from chaos.tables import MIGRATION, SERVICES, at_side, require_services
from cutover.dualwrite.routed_pool import RoutedPool
from cutover.errors import ConfigError, CutoverError
from cutover.postgres.databases import Database, Side
from cutover.settings import CONTROL, Settings
from examples.ai_trader.roles import as_role
from examples.ai_trader.traffic import Pace, stop_after

#: Seconds between two tries to read the truth of a lane's keys.
_AGAIN = 0.2


@dataclass(frozen=True)
class Options:
    """What one process is asked to do. `rate` (rows written) and `reads` are a second, over all loops of all services;
    `loops` and `readers` are for each service; 0 seconds: until SIGTERM."""

    log: Path
    service: list[str]
    client: int = 0
    clients: int = 1
    loops: int = 4
    readers: int = 1
    keys: int = 50
    shared: int = 3
    rate: float = 100.0
    reads: float = 30.0
    seconds: float = 0.0
    grace: float = 15.0
    seed: int = 0
    migration: str = MIGRATION
    role: str = ""
    stats: Path | None = None

    def check(self) -> None:
        """Raises ConfigError."""
        require_services(self.service)
        if not 0 <= self.client < self.clients:
            raise ConfigError(f"--client is {self.client}; with --clients {self.clients} it is 0 to {self.clients - 1}")
        if min(self.loops, self.keys, self.rate) <= 0 or min(self.readers, self.shared, self.reads) < 0:
            raise ConfigError("--loops, --keys and --rate are above 0; --readers, --shared and --reads not below it")


async def run(
    options: Options,
    control: Database,
    database: Callable[[str, Side], Database],
    appliers: Callable[[str, Side], Database],
    stop: asyncio.Event,
) -> dict[str, Any]:
    """Traffic until `stop` is set or the seconds are over; gives the statistics that `main` writes.

    `database(service, side)` is where a service's tables are; `appliers` the same under cutover's own role, which a
    strong write needs at the side that follows. Raises CutoverError if it cannot begin.
    """
    options.check()
    recalled = await asyncio.to_thread(recall, options.log)
    begun = time.monotonic()
    log = Log(options.log, run=f"c{options.client}.{os.getpid()}.{time.time_ns() // 1_000_000:x}")
    try:
        async with await RoutedPool.open(
            migration=options.migration,
            services=options.service,
            control=control,
            database=lambda service, side: at_side(database(service, side), side),
            appliers=appliers,
            application=f"chaos-{options.client}",
            min_size=1,
            max_size=(options.loops + options.readers) * len(options.service),
        ) as pool:
            clients = {service: Client(pool, log, service) for service in options.service}
            pace = Pace(options.rate)
            reading = Pace(options.reads) if options.reads else None
            loops: list[asyncio.Task[None]] = []
            shape = {"keys": options.keys, "shared": options.shared, "seed": options.seed}
            lanes = options.clients * options.loops
            for service, client in clients.items():
                first = options.client * options.loops
                ours = [Lane(client, first + index, lanes, **shape) for index in range(options.loops)]
                loops += [asyncio.create_task(_write(lane, recalled.get(service, {}), pace, stop)) for lane in ours]
                for index in range(options.readers if reading else 0):
                    reader = Reader(client, options.client * options.readers + index, lanes, ours, **shape)
                    assert reading is not None
                    loops.append(asyncio.create_task(_read(reader, reading, stop)))
            await _until_stopped(loops, stop, options)
            waits = pool.stats()
    finally:
        await log.close()
    seconds = time.monotonic() - begun
    return {
        "client": options.client,
        "run": log.run,
        "seconds": round(seconds, 3),
        "cpu_share": round(time.process_time() / seconds, 4),
        "events": log.counts,
        "reasons": {service: client.reasons for service, client in clients.items()},
        "services": {service: asdict(counters) for service, counters in waits.items()},
    }


async def _write(lane: Lane, recalled: dict[int, Any], pace: Pace, stop: asyncio.Event) -> None:
    while not stop.is_set() and not await lane.begin(recalled):
        await asyncio.sleep(_AGAIN)
    while not stop.is_set():
        await pace.wait()
        if not stop.is_set():
            pace.spent(1)  # before, so that the loops do not all go at once
            rows = await lane.act()
            pace.spent(rows - 1)


async def _read(reader: Reader, pace: Pace, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await pace.wait()
        if not stop.is_set():
            pace.spent(1)
            await reader.act()


async def _until_stopped(loops: list[asyncio.Task[None]], stop: asyncio.Event, options: Options) -> None:
    """Returns once all loops have ended; raises what one of them raised."""
    stopping = asyncio.create_task(stop_after(stop, options.seconds) if options.seconds else _wait(stop))
    try:
        await asyncio.wait({stopping, *loops}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.wait(loops, timeout=options.grace)
    finally:
        stopping.cancel()
        for task in loops:
            task.cancel()
    ended = await asyncio.gather(*loops, return_exceptions=True)
    for error in ended:
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


async def _main(options: Options) -> None:
    settings = Settings.from_environment()

    def database(service: str, side: Side) -> Database:
        return settings.database("monolith" if side == "monolith" else SERVICES[service])

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stats = await run(
        options,
        settings.database(CONTROL),
        lambda service, side: as_role(database(service, side), options.role),
        database,
        stop,
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
    parser.add_argument("--log", type=Path, required=True, help="JSONL file that its operations are appended to")
    parser.add_argument("--service", action="append", required=True, help="may be given several times")
    parser.add_argument("--client", type=int, default=0, help="number of this process, unique while it runs")
    parser.add_argument("--clients", type=int, default=1, help="how many processes the keys are divided among")
    parser.add_argument("--loops", type=int, default=4, help="writers of each service, in this process")
    parser.add_argument("--readers", type=int, default=1, help="readers of each service, in this process")
    parser.add_argument("--keys", type=int, default=50, help="keys that a writer works on at a time")
    parser.add_argument("--shared", type=int, default=3, help="counters of each service that everybody increments")
    parser.add_argument("--rate", type=float, default=100.0, help="rows written a second, by all loops together")
    parser.add_argument("--reads", type=float, default=30.0, help="reads a second, by all readers together")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: until SIGTERM")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds after SIGTERM for what is under way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--migration", default=MIGRATION)
    parser.add_argument("--role", default="", help="role to connect as; '' for the one in the DSN")
    parser.add_argument("--stats", type=Path, help="JSON file for the statistics at the end")
    try:
        asyncio.run(_main(Options(**vars(parser.parse_args()))))
    except CutoverError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
