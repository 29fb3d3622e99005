"""Everything that has to be at work between the two databases of an outbox stream, in one process."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cutover.control.database import Control
from cutover.postgres.databases import DIRECTIONS, Pair
from cutover.streams.outbox.janitor import Janitor
from cutover.streams.outbox.relay import Relay


@asynccontextmanager
async def carrying(
    pair: Pair, control: Control | None = None, *, unreachable_after: float = math.inf
) -> AsyncIterator[asyncio.Future[list[None]]]:
    """Relays of both directions and the janitor; a direction that is not started has nothing for its relay to do.

    Yields what ends with the first error that is none of the databases'. Others are counted, told and tried again; with
    Unreachable it ends where a database cannot be reached for so many seconds.
    """
    relays = [Relay(pair, direction, unreachable_after=unreachable_after) for direction in DIRECTIONS]
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    tasks.append(asyncio.create_task(Janitor(pair, control).run()))
    together = asyncio.gather(*tasks)
    try:
        yield together
    finally:
        # one by one: they go on where another one's error has ended the future
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, together, return_exceptions=True)
