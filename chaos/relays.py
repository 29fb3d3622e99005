"""The relays and the janitor of one run: ended by whoever arms them, started again where a storm kills them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from chaos import actors
from chaos.ground import Place
from chaos.injection import Injector
from chaos.processes import Child, Crashed
from chaos.turns import PATIENCE

#: Seconds between two looks at them.
LOOK = 0.3
#: What they may end with where a server is away, or by being cancelled: their supervisor starts them again.
_PASSING = ("Unreachable", "NotYet", "StaleAttempt", "CancelledError")


def require_passing(relays: Child) -> None:
    """Raises Crashed where something has ended them that only a defect explains."""
    relays.require_no_crash()
    told = [detail for what, detail in relays.waiting() if what == "failed"]
    if unknown := [text for kind, text in told if kind not in _PASSING]:
        raise Crashed(f"relays ended with {unknown}")


class Relays:
    """Those of one place; `folder` gives a new folder for the faults of a process."""

    def __init__(self, place: Place, folder: Callable[[], Path]) -> None:
        self.place = place
        self._folder = folder
        self._running: Child | None = None
        #: Held by whoever starts and ends them.
        self._arming = asyncio.Lock()

    def armed(self, injector: Injector) -> Child:
        """A process of them with these faults."""
        return Child("relays", actors.relays, self.place, [injector])

    async def start(self) -> None:
        """Raises ChildProcessError where they never start."""
        async with self._arming:
            await self._start()

    async def end(self) -> None:
        async with self._arming:
            await self._end()

    async def keep_up(self) -> None:
        """Starts them again where they have ended."""
        async with self._arming:
            if self._running is not None and not self._running.alive:
                require_passing(self._running)
                await self._start()

    @asynccontextmanager
    async def replaced(self) -> AsyncIterator[None]:
        """Inside there are none but those that the caller starts and ends."""
        async with self._arming:
            await self._end()
            yield
            await self._start()

    async def _start(self) -> None:
        """Without faults; once more where a server is away."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._running = self.armed(Injector((), self._folder()))
            try:
                await self._running.said("ready", 20)
                return
            except ChildProcessError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(LOOK)

    async def _end(self) -> None:
        if self._running is not None:
            await self._running.end()
        self._running = None
