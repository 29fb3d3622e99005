"""Whether the other side has all that this process has written, so that a read which must see it may be answered there.

Level strong has a write at both sides before it is answered. What this process writes otherwise (another level, a block
of `acquire`, a branch left to the janitor) is there once the stream has carried it: until that is seen, such reads stay
at the primary. So they do from the moment the stream is there, for what was written before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from cutover.postgres import outbox_source


@dataclass(eq=False)
class Mirror:
    """One service's, while its writes are at the monolith; `strong` says whether level strong is in force there."""

    strong: Callable[[], bool]
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
        return not (self._running or self._left) and self.strong()

    @property
    def unsettled(self) -> bool:
        """Whether it is worth a look (`settle`)."""
        return self._left and not self._running

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
        turn = self._turn
        if self._asked is None or self._asked[0] != turn:
            self._asked = turn, await outbox_source.snapshot(source)
        waits = await outbox_source.undone(source, service, self._asked[1])
        if not waits and turn == self._turn:
            self._left, self._asked = False, None
