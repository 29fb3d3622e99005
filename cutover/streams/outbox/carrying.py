"""Everything that has to be at work between the two databases of an outbox stream, in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cutover.control.database import Control
from cutover.postgres.databases import DIRECTIONS, Pair
from cutover.streams.outbox.janitor import Janitor
from cutover.streams.outbox.relay import Relay


@asynccontextmanager
async def carrying(pair: Pair, control: Control | None = None) -> AsyncIterator[asyncio.Future[list[None]]]:
    """Relays of both directions and the janitor; a direction that is not started has nothing for its relay to do.

    Yields what ends with the first error that is none of the databases'. Others are counted, told and tried again.
    """
    tasks = [asyncio.create_task(Relay(pair, direction).run()) for direction in DIRECTIONS]
    tasks.append(asyncio.create_task(Janitor(pair, control).run()))
    together = asyncio.gather(*tasks)
    try:
        yield together
    finally:
        together.cancel()
        await asyncio.gather(*tasks, together, return_exceptions=True)
