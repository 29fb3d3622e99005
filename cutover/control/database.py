"""The control database: a pool, transactions, and transactions that leave an audit row.

jsonb columns travel as text (asyncpg's default): `documents.dumps` in, `documents.loads` out.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from cutover.control import audit, migrate
from cutover.control.audit import Connection, Entry
from cutover.errors import ConfigError, Unreachable
from cutover.postgres.databases import CONNECTION_ERRORS, NOT_CONNECTED, Database

__all__ = ["Connection", "Control"]

_log = logging.getLogger(__name__)

#: Seconds that one statement may take; all of ours are short.
STATEMENT_TIMEOUT = 30.0
IDLE_IN_TRANSACTION = "10s"

#: What a lost or hanging server raises *inside* a block. Plain OSError is left out there: the block is the caller's
#: code, and may have trouble with a file.
_LOST = (
    ConnectionError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)

#: How a block ends that has waited long enough. The driver would still wait for the server's word on the cancelled
#: statement and on a ROLLBACK, half a minute where the network says nothing: the session is cut instead.
_UNANSWERED = (asyncio.CancelledError, TimeoutError)


async def _as_it_is(_connection: Connection) -> None:
    """What a pooled connection needs after its use: nothing, for no use leaves a setting, a lock or a channel behind.

    The driver rolls back by itself what was left open; a reset would cost each use one more round trip.
    """


class Control:
    """The control database of one process. Open it with `Control.open`, close it with `close`."""

    def __init__(self, database: Database, pool: asyncpg.Pool) -> None:
        self.database = database
        self.pool = pool

    @classmethod
    async def open(cls, database: Database, *, min_size: int = 1, max_size: int = 4) -> "Control":
        """Connect; the schema is not looked at (see `migrate`). Raises Unreachable, ConfigError for a wrong DSN."""
        with database.opening():
            pool = await asyncpg.create_pool(
                database.dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=10.0,
                command_timeout=STATEMENT_TIMEOUT,
                reset=_as_it_is,
                server_settings={
                    "application_name": "cutover control",
                    # a journal that is answered is on disk, whatever the role's or the database's default
                    "synchronous_commit": "on",
                    # a process that is stopped in the middle must not keep the locks of switch and audit log
                    "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
                },
            )
        return cls(database, pool)

    async def close(self) -> None:
        """Close the pool; connections that do not end within 5 s are cut."""
        try:
            async with asyncio.timeout(5.0):
                await self.pool.close()
        except (*CONNECTION_ERRORS, TimeoutError):
            self.pool.terminate()

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; the files applied just now. Raises Conflict (see `cutover.control.migrate`)."""
        async with self.database.session("cutover setup") as connection:
            return await migrate.migrate(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A pooled connection, for reads and single statements.

        Raises Unreachable where the server is gone, ConfigError where the schema is missing or old.
        """
        try:
            acquired = await self.pool.acquire(timeout=STATEMENT_TIMEOUT)
        except NOT_CONNECTED as e:
            raise self._unreachable(e) from None
        try:
            with self._translated():
                try:
                    yield acquired
                except _UNANSWERED:
                    acquired.terminate()
                    raise
        finally:
            await self._release(acquired)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A READ COMMITTED transaction: committed at the block's end, rolled back on any exception.

        Raises Unreachable also where the answer to COMMIT was lost: read back, or run the same idempotent call again.
        """
        async with self.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except _UNANSWERED:
                raise  # the end of the session rolls back; nobody waits for an answer to that
            except BaseException:
                await transaction.rollback()
                raise
            await transaction.commit()

    @asynccontextmanager
    async def acting(
        self,
        actor: str,
        action: str,
        *,
        migration: str,
        service: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Connection]:
        """A transaction that leaves one audit row. `detail` may be filled inside the block: it is read at its end.

        The log's lock is taken at the block's end, so long blocks do not hold up others.
        """
        detail = {} if detail is None else detail
        async with self.transaction() as connection:
            yield connection
            await audit.append(connection, Entry(actor, action, migration, service, detail))

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return rows

    async def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        async with self.connection() as connection:
            status: str = await connection.execute(sql, *args)
            return status

    async def _release(self, connection: Any) -> None:
        try:
            await self.pool.release(connection, timeout=5.0)
        except CONNECTION_ERRORS as e:
            # The pool has dropped the connection by then, and the caller already has the error that matters.
            _log.debug("control connection lost at its release: %s", type(e).__name__)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (
            asyncpg.UndefinedTableError,
            asyncpg.UndefinedColumnError,
            asyncpg.UndefinedFunctionError,
            asyncpg.InvalidSchemaNameError,
        ) as e:
            what = str(e.args[0]) if e.args else type(e).__name__
            if what.startswith("operator"):
                raise  # a statement of ours is wrong, not the schema
            raise ConfigError(
                f"the schema of control database {self.database.name!r} is missing or old ({what}): run `cutover setup`"
            ) from None
        except _LOST as e:
            # asyncpg reports a wrong argument as an InterfaceError that is a ValueError: a mistake, no lost server.
            if isinstance(e, ValueError):
                raise
            raise self._unreachable(e) from None

    def _unreachable(self, e: BaseException) -> Unreachable:
        return Unreachable(f"control database {self.database.name!r} cannot be reached: {type(e).__name__}")
