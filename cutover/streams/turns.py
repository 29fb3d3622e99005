"""Two directions of `logical` that must never run at once, because a server is older than 16 (design 5.6, step 8).

Such a server cannot leave out of a stream what the other stream has brought, so with both running each row would come
back to where it was written. Only one is enabled, then. The other one is *armed* before the fence: publication,
subscription and slot are there, so everything that could be refused has been tried, and nothing flows. Inside the fence
the running one is halted and the armed one begins; an undo halts that one again and resumes the first, whose slot has
stayed, so that there is no gap.

The slot of an armed stream holds what the running stream has brought to its server. It is moved past that once the
running stream's worker is gone, which costs less than making a slot there: that would wait for every transaction open
in the cluster.
"""

import asyncio
import time
from dataclasses import dataclass

import asyncpg

from cutover.errors import NotYet
from cutover.postgres import epoch, replication
from cutover.postgres.databases import Database

#: How the ids of markers begin that prove a stream which has just begun.
TURN_MARKER = "turn-"
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Turns:
    """One direction that runs only while the other one does not; `source` and `sink` are its two ends."""

    service: str
    #: Of the subscription and its slot.
    name: str
    publication: str
    source: Database
    sink: Database
    label: str

    async def arm(self) -> None:
        """All of the stream but the flow. The subscription is made for real: the sink's server has reached the source.

        Run again, it makes what is missing. Raises Conflict where the subscription is refused, NotYet while the stream
        runs, or while old transactions hold off the slot.
        """
        async with self.sink.session(self.label) as sink, self.source.session(self.label) as source:
            if await replication.is_enabled(sink, self.name):
                raise NotYet(f"{self.service}: {self.name!r} is enabled; a switch that stopped has to be ended first")
            if not await replication.has_slot(source, self.name):
                await replication.create_slot(source, self.name)
            await replication.create_subscription(
                sink, self.name, self.source, self.publication, copy=False, enabled=False, origins=False
            )

    async def drop_slot_on(self, source: asyncpg.Connection) -> None:
        """The slot goes, to be made anew by `create_slot_on`: one that is new has little to read when it is moved."""
        await replication.drop_slot(source, self.name)

    async def create_slot_on(self, source: asyncpg.Connection) -> None:
        """Raises NotYet while old transactions hold it off; the connection must not be in one."""
        await replication.create_slot(source, self.name)

    async def unarmed(self) -> str:
        """What keeps its subscription from its turn, in words; "" where nothing does."""
        async with self.sink.session(self.label) as sink:
            enabled = await replication.is_enabled(sink, self.name)
        if enabled is None:
            return f"subscription {self.name!r} does not exist at {self.sink.name!r}"
        return f"subscription {self.name!r} is enabled at {self.sink.name!r} before its turn" if enabled else ""

    async def disable_on(self, sink: asyncpg.Connection) -> None:
        """Lets the flow end with the caller's transaction; then `await_gone_on`. Nothing where it is not there."""
        if await replication.is_enabled(sink, self.name):
            await replication.set_enabled(sink, self.name, False)

    async def await_gone_on(self, sink: asyncpg.Connection, timeout: float) -> None:
        """Ends the worker of a disabled stream and sees it gone. Raises NotYet after so many seconds.

        One that is started later finds its subscription disabled before it applies anything.
        """
        deadline = time.monotonic() + timeout
        while await replication.end_worker(sink, self.name):
            if time.monotonic() > deadline:
                raise NotYet(f"{self.service}: the worker of subscription {self.name!r} does not end")
            await asyncio.sleep(_POLL_SECONDS)

    async def enable_on(self, sink: asyncpg.Connection) -> None:
        """Lets it flow from the commit of the caller's transaction on. Nothing where it is not there."""
        if await replication.is_enabled(sink, self.name) is False:
            await replication.set_enabled(sink, self.name, True)

    async def move_to_now_on(self, source: asyncpg.Connection) -> None:
        """Nothing that is flushed at the source by now will be sent. Raises NotYet while the slot is being read."""
        await replication.move_slot_to_now(source, self.name)

    async def forget_proof_on(self, source: asyncpg.Connection) -> None:
        """Takes the markers of turns away at the source of this direction.

        Where this direction has carried one, the other one will bring it back as a new row.
        """
        await epoch.delete_markers(source, self.service, TURN_MARKER)
