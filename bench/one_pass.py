"""The product's own pass over one table, in a process of its own: `python -m bench.one_pass`, arguments as JSON.

Prints one JSON object: seconds, the report's figures, bytes that came and went over the sockets of both sides, and
the most memory that the process has had.
"""

import asyncio
import json
import resource
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg

from cutover.control import reports
from cutover.control.database import Control
from cutover.plan.models import Reconcile, Table
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import key_from_json
from cutover.reconcile.pace import Looking, Pace
from cutover.reconcile.passes import Job, Settle, run_pass
from cutover.streams.base import settling
from cutover.streams.logical import LogicalStream

#: Where the kernel's tcp_info has tcpi_bytes_acked and tcpi_bytes_received (Linux 4.1 and newer).
_TCP_BYTES = struct.Struct("@QQ")
_TCP_BYTES_AT = 120
#: Seconds of lag from which a pass gives way: half of the plan's default `max_lag`.
LAG_LIMIT = 300.0


@dataclass(frozen=True)
class Wanted:
    """What to compare. With `stream`, the pass settles by its markers, and heeds them as workers do."""

    source: str
    target: str
    control: str
    table: str
    stream: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a pass took and found; `differing` has each key with the columns that the report names."""

    seconds: float
    rows: int
    bytes_moved: int
    socket_bytes: int
    rss_mb: float
    differing: dict[str, list[str]]
    unsettled: int


_travelled: list[int] = []


class Counted(Database):
    """A database whose sessions' bytes are counted."""

    @asynccontextmanager
    async def session(self, application_name: str = "cutover", **settings: str) -> AsyncIterator[asyncpg.Connection]:
        async with super().session(application_name, **settings) as connection:
            try:
                yield connection
            finally:
                transport = getattr(connection, "_transport", None)
                if transport is not None and (used := transport.get_extra_info("socket")):
                    _travelled.append(_bytes_of(used))


def _bytes_of(used: socket.socket) -> int:
    if sys.platform != "linux":
        return 0
    info = used.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES_AT + _TCP_BYTES.size)
    return sum(_TCP_BYTES.unpack_from(info, _TCP_BYTES_AT))


def pair_of(wanted: Wanted) -> Pair:
    """The pair of databases as a plan would have it."""
    source, target = Counted("monolith", wanted.source), Counted("service", wanted.target)
    return Pair("bench", "svc", source, target, (TableName("public", wanted.table),))


async def still() -> None:
    """`settle` where nothing is written."""


async def run(wanted: Wanted) -> Outcome:
    pair = pair_of(wanted)
    settle: Settle = still
    pace = Pace()
    if wanted.stream:
        stream = LogicalStream(pair, "forward")
        settle = settling(stream, 30.0)
        pace = Pace(look=Looking(stream, 30.0), lag_limit=LAG_LIMIT)

    rules = Table(reconcile=Reconcile(max_lag=timedelta(minutes=5)))
    control = await Control.open(Database("control", wanted.control))
    try:
        started = time.monotonic()
        report = await run_pass(Job(pair, "forward", pair.tables[0], rules, control, "bench", settle, pace=pace))
        seconds = time.monotonic() - started
        memory = _most_memory()
        found = await reports.open_differences(control, "bench", "svc", report.table, limit=1_000_000)
    finally:
        await control.close()
    differing = {"|".join(key_from_json(d.key_json)): list(d.columns) for d in found if d.confirmed}
    return Outcome(
        round(seconds, 3), report.rows_source, report.bytes_moved, sum(_travelled), memory, differing, report.unsettled
    )


def _most_memory() -> float:
    """MB of resident memory at most, of this program alone (a child's `ru_maxrss` begins with its parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size / (1024 if sys.platform == "linux" else 1024**2), 1)


def main() -> None:
    print(json.dumps(asdict(asyncio.run(run(Wanted(**json.loads(sys.argv[1])))))))


if __name__ == "__main__":
    main()
