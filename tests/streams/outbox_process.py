"""A process to be killed: `python -m tests.streams.outbox_process relay|backfill SERVICE`, DSNs in its environment."""

import asyncio
import os
import sys

from cutover.postgres.databases import Database, Pair
from cutover.streams.outbox import Backfill, Relay
from tests.streams.outbox_world import TABLES


async def main(kind: str, service: str) -> None:
    pair = Pair(
        "m", service, Database("monolith", os.environ["OUTBOX_MONOLITH"]),
        Database("service", os.environ["OUTBOX_SERVICE"]), TABLES,
    )  # fmt: skip
    print("ready", flush=True)
    if kind == "relay":
        await Relay(pair, "forward", lease_seconds=1.0, batch=50).run()
    else:
        await Backfill(pair, "forward").run(workers=2)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
