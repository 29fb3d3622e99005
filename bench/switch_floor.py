"""The floor of a switch: one lock, one marker through the same stream, one unlock; by the least that each can cost.

The lock is the fence's own LOCK TABLE over the same tables; nothing is announced, so the writers run into it. The
marker is awaited until it is durable at the other side, over sessions that stand open, at a shorter interval than the
product's. Nothing is checked, noted or compared.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from cutover.postgres import epoch, fence, outbox_source
from cutover.postgres.databases import Direction
from cutover.switch.environment import SwitchEnvironment

_POLL_SECONDS = 0.0005
_LOCK_SECONDS = "5s"
_MARKER_SECONDS = 10.0


@dataclass(frozen=True)
class Floor:
    """Sessions of one direction, open beforehand; `sample` may be called again."""

    env: SwitchEnvironment
    locking: asyncpg.Connection
    source: asyncpg.Connection
    sink: asyncpg.Connection
    lock: str

    async def sample(self) -> float:
        """Milliseconds. Raises TimeoutError where the marker does not arrive."""
        begun = time.monotonic()
        async with self.locking.transaction():
            await self.locking.execute(self.lock)
            async with asyncio.timeout(_MARKER_SECONDS):
                await (self._outbox() if self.env.service.stream == "outbox" else self._logical())
        return (time.monotonic() - begun) * 1000

    async def _logical(self) -> None:
        service, marker = self.env.pair.service, uuid.uuid4().hex
        await epoch.put_marker(self.source, service, marker)
        while not await epoch.marker_seen(self.sink, service, marker):
            await asyncio.sleep(_POLL_SECONDS)
        await epoch.make_durable(self.sink)

    async def _outbox(self) -> None:
        """Intents go once their apply is durable at the sink, so what is awaited stands at the source."""
        service = self.env.pair.service
        snapshot = await outbox_source.put_marker(self.source, service, uuid.uuid4().hex)
        while await outbox_source.undone(self.source, service, snapshot):
            await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def floor(env: SwitchEnvironment, direction: Direction) -> AsyncIterator[Floor]:
    """The floor of the stream that carries rows now."""
    source, sink = env.pair.source(direction), env.pair.sink(direction)
    async with source.session("bench-floor", lock_timeout=_LOCK_SECONDS) as locking, \
            source.session("bench-floor-marker") as marking, sink.session("bench-floor-marker") as seeing:  # fmt: skip
        members = await fence.relations(locking, env.pair.tables)
        yield Floor(env, locking, marking, seeing, fence.lock_sql(members))
