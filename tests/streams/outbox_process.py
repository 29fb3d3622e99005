"""A process to be killed: `python -m tests.streams.outbox_process relay|backfill SERVICE`, DSNs in its environment.

It ends itself, as kill -9 would, at the fault point that OUTBOX_KILL_AT names, and takes OUTBOX_RANGE_SECONDS for
each range of a first copy, so that there is time to kill it.
"""

import asyncio
import os
import signal
import sys

from cutover import faults
from cutover.postgres.databases import Database, Pair
from cutover.streams.outbox import Backfill, Relay, relay
from tests.streams.outbox_world import TABLES


async def die_there(point: str) -> None:
    if point == "backfill.range.before":
        await asyncio.sleep(float(os.environ.get("OUTBOX_RANGE_SECONDS", "0")))
    if point == os.environ.get("OUTBOX_KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)


async def main(kind: str, service: str) -> None:
    pair = Pair(
        "m", service, Database("monolith", os.environ["OUTBOX_MONOLITH"]),
        Database("service", os.environ["OUTBOX_SERVICE"]), TABLES,
    )  # fmt: skip
    if "OUTBOX_KILL_AT" in os.environ:
        relay._TIDY_SECONDS = 0.0  # not only once in a while
    print("ready", flush=True)
    if kind == "relay":
        await Relay(pair, "forward", lease_seconds=1.0, batch=50).run()
    else:
        await Backfill(pair, "forward").run(workers=2)


if __name__ == "__main__":
    with faults.armed(die_there):
        asyncio.run(main(sys.argv[1], sys.argv[2]))
