"""Whether the other side has all that this process has written, so that a read which must see it may be answered there.

Level strong has a write at both sides before it is answered. What this process writes otherwise (another level, a block
of `acquire`, a branch left to the janitor) is there once the stream has carried it: until that is seen, such reads stay
at the primary. So they do from the moment the stream is there, for what was written before.

Other processes learn of a stream when they look, and until then write at the primary alone. So a stream that has come
up is rested on only once each of them has looked, and whoever wrote alone looks again before it answers
(`TwoSides.answerable`). One that goes is noticed by the read itself, which asks at the sink whether the stream that it
rests on still stands: nobody writes alone before it does not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from cutover.dualwrite.epochs import Moved
from cutover.postgres import outbox_lease, outbox_source

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

#: Seconds for which a process may go by what it has seen of a stream, and those after which one that has come up is
#: rested on: longer, and well above what clocks of different machines differ by in them.
KNOWN_FOR, NOTICED_AFTER = 3.0, 4.0


@dataclass(eq=False)
class Mirror:
    """One service's, while its writes are at the monolith; `strong` says whether level strong is in force there."""

    strong: Callable[[], bool]
    service: str = ""
    #: The stream that has brought all there is to the other side, as last seen there; "" where none has.
    stream: str = ""
    #: Until then (monotonic) processes may not know of it, or of the plan that says strong.
    _noticed_at: float = 0.0
    _adopted_at: float = 0.0
    #: Writes that run and will not be at both sides when they are answered.
    _running: int = 0
    #: Whether there may be such ones among those that have ended.
    _left: bool = False
    #: Rises with each that begins or ends.
    _turn: int = 0
    #: A snapshot that sees all up to a turn, while it is not known to be carried over.
    _asked: tuple[int, str] | None = None

    @property
    def complete(self) -> bool:
        return not (self._running or self._left) and bool(self.stream) and self.strong()

    @property
    def unsettled(self) -> bool:
        """Whether it is worth a look (`settle`)."""
        return self._left and not self._running and self._noticed

    @property
    def _noticed(self) -> bool:
        return bool(self.stream) and time.monotonic() >= max(self._noticed_at, self._adopted_at)

    def adopted(self, within: float) -> None:
        """A plan was taken over, which other processes take over within so many seconds."""
        self._adopted_at = time.monotonic() + within + KNOWN_FOR
        self.left_behind()

    def rest_on(self, stream: str) -> None:
        """That stream was seen to stand; "" where none was."""
        if stream != self.stream:
            self.stream = stream
            self._noticed_at = time.monotonic() + NOTICED_AFTER
            self.left_behind()

    async def require(self, sink: "Connection", stream: str) -> None:
        """To be asked at the end of a read there that rested on `stream`. Raises Moved where it does not stand."""
        if not stream or not await outbox_lease.stands(sink, self.service, "forward", stream):  # type: ignore[arg-type]  # a pool's proxy
            self.rest_on("")
            raise Moved(f"{self.service}: its stream was taken away or stopped; its reads are where its writes are")

    def begin(self) -> None:
        """A write begins that will not be at both sides when it is answered."""
        self._running += 1
        self._turn += 1

    def end(self) -> None:
        self._running -= 1
        self.left_behind()

    def left_behind(self) -> None:
        """Something that was written may not be at the other side."""
        self._left = True
        self._turn += 1

    async def settle(self, source: asyncpg.Connection, service: str) -> None:
        """Finds out at the primary whether all of it has been carried over by now."""
        if not self._noticed:
            return
        turn = self._turn
        if self._asked is None or self._asked[0] != turn:
            self._asked = turn, await outbox_source.snapshot(source)
        waits = await outbox_source.undone(source, service, self._asked[1])
        if not waits and turn == self._turn:
            self._left, self._asked = False, None
