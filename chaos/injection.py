"""What an armed fault point does: it ends its process, raises, takes long, or has a COMMIT's connection reset.

Faults come in a sequence: each happens once, in whichever process passes its point first, and only after the ones
before it have happened; two of one point happen in two passes. So a second one can hit the recovery from the first. A
reset has happened once a connection was cut.

Beside, every pass of a switch's points is noted with its time (`passes`), from which the checker knows in which windows
both sides had to refuse.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import asyncpg

from cutover import faults
from cutover.errors import Unreachable

Kind = Literal["kill", "error", "delay", "reset", "hold"]
#: The faults; a hold is none.
KINDS: tuple[Kind, ...] = ("kill", "error", "delay", "reset")

#: The file in a sequence's folder with the times of passes, and the groups of points whose passes stand there.
PASSES = "passes"
_NOTED = ("switch.", "undo.", "complete.", "mend.")

#: Seconds between two looks of a hold, and those after which it gives up.
_LOOK = 0.005
_LONGEST_HOLD = 120.0


@dataclass(frozen=True)
class Fault:
    """One fault. `seconds` is a delay's length.

    `hard`: a delay or a hold stops the whole process, heartbeats too; a reset comes before the commit has left, and not
    between it and its answer; an error is a server's that refuses, and not that of one that does not answer.
    """

    point: str
    kind: Kind
    seconds: float = 0.0
    hard: bool = False

    def __str__(self) -> str:
        words = {"delay": f" {self.seconds:g} s" + (" of the whole process" if self.hard else ""),
                 "reset": " before it is sent" if self.hard else " before its answer",
                 "error": " (full disk)" if self.hard else " (no answer)"}  # fmt: skip
        return f"{self.kind}{words.get(self.kind, '')} at {self.point}"


class Injector:
    """One sequence of faults. Processes that share the folder share the sequence."""

    def __init__(self, sequence: Sequence[Fault], folder: Path) -> None:
        self.sequence = tuple(sequence)
        self.folder = folder

    def happened(self) -> int:
        """How many of the sequence have happened."""
        return sum((self.folder / str(number)).exists() for number in range(len(self.sequence)))

    async def __call__(self, point: str) -> None:
        """A handler for `faults.armed`, for this sequence alone."""
        await handler([self])(point)

    def note(self, point: str) -> None:
        """Keeps the time of a pass that a checker wants to know of."""
        if point.startswith(_NOTED):
            with (self.folder / PASSES).open("a") as file:
                file.write(f"{time.monotonic():.7f} {point}\n")

    async def pass_by(self, point: str) -> None:
        """Does what is to happen there now."""
        struck = False
        for number, fault in enumerate(self.sequence):
            if fault.point != point or not self._turn_of(number):
                continue
            if fault.kind == "hold":
                if self._claim(number):
                    await self._stand(number, fault.hard)
            elif not struck:
                struck = await self._strike(number, fault)

    def _turn_of(self, number: int) -> bool:
        if self.sequence[number].kind == "hold":
            return True
        before = [one for one in range(number) if self.sequence[one].kind != "hold"]
        return all((self.folder / str(one)).exists() for one in before)

    def _claim(self, number: int, cut: str = "") -> bool:
        """A file, so that it outlives the process that is about to be killed; it holds the statement that was cut."""
        try:
            with (self.folder / str(number)).open("x") as file:
                file.write(cut)
        except FileExistsError:
            return False
        return True

    async def _strike(self, number: int, fault: Fault) -> bool:
        """Whether it was this pass that the fault was for."""
        if fault.kind == "reset":
            _Reset.hard, _Reset.claim = fault.hard, lambda cut: self._claim(number, cut)
            return not (self.folder / str(number)).exists()
        if not self._claim(number):
            return False
        match fault.kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "error" if fault.hard:
                raise asyncpg.DiskFullError(f"the harness failed {fault.point}")
            case "error":
                raise Unreachable(f"the harness failed {fault.point}")
            case "delay" if fault.hard:
                time.sleep(fault.seconds)  # noqa: ASYNC251  # heartbeats have to stop too
            case "delay":
                await asyncio.sleep(fault.seconds)
        return True

    async def _stand(self, number: int, hard: bool) -> None:
        deadline = time.monotonic() + _LONGEST_HOLD
        while not (self.folder / f"{number}.go").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody let go of {self.sequence[number]}")
            if hard:
                time.sleep(_LOOK)  # noqa: ASYNC251  # heartbeats have to stop too
            else:
                await asyncio.sleep(_LOOK)


def handler(injectors: Sequence[Injector]) -> faults.Handler:
    """For `faults.armed`: several sequences, each in an order of its own; the first one's folder keeps the passes."""

    async def passed(point: str) -> None:
        injectors[0].note(point)
        for injector in injectors:
            await injector.pass_by(point)

    return passed


#: Passes of points, with their times.
Passes = Sequence[tuple[float, str]]


def passes(folders: Path) -> list[Passes]:
    """(time, point) of each pass that was noted, in their order, for each folder under this one."""
    found: list[Passes] = []
    for file in folders.glob(f"*/{PASSES}"):
        lines = [line.partition(" ") for line in file.read_text().splitlines()]
        found.append(sorted((float(at), point) for at, _, point in lines))
    return found


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
    """What the next COMMIT of this process meets, unless another process has met it: `claim` tells."""

    hard: bool = False
    claim: Callable[[str], bool] | None = None


#: Calls that change something and stand in a SELECT.
_EFFECTS = re.compile(
    r"PG_LOGICAL_EMIT_MESSAGE|PG_(CREATE|DROP)_\w*SLOT|PG_REPLICATION_(SLOT|ORIGIN)_\w+|SETVAL"
    r"|CONTROL\.(FLIP_ROUTE|APPEND_AUDIT)|CUTOVER\.PRUNE_DECISIONS"
)
_CHANGES = re.compile(
    r"(INSERT|UPDATE|DELETE|ALTER|CREATE|DROP)\b|WITH\b.*(INSERT INTO|(?<!FOR )UPDATE|DELETE FROM)\b", re.DOTALL
)


def commits(connection: asyncpg.Connection, sql: str) -> bool:
    """Whether the server commits something by this statement."""
    parts = [part.lstrip() for part in sql.upper().split(";")]  # one inside of a text does no harm
    if any(part.startswith(("COMMIT", "PREPARE TRANSACTION", "ROLLBACK PREPARED", "END")) for part in parts):
        return True
    changes = any(_CHANGES.match(part) for part in parts)
    return (changes or _EFFECTS.search(sql.upper()) is not None) and not connection.is_in_transaction()


async def _cut(connection: asyncpg.Connection, sql: str, call: Coroutine[Any, Any, Any], hard: bool) -> None:
    """The connection is lost before the statement has left, or before its answer has come."""
    if hard:
        call.close()
    elif sql.upper().startswith("COMMIT"):
        # one message: it has left, and who looks what became of it may come while it is still at work
        sent = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        connection.terminate()
        await sent
    else:
        await call  # several messages, of which only the last one commits
    connection.terminate()
    raise asyncpg.ConnectionDoesNotExistError(f"the harness cut the connection in {sql[:40]!r}")


@contextmanager
def resets() -> Iterator[None]:
    """Inside, a `reset` that has happened cuts the connection of the next COMMIT of this process."""
    patched: Any = asyncpg.Connection
    execute, fetch = patched.execute, patched._execute

    def cutting(call: Any) -> Any:
        async def wrapped(self: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            claim, hard = _Reset.claim, _Reset.hard
            if claim is None or not commits(self, query):
                return await call(self, query, *args, **options)
            _Reset.claim = None
            if not claim(query):
                return await call(self, query, *args, **options)
            return await _cut(self, query, call(self, query, *args, **options), hard)

        return wrapped

    patched.execute, patched._execute = cutting(execute), cutting(fetch)
    try:
        yield
    finally:
        patched.execute, patched._execute = execute, fetch
