"""Databases, sides and directions: which rows come from where, and how a connection to them is opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import asyncpg

from cutover.errors import Unreachable
from cutover.postgres.identifiers import TableName

Side = Literal["monolith", "service"]
Direction = Literal["forward", "reverse"]

#: What a lost or refusing server raises through asyncpg; worth another try, never a verdict.
CONNECTION_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)


def other(side: Side) -> Side:
    """The opposite side."""
    return "service" if side == "monolith" else "monolith"


@dataclass(frozen=True)
class Database:
    """A database by its name in the plan. The DSN stays out of `repr`, logs and histories."""

    name: str
    dsn: str = field(repr=False)
    #: How the *other* server reaches this one (CREATE SUBSCRIPTION's CONNECTION); the DSN unless set apart.
    replication_dsn: str = field(default="", repr=False)

    @property
    def conninfo(self) -> str:
        return self.replication_dsn or self.dsn

    async def connect(
        self, application_name: str = "cutover", *, timeout: float = 10.0, **settings: str
    ) -> asyncpg.Connection:
        """A new connection; `settings` are server settings of the session (`lock_timeout="200ms"`).

        Raises Unreachable with the database's name, never with its DSN.
        """
        try:
            connection: asyncpg.Connection = await asyncpg.connect(
                self.dsn,
                timeout=timeout,
                server_settings={"application_name": application_name, **settings},
            )
        except (
            *CONNECTION_ERRORS,
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
        ) as e:
            raise Unreachable(f"database {self.name!r} cannot be reached: {type(e).__name__}") from None
        return connection

    @asynccontextmanager
    async def session(self, application_name: str = "cutover", **settings: str) -> AsyncIterator[asyncpg.Connection]:
        """A connection for one block; closed at its end on every path."""
        connection = await self.connect(application_name, timeout=10.0, **settings)
        try:
            yield connection
        finally:
            try:
                await connection.close(timeout=5)
            except CONNECTION_ERRORS:
                connection.terminate()


@dataclass(frozen=True)
class Pair:
    """One service's tables with the two databases that hold them."""

    migration: str
    service: str
    monolith: Database
    target: Database
    tables: tuple[TableName, ...]

    def at(self, side: Side) -> Database:
        return self.monolith if side == "monolith" else self.target

    def source(self, direction: Direction) -> Database:
        """Where rows come from in that direction."""
        return self.monolith if direction == "forward" else self.target

    def sink(self, direction: Direction) -> Database:
        """Where rows go in that direction."""
        return self.target if direction == "forward" else self.monolith


def direction_from(primary: Side) -> Direction:
    """The direction in which rows flow while `primary` is the writable side."""
    return "forward" if primary == "monolith" else "reverse"
