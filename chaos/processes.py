"""Processes that can be killed: forked from a server that has everything imported, so that one starts in a moment.

A child is given a function and its arguments, and tells its parent what it has to tell in messages, in their order.
"""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from chaos.orphans import end_with_parent
from cutover.errors import CutoverError

_context = multiprocessing.get_context("forkserver")
# what the commands import too, which each child would import by itself; not they themselves, which it runs once more
_context.set_forkserver_preload(
    ["chaos.preloaded", "chaos.actors", "chaos.run", "chaos.results", "chaos.storm", "bench.ground"]
)

#: How a child tells its parent something; it has been read when the call returns only by luck.
Say = Callable[[str, Any], None]
Main = Callable[..., Coroutine[Any, Any, None]]


def silence() -> None:
    """Of what the driver says of each server that is away, over and over; the harness kills them itself."""
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)


def _run(main: Main, pipe: Connection, arguments: tuple[Any, ...]) -> None:
    def say(what: str, detail: Any = None) -> None:
        with suppress(BrokenPipeError):
            pipe.send((what, detail))

    # Ctrl-C reaches the whole group; the parent ends its children by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence()
    end_with_parent()
    gc.freeze()  # what was imported is never looked at again, so that its pages stay the server's
    try:
        asyncio.run(main(say, *arguments))
    except CutoverError as error:
        # no crash: a server may be away while a process opens what it needs
        say("failed", (type(error).__name__, str(error)))


class Crashed(Exception):
    """A process ended by an error that none of our code expects."""


_living: "weakref.WeakSet[Child]" = weakref.WeakSet()


class Child:
    """One process. `messages` yields (what, detail) until it has ended."""

    def __init__(self, name: str, main: Main, *arguments: Any) -> None:
        self.name = name
        self._pipe, inner = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_run, args=(main, inner, arguments), daemon=True)
        self._process.start()
        _living.add(self)
        inner.close()
        self._queue: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self._open = True
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"

    @staticmethod
    def living() -> "list[Child]":
        """All that run just now."""
        return [child for child in _living if child.alive]

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                self._queue.put_nowait(self._pipe.recv())
        except (EOFError, OSError):
            self._close()
            self._queue.put_nowait(None)

    def _close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()

    async def message(self, within: float) -> tuple[str, Any] | None:
        """The next message; None once the process has ended. Raises TimeoutError."""
        async with asyncio.timeout(within):
            found = await self._queue.get()
        if found is None:
            self._queue.put_nowait(None)  # whoever asks again
        return found

    async def said(self, what: str, within: float) -> Any:
        """Waits for that message; its detail. Raises ChildProcessError where the process ends without it."""
        async with asyncio.timeout(within):
            while (found := await self.message(within)) is not None:
                if found[0] == what:
                    return found[1]
        raise ChildProcessError(f"{self.name} ended with {self._process.exitcode} and had not said {what!r}")

    def waiting(self) -> list[tuple[str, Any]]:
        """The messages that are there, without waiting."""
        found = []
        while not self._queue.empty() and (message := self._queue.get_nowait()) is not None:
            found.append(message)
        return found

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def killed(self) -> bool:
        """Whether SIGKILL has ended it."""
        return self._process.exitcode == -signal.SIGKILL

    def require_no_crash(self) -> None:
        """Raises Crashed where neither itself nor a SIGKILL has ended it, but an error that nobody expected."""
        if self._process.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM):
            raise Crashed(f"{self.name} ended with {self._process.exitcode}: its traceback is in the output")

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def _joined(self, within: float) -> None:
        """In this thread: whoever starts a process looks at all others too, and a status can be read only once."""
        end = time.monotonic() + within
        while self.alive and time.monotonic() < end:
            await asyncio.sleep(0.01)

    async def end(self, within: float = 10.0) -> int | None:
        """SIGTERM, and SIGKILL where that does not help; its exit status."""
        if self.alive:
            self.kill(signal.SIGTERM)
        return await self.ended(within)

    async def ended(self, within: float) -> int | None:
        """Waits for its end; killed after so many seconds."""
        await self._joined(within)
        if self.alive:
            self._process.kill()
            await self._joined(within)
        self._close()
        return self._process.exitcode
