"""Places at a database for sessions that read a lot: no more than the plan allows, on all workers together.

A place is an advisory lock in the control database, so that it is free again when the process that holds it is gone.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from cutover.control.database import Connection, Control

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_TRY = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext('cutover.place ' || $1), $2)"
_LEAVE = "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtext('cutover.place ' || $1), $2)"


@asynccontextmanager
async def places(control: Control, migration: str, databases: Sequence[str], limit: int) -> AsyncIterator[None]:
    """Holds one of `limit` places at each of the databases (by their names in the plan); waits until there is one.

    All of them or none are held while it waits, so no two can wait for each other.
    """
    names = [f"{migration}/{name}" for name in dict.fromkeys(databases)]
    pause = _FIRST_PAUSE
    async with control.database.session("cutover places") as connection:
        while not await _take(connection, names, limit):
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(_LONGEST_PAUSE, pause * 2)
        yield


async def _take(connection: Connection, names: Sequence[str], limit: int) -> bool:
    held: list[tuple[str, int]] = []
    for name in names:
        for place in range(limit):
            if await connection.fetchval(_TRY, name, place):
                held.append((name, place))
                break
        else:
            for one in held:
                await connection.execute(_LEAVE, *one)
            return False
    return True
