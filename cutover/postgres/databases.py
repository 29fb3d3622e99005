"""Databases, sides and directions: which rows come from where, and how a connection to them is opened."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import asyncpg

from cutover.errors import ConfigError, CutoverError, Unreachable
from cutover.plan.dsn import variable
from cutover.plan.models import Compare
from cutover.postgres.identifiers import TableName

Side = Literal["monolith", "service"]
Direction = Literal["forward", "reverse"]
SIDES: tuple[Side, Side] = ("monolith", "service")
DIRECTIONS: tuple[Direction, Direction] = ("forward", "reverse")

#: What a lost or refusing server raises through asyncpg; worth another try, never a verdict.
CONNECTION_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver lost track of a connection that was cut in the middle of a message
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)

#: With what a try at a database ends that is worth a next one, whatever it was: background work is not ended by it.
FAILURES = (*CONNECTION_ERRORS, asyncpg.PostgresError, CutoverError)

#: What opening a connection raises where a server is away, starting, full or does not know us. Nothing was sent.
NOT_CONNECTED = (
    *CONNECTION_ERRORS,
    asyncpg.InsufficientResourcesError,  # a new session needs room on the disk too
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)

#: What the driver raises for a DSN that it cannot read: texts that may hold a part of the password.
_UNREADABLE = (ValueError, OverflowError)


def other(side: Side) -> Side:
    """The opposite side."""
    return "service" if side == "monolith" else "monolith"


def source_side(direction: Direction) -> Side:
    """Where rows come from in that direction."""
    return "monolith" if direction == "forward" else "service"


#: Opens a connection to one side, for one effect: what is done through it may be bound to a token (`Attempt.effect`).
Through = Callable[[Side], AbstractAsyncContextManager[asyncpg.Connection]]


#: An idle session is kept this long for the next one of its kind.
IDLE_SECONDS = 20.0


@dataclass
class _Idle:
    connection: asyncpg.Connection
    since: float


@dataclass(frozen=True)
class Database:
    """A database by its name in the plan. The DSN stays out of `repr`, logs and histories."""

    name: str
    dsn: str = field(repr=False)
    #: How the *other* server reaches this one (CREATE SUBSCRIPTION's CONNECTION); the DSN unless set apart.
    replication_dsn: str = field(default="", repr=False)
    #: Sessions are kept for a moment and used again: a worker opens many, and each costs a process and a login.
    reuse: bool = field(default=False, compare=False)
    _idle: dict[tuple[str, ...], list[_Idle]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def conninfo(self) -> str:
        return self.replication_dsn or self.dsn

    async def connect(
        self,
        application_name: str = "cutover",
        *,
        timeout: float = 10.0,
        command_timeout: float | None = None,
        **settings: str,
    ) -> asyncpg.Connection:
        """A new connection; `settings` are server settings of the session (`lock_timeout="200ms"`).

        `command_timeout`: seconds after which a statement counts as lost, where the network says nothing.

        Raises Unreachable or ConfigError with the database's name, never with its DSN.
        """
        with self.opening():
            connection: asyncpg.Connection = await asyncpg.connect(
                self.dsn,
                timeout=timeout,
                command_timeout=command_timeout,
                server_settings={"application_name": application_name, **settings},
            )
        return connection

    @contextmanager
    def opening(self) -> Iterator[None]:
        """For a block that only opens a connection or a pool: its errors leave as ours, without the DSN.

        Raises Unreachable with the database's name, ConfigError with the name of its variable.
        """
        try:
            with self.readable():
                yield
        except NOT_CONNECTED as e:
            raise Unreachable(f"database {self.name!r} cannot be reached: {type(e).__name__}") from None

    @contextmanager
    def readable(self) -> Iterator[None]:
        """For a block in which the driver may read the DSN for the first time.

        Raises ConfigError, with nothing of the DSN in it, where the driver cannot read it.
        """
        try:
            yield
        except _UNREADABLE:
            raise ConfigError(
                f"{variable(self.name)}, the DSN of database {self.name!r}, cannot be read (its value is not shown): "
                "write postgresql://user:password@host:5432/name, with % : / ? # [ ] @ inside a user or password as "
                "%25 %3A %2F %3F %23 %5B %5D %40"
            ) from None

    @asynccontextmanager
    async def session(self, application_name: str = "cutover", **settings: str) -> AsyncIterator[asyncpg.Connection]:
        """A connection for one block.

        A kept one is reset (settings, locks, listeners) before it is used again; one whose block failed is not kept.
        """
        kind = (application_name, *(f"{name}={value}" for name, value in sorted(settings.items())))
        connection = self._take(kind) if self.reuse else None
        if connection is None:
            connection = await self.connect(application_name, timeout=10.0, command_timeout=None, **settings)
        whole = False
        try:
            yield connection
            whole = True
        finally:
            try:
                if self.reuse and whole and not connection.is_closed() and not connection.is_in_transaction():
                    await connection.reset(timeout=5)
                    self._idle.setdefault(kind, []).append(_Idle(connection, time.monotonic()))
                else:
                    await connection.close(timeout=5)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError):
                connection.terminate()

    def end_idle(self) -> None:
        """Ends the sessions that were kept for a next one."""
        for idle in self._idle.values():
            while idle:
                idle.pop().connection.terminate()

    def _take(self, kind: tuple[str, ...]) -> asyncpg.Connection | None:
        """A kept session of that kind; those that idled too long are ended."""
        now = time.monotonic()
        for idle in self._idle.values():
            while idle and (now - idle[0].since > IDLE_SECONDS or idle[0].connection.is_closed()):
                idle.pop(0).connection.terminate()
        waiting = self._idle.get(kind)
        return waiting.pop().connection if waiting else None


@contextmanager
def ended_after(seconds: float, *connections: asyncpg.Connection) -> Iterator[None]:
    """Breaks these connections off where the block lasts longer: what waits for them meets a lost connection.

    For a network that says nothing. A cancellation would wait for the server's answer to it, and so would a ROLLBACK.
    """

    def end() -> None:
        for connection in connections:
            connection.terminate()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    finally:
        timer.cancel()


@dataclass(frozen=True)
class Pair:
    """One service's tables with the two databases that hold them."""

    migration: str
    service: str
    monolith: Database
    target: Database
    tables: tuple[TableName, ...]
    #: What the plan lets a comparison pass over; nothing in tables that are not named.
    compare: Mapping[TableName, Compare] = field(default_factory=dict, hash=False)
    #: Replicas to read from where nothing is decided by it, by the name of their primary.
    replicas: Mapping[str, Database] = field(default_factory=dict, hash=False)

    def at(self, side: Side) -> Database:
        return self.monolith if side == "monolith" else self.target

    def passes_over(self, table: TableName) -> Compare:
        """What a comparison of the table leaves out or counts as equal."""
        return self.compare.get(table, Compare())

    def source(self, direction: Direction) -> Database:
        """Where rows come from in that direction."""
        return self.at(source_side(direction))

    def sink(self, direction: Direction) -> Database:
        """Where rows go in that direction."""
        return self.at(other(source_side(direction)))


def direction_from(primary: Side) -> Direction:
    """The direction in which rows flow while `primary` is the writable side."""
    return "forward" if primary == "monolith" else "reverse"
