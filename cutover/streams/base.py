"""What carries changes from source to target, for one service and one direction.

Three implementations stand behind it: `logical`, `outbox` and `kafka`. The switch knows nothing else
about the pattern in use (design 5.2). Every call may be made again with the same result.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import asyncpg

from cutover.postgres.databases import Database, Direction, Pair, Side, Through, other, source_side
from cutover.streams.turns import Turns

TableStage = Literal["waiting", "copying", "catching-up", "ready"]


@dataclass(frozen=True)
class Marker:
    """A row written at the source; once it is applied at the target, so is all that committed before it."""

    id: str


@dataclass(frozen=True)
class Lag:
    """How far the target is behind: seconds by a marker (None = it did not arrive in time), bytes of WAL."""

    seconds: float | None
    bytes: int


@dataclass(frozen=True)
class TableProgress:
    table: str
    stage: TableStage
    rows_copied: int
    rows_estimated: int
    bytes_copied: int


@dataclass(frozen=True)
class StreamHealth:
    """Whether the stream can do its work; `detail` says in words what is wrong."""

    ok: bool
    apply_errors: int
    lost: bool
    detail: str
    #: Nothing is missing, and another `start` puts it right.
    stopped: bool = False
    #: No process relays: a worker has to run.
    unattended: bool = False


@dataclass(frozen=True)
class Work:
    """The stream's own counters at one moment, by its sink's clock. They only rise, until something resets them.

    `stream` tells one life of the stream from the next; another `since` says that counting began anew.
    """

    stream: str
    since: str
    read_at: datetime
    failures: int
    applied: int


class Stream(Protocol):
    """One direction of flow for one service."""

    direction: Direction

    async def prepare(self) -> None:
        """Makes all that a start needs at both ends, harmless to running traffic."""

    async def start(self, *, copy: bool, gap: bool = False, through: Through | None = None) -> None:
        """Starts the flow, with the first copy or from now on; clears away what a killed start has left.

        `gap`: the sink lacks changes of before, so until `close_gap` no row there stops the stream (`rebuild`).
        `through`: as for `drop`; what is cleared away might else be what a later start has made.
        """

    async def exists(self) -> bool:
        """Whether the stream has been started and not dropped."""

    async def ready(self) -> bool:
        """Whether every table's first copy is done and the flow runs."""

    async def progress(self) -> list[TableProgress]:
        """The first copy, table by table."""

    async def lag(self, timeout: float) -> Lag:
        """Measures the lag with a marker of its own."""

    async def put_marker(self) -> Marker:
        """Writes a marker at the source and commits it durably."""

    async def put_marker_on(self, source: asyncpg.Connection, *, kind: str = "") -> Marker:
        """The same on a connection that is open already (inside the write pause); `kind` begins its id."""

    async def await_marker(self, marker: Marker, timeout: float) -> float:
        """Waits until the marker is *durable* at the target; returns the seconds it took. Raises NotYet."""

    async def await_marker_on(self, sink: asyncpg.Connection, marker: Marker, timeout: float) -> float:
        """The same with a connection to the target that is open already."""

    async def end_in_doubt_on(self, source: asyncpg.Connection, sink: asyncpg.Connection) -> None:
        """Ends what strong writes have left prepared at the sink; for a source that is fenced. Raises NotYet."""

    async def health(self) -> StreamHealth: ...

    async def work(self) -> Work | None:
        """What was applied and what failed, as counted so far; None where nothing counts."""

    async def give_up_nothing(self) -> None:
        """From here on every change is carried over, whatever the plan's level; before a switch (design 5.3)."""

    async def close_gap(self) -> None:
        """The sink has all that a stream which began after a gap had not brought."""

    def turns(self, one: asyncpg.Connection, other: asyncpg.Connection) -> Turns | None:
        """How this direction begins and ends where it must never run beside the other; None where it may.

        Asked with an open connection to each side, as the servers' versions decide.
        """

    async def stop(self) -> None:
        """Stops the flow, keeping what a later `start` needs."""

    async def drop(self, through: Through | None = None) -> None:
        """Takes the stream away at both ends; each effect `through` a connection of the caller's, where one is given.

        Where a switch may follow it has to be given: who sleeps in between must not drop what the next one needs.
        """


class OneDirection:
    """What every implementation knows: the pair, the direction, its two ends, and the publication's name."""

    def __init__(self, pair: Pair, direction: Direction) -> None:
        self.pair = pair
        self.direction = direction
        self.infix = "" if direction == "forward" else "_reverse"
        self.publication = f"{pair.service}{self.infix}_pub"

    @property
    def source(self) -> Database:
        return self.pair.source(self.direction)

    @property
    def sink(self) -> Database:
        return self.pair.sink(self.direction)

    @property
    def source_side(self) -> Side:
        return source_side(self.direction)

    @property
    def sink_side(self) -> Side:
        return other(self.source_side)

    @property
    def label(self) -> str:
        """The application_name of its sessions."""
        return f"cutover-stream/{self.pair.service}/{self.direction}"

    def own_session(self, side: Side) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A session of the stream itself."""
        return self.pair.at(side).session(self.label)

    async def give_up_nothing(self) -> None:
        """It never does."""

    def turns(self, one: asyncpg.Connection, other: asyncpg.Connection) -> Turns | None:
        """Both directions may run at once."""
        return None

    async def end_in_doubt_on(self, source: asyncpg.Connection, sink: asyncpg.Connection) -> None:
        """No write of its own is ever prepared."""


def settling(stream: Stream, seconds: float) -> Callable[[], Awaitable[None]]:
    """A function that returns once all that is committed at the source now is at the target.

    It raises NotYet where that takes longer than so many seconds.
    """

    async def settle() -> None:
        await stream.await_marker(await stream.put_marker(), seconds)

    return settle
