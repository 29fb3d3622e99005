"""Notifications of the control database, for as long as somebody wants to hear them.

A notification is a hint and no promise: what is sent while the connection is away is lost. So whoever listens also
looks by itself from time to time, and at once when it is told that the connection stands (again).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cutover.errors import Unreachable
from cutover.postgres.databases import FAILURES, Database

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two tries to connect, from the first to the longest.
BACK_OFF = (0.1, 5.0)
#: Seconds of silence after which the connection is asked whether it still stands.
SILENCE = 30.0
#: Seconds that one question to the control database may take, before it counts as out of reach.
ANSWER = 1.5


async def listen(
    database: Database, channel: str, heard: Callable[[str], None], connected: Callable[[], None], *, name: str
) -> None:
    """Calls `heard(payload)` for each notification on the channel; until cancelled.

    `connected()` is called each time that listening begins: what came before it was not heard. `name` is the session's
    application_name. Raises nothing of its own: a database that is away is tried again.
    """
    low, high = BACK_OFF
    delay = low

    def begun() -> None:
        nonlocal delay
        delay = low
        connected()

    while True:
        try:
            await _hear(database, channel, heard, begun, name)
        except FAILURES as error:
            _log.debug("listening on %s: %s", channel, type(error).__name__)
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(delay * 2, high)


async def _hear(
    database: Database, channel: str, heard: Callable[[str], None], begun: Callable[[], None], name: str
) -> None:
    """Until the connection is lost."""
    lost = asyncio.Event()
    async with database.session(name) as connection:
        connection.add_termination_listener(lambda _connection: lost.set())
        await connection.add_listener(channel, lambda _connection, _pid, _channel, payload: heard(str(payload)))
        begun()
        while not lost.is_set():
            try:
                async with asyncio.timeout(SILENCE):
                    await lost.wait()
            except TimeoutError:
                # a half-open connection says nothing for ever; a question finds out
                await connection.fetchval("SELECT 1", timeout=ANSWER)
    raise Unreachable(f"the connection that listens on {channel} was lost")


async def answered(question: Awaitable[T]) -> T:
    """The answer of the control database. Raises TimeoutError where it takes longer than `ANSWER`."""
    async with asyncio.timeout(ANSWER):
        return await question
