"""How much of the time a pass may take: less where the source's writes get slow by it, or the stream falls behind.

What a write costs is measured while statements of ours run, and between them: only the difference is our doing, and no
slow disk or busy hour is taken for it. So many times the difference as a share of the time is what the mean write
loses; the share is set so that this stays within `TOLERATED`.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

import asyncpg

from cutover.errors import GateClosed, NotYet
from cutover.streams.base import Marker, OneDirection, Stream

#: Seconds between two looks.
EVERY = 0.5
#: Looks at the begin, and of how many later ones the middle one counts: a single slow write is no sign.
FIRST_LOOKS = 5
RECENT = 3
#: By how much the mean write may get slower: a share of what it takes without us, or so many seconds.
TOLERATED, SLACK = 0.2, 0.0005
LEAST_BUSY = 0.1
#: What is given back after each look that found nothing.
GROWTH = 1.5
#: Seconds of rest after one statement at most.
LONGEST_REST = 30.0


@dataclass(frozen=True)
class Pressure:
    """How the application and its stream are off: seconds of a small durable write at the source, seconds of lag."""

    write: float
    lag: float


class Look(Protocol):
    """Measures what the application feels."""

    async def write(self) -> float:
        """Seconds that a small durable write takes at the source."""

    async def pressure(self) -> Pressure:
        """The same, and how late the stream is."""

    async def close(self) -> None:
        """After the last look."""


class Looking(Look):
    """Looks by a marker of the stream; one that does not arrive within `lag_limit` seconds is infinitely late.

    On one session for all of them: the first write of a new one takes several times as long as the next.
    """

    def __init__(self, stream: Stream, lag_limit: float) -> None:
        self._stream = stream
        self._limit = lag_limit
        self._sessions = AsyncExitStack()
        self._session: asyncpg.Connection | None = None

    async def write(self) -> float:
        return (await self._put())[0]

    async def pressure(self) -> Pressure:
        write, marker = await self._put()
        try:
            return Pressure(write, await self._stream.await_marker(marker, self._limit))
        except (NotYet, GateClosed):
            return Pressure(write, float("inf"))

    async def close(self) -> None:
        self._session = None
        await self._sessions.aclose()

    async def _put(self) -> tuple[float, Marker]:
        if self._session is None or self._session.is_closed():
            assert isinstance(self._stream, OneDirection)
            session = self._stream.source.session(f"{self._stream.label}/pace")
            self._session = await self._sessions.enter_async_context(session)
            await self._stream.put_marker_on(self._session)
        started = time.monotonic()
        marker = await self._stream.put_marker_on(self._session)
        return time.monotonic() - started, marker


@dataclass
class Pace:
    """`busy` is the share of the time that statements may take at most, `least` at least; `lag_limit` is in seconds.

    `alone`: nothing else of the same work runs when `rest` is called, so that a look there tells what a write takes
    without us; else what `begin` has seen counts all along.
    """

    busy: float = 1.0
    look: Look | None = None
    lag_limit: float = float("inf")
    alone: bool = True
    least: float = LEAST_BUSY
    _now: float = field(init=False)
    _without: list[float] = field(default_factory=list)
    _within: list[float] = field(default_factory=list)
    _judged: float = 0.0
    _asked: float = 0.0
    _looking: asyncio.Task[Pressure] | None = None

    def __post_init__(self) -> None:
        self._now = self.busy

    @property
    def share(self) -> float:
        """The share of the time in force now."""
        return self._now

    async def begin(self) -> None:
        """Learns what a write usually costs, once, while no statement of the walk runs; until then nothing adapts."""
        if self.look is not None and not self._without:
            self._without = [await self.look.write() for _ in range(FIRST_LOOKS)]

    async def rest(self, worked: float) -> None:
        """Called after statements that took `worked` seconds."""
        await self._adapt()
        if self._now < 1.0:
            await asyncio.sleep(min(LONGEST_REST, worked * (1.0 / self._now - 1.0)))

    async def end(self) -> None:
        """Waits for a look that is on its way."""
        if self._looking is not None:
            looking, self._looking = self._looking, None
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        if self.look is not None:
            await self.look.close()

    async def _adapt(self) -> None:
        """Looks beside the pass: a look waits for the stream, and the pass for nothing but a small write."""
        if self.look is None or not self._without or time.monotonic() - self._judged < EVERY:
            return
        if self._looking is None:
            self._asked = time.monotonic()
            if self.alone:
                self._without = [*self._without, await self.look.write()][-FIRST_LOOKS:]
            self._looking = asyncio.create_task(self.look.pressure())
        elif self._looking.done():
            looking, self._looking = self._looking, None
            seen = looking.result()
            self._within = [*self._within, seen.write][-RECENT:]
            self._judge(late=seen.lag > self.lag_limit)
        elif time.monotonic() - self._asked > EVERY:
            self._judge(late=True)  # no answer for so long is an answer

    def _judge(self, *, late: bool) -> None:
        self._judged = time.monotonic()
        if late:
            self._now = max(self.least, self._now / 2)
            return
        without = statistics.median(self._without)
        lost = statistics.median([*[without] * RECENT, *self._within][-RECENT:]) - without
        allowed = TOLERATED * without
        if lost <= max(allowed, SLACK):
            self._now = min(self.busy, self._now * GROWTH)
        else:
            self._now = max(self.least, min(self.busy, allowed / lost))
