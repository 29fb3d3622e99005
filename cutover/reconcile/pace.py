"""How much of the time a pass may take: less while the source's writes get slow or the stream falls behind.

Halved when it gets tight, and given back bit by bit, as congestion is met in networks (additive increase,
multiplicative decrease, here with a factor).
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from cutover.errors import NotYet
from cutover.streams.base import Stream

#: Seconds between two looks.
EVERY = 2.0
#: Looks at the begin, whose median says what a write costs without us.
FIRST_LOOKS = 5
#: A write counts as slow when it takes this many times as long as at first, and so many seconds longer.
TIMES, SECONDS = 2.0, 0.005
#: Looks of which the middle one counts: a single slow write is no sign.
RECENT = 3
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


def looking(stream: Stream, lag_limit: float) -> Callable[[], Coroutine[Any, Any, Pressure]]:
    """A look by a marker of the stream: the seconds that its commit takes, and those until it is applied.

    One that does not arrive within `lag_limit` seconds counts as infinitely late.
    """

    async def look() -> Pressure:
        started = time.monotonic()
        marker = await stream.put_marker()
        write = time.monotonic() - started
        try:
            return Pressure(write, await stream.await_marker(marker, lag_limit))
        except NotYet:
            return Pressure(write, float("inf"))

    return look


@dataclass
class Pace:
    """`busy` is the share of the time that statements may take at most; `look` measures, `lag_limit` is in seconds."""

    busy: float = 1.0
    look: Callable[[], Coroutine[Any, Any, Pressure]] | None = None
    lag_limit: float = float("inf")
    _now: float = field(init=False)
    _usual: float | None = None
    _judged: float = 0.0
    _asked: float = 0.0
    _recent: list[float] = field(default_factory=list)
    _looking: asyncio.Task[Pressure] | None = None

    def __post_init__(self) -> None:
        self._now = self.busy

    @property
    def share(self) -> float:
        """The share of the time in force now."""
        return self._now

    async def begin(self) -> None:
        """Learns what a write usually costs, once, while no statement of the walk runs; until then nothing adapts."""
        if self.look is not None and self._usual is None:
            first = [(await self.look()).write for _ in range(FIRST_LOOKS)]
            self._usual, self._recent = statistics.median(first), first[-RECENT + 1 :]

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

    async def _adapt(self) -> None:
        """Looks beside the pass: a look waits for the stream, and the pass for nothing."""
        if self.look is None or self._usual is None or time.monotonic() - self._judged < EVERY:
            return
        if self._looking is None:
            self._asked = time.monotonic()
            self._looking = asyncio.create_task(self.look())
            await asyncio.sleep(0)
        elif self._looking.done():
            looking, self._looking = self._looking, None
            self._judge(looking.result())
        elif time.monotonic() - self._asked > EVERY:
            self._judge(Pressure(float("inf"), float("inf")))  # no answer for so long is an answer

    def _judge(self, seen: Pressure) -> None:
        self._judged = time.monotonic()
        self._recent = [*self._recent, seen.write][-RECENT:]
        write, usual = statistics.median(self._recent), self._usual or 0.0
        if seen.lag > self.lag_limit or write > max(usual * TIMES, usual + SECONDS):
            self._now = max(LEAST_BUSY, self._now / 2)
        else:
            self._now = min(self.busy, self._now * GROWTH)
