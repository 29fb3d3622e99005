"""What an armed fault point does: it ends its process, raises, takes long, or has a COMMIT's connection reset.

Faults come in a sequence: each happens once, in whichever process passes its point first, and only after the ones
before it have happened. So a second one can hit the recovery from the first.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import asyncpg

from cutover.errors import Unreachable

Kind = Literal["kill", "error", "delay", "reset", "hold"]
#: The faults; a hold is none.
KINDS: tuple[Kind, ...] = ("kill", "error", "delay", "reset")


#: Seconds between two looks of a hold, and those after which it gives up.
_LOOK = 0.005
_LONGEST_HOLD = 120.0


@dataclass(frozen=True)
class Fault:
    """One fault. `seconds` is a delay's length.

    `hard`: a delay or a hold stops the whole process, heartbeats too; a reset comes before COMMIT has left and not
    after it.
    """

    point: str
    kind: Kind
    seconds: float = 0.0
    hard: bool = False

    def __str__(self) -> str:
        words = {"delay": f" {self.seconds:g} s" + (" of the whole process" if self.hard else ""),
                 "reset": " before it is sent" if self.hard else " before its answer"}  # fmt: skip
        return f"{self.kind}{words.get(self.kind, '')} at {self.point}"


class Injector:
    """A handler for `faults.armed`. Processes that share the folder share the sequence."""

    def __init__(self, sequence: Sequence[Fault], folder: Path) -> None:
        self.sequence = tuple(sequence)
        self.folder = folder

    def happened(self) -> int:
        """How many of the sequence have happened."""
        return sum((self.folder / str(number)).exists() for number in range(len(self.sequence)))

    async def __call__(self, point: str) -> None:
        for number, fault in enumerate(self.sequence):
            if fault.point == point and self._turn_of(number) and self._claim(number):
                await self._perform(number, fault)

    def _turn_of(self, number: int) -> bool:
        if self.sequence[number].kind == "hold":
            return True
        before = [one for one in range(number) if self.sequence[one].kind != "hold"]
        return all((self.folder / str(one)).exists() for one in before)

    def _claim(self, number: int) -> bool:
        """A file, so that it outlives the process that is about to be killed."""
        try:
            os.close(os.open(self.folder / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    async def _perform(self, number: int, fault: Fault) -> None:
        match fault.kind:
            case "hold":
                await self._stand(number, fault.hard)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "error":
                raise Unreachable(f"the harness failed {fault.point}")
            case "delay" if fault.hard:
                time.sleep(fault.seconds)  # noqa: ASYNC251  # heartbeats have to stop too
            case "delay":
                await asyncio.sleep(fault.seconds)
            case "reset":
                _Reset.next = fault

    async def _stand(self, number: int, hard: bool) -> None:
        deadline = time.monotonic() + _LONGEST_HOLD
        while not (self.folder / f"{number}.go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody let go of {self.sequence[number]}")
            if hard:
                time.sleep(_LOOK)  # noqa: ASYNC251  # heartbeats have to stop too
            else:
                await asyncio.sleep(_LOOK)


class Holds:
    """The other end of the holds of a sequence: sees who stands there, and lets go."""

    def __init__(self, sequence: Sequence[Fault], folder: Path) -> None:
        self.folder = folder
        self._numbers = {fault.point: number for number, fault in enumerate(sequence) if fault.kind == "hold"}

    async def reached(self, point: str, within: float = 30.0) -> None:
        """Returns once somebody stands there. Raises TimeoutError."""
        async with asyncio.timeout(within):
            while not (self.folder / str(self._numbers[point])).exists():
                await asyncio.sleep(_LOOK)

    def go(self, point: str) -> None:
        """Lets go of whoever stands there, or will come there."""
        (self.folder / f"{self._numbers[point]}.go").touch()


class _Reset:
    """The fault that the next COMMIT of this process meets."""

    next: Fault | None = None


def _commits(connection: asyncpg.Connection, sql: str) -> bool:
    """Whether the server commits something by this statement."""
    words = sql.lstrip().upper()
    if words.startswith(("COMMIT", "PREPARE TRANSACTION", "END")) or "; COMMIT" in words:
        return True
    writes = words.startswith(("INSERT", "UPDATE", "DELETE", "WITH", "ALTER", "CREATE", "DROP"))
    return writes and not connection.is_in_transaction()


@contextmanager
def resets() -> Iterator[None]:
    """Inside, a `reset` that has happened cuts the connection of the next COMMIT of this process."""
    patched: Any = asyncpg.Connection
    execute, fetch = patched.execute, patched._execute

    def cutting(call: Any) -> Any:
        async def wrapped(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            fault = _Reset.next
            if fault is None or not _commits(self, query):
                return await call(self, query, *args, **options)
            _Reset.next = None
            if fault.hard:
                self.terminate()
                raise asyncpg.ConnectionDoesNotExistError("the harness cut the connection before COMMIT was sent")
            sent = asyncio.ensure_future(call(self, query, *args, **options))
            await asyncio.sleep(0)  # it has been written to the socket
            self.terminate()
            return await sent

        return wrapped

    patched.execute, patched._execute = cutting(execute), cutting(fetch)
    try:
        yield
    finally:
        patched.execute, patched._execute = execute, fetch
