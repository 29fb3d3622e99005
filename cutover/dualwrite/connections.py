"""One asyncpg pool a database, opened when it is first needed; shared by the services that live there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from cutover.dualwrite.errors import PoolClosed, TransactionAborted
from cutover.errors import CutoverError, Unreachable
from cutover.postgres.databases import NOT_CONNECTED, Database

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    #: What `acquire` and `transaction` lend: an asyncpg connection out of a pool.
    Connection = PoolConnectionProxy[asyncpg.Record]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
RELEASE_TIMEOUT = 5.0


def gone(connection: "Connection") -> bool:
    """Whether a lent connection is closed; a pool takes a closed one back at once, and then it refuses every call."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True


def routed(connection: "Connection") -> "RoutedConnection":
    """A lent connection with what is ours in it. Raises ConnectionDoesNotExistError for one that is closed.

    The pool's proxy passes on what it does not know itself, and on one whose connection is gone that is nothing's.
    """
    if gone(connection):
        raise asyncpg.ConnectionDoesNotExistError("the connection was closed before anything was sent")
    return cast("RoutedConnection", connection)


class RoutedConnection(asyncpg.Connection):
    """asyncpg's connection, which in addition believes a COMMIT only if the server says COMMIT.

    A transaction in which a statement failed answers COMMIT with the tag ROLLBACK and without an error
    (PostgreSQL manual, COMMIT); asyncpg drops the tag, and the caller would take its writes for done.
    """

    _before_commit = ""
    _unlogged = False

    def send_with_commit(self, statement: str) -> None:
        """Lets the next COMMIT carry a statement in front of it, in the same message: it costs no round trip."""
        self._before_commit = statement

    async def prepare_cached(self, query: str) -> PreparedStatement:
        """`prepare` by way of the cache that `fetch` has: of a statement that is known it costs no round trip."""
        prepared: PreparedStatement = await self._prepare(query, use_cache=True)  # type: ignore[attr-defined]  # no stub
        return prepared

    def unlogged(self, *, forget: bool = False) -> bool:
        """Whether something was begun here, since that was forgotten, of which a query logger hears nothing."""
        self._unlogged = self._unlogged and not forget
        return self._unlogged

    async def prepare(self, *args: Any, **options: Any) -> PreparedStatement:  # type: ignore[override]  # all of them
        self._unlogged = True
        return await super().prepare(*args, **options)

    async def copy_to_table(self, *args: Any, **options: Any) -> str:
        self._unlogged = True
        return str(await super().copy_to_table(*args, **options))

    async def copy_records_to_table(self, *args: Any, **options: Any) -> str:
        self._unlogged = True
        return str(await super().copy_records_to_table(*args, **options))

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        if len(query) > len("COMMIT;") or query.rstrip(";").upper() not in ("COMMIT", "END"):
            return str(await super().execute(query, *args, timeout=timeout))
        first, self._before_commit = self._before_commit, ""
        try:
            status: str = await super().execute(f"{first}; COMMIT" if first else query, timeout=timeout)
        except asyncpg.PostgresError as error:
            await self._roll_back()
            if isinstance(error, asyncpg.InFailedSQLTransactionError):
                raise aborted() from None
            raise
        if status == "ROLLBACK":
            raise aborted()
        return status

    async def _roll_back(self) -> None:
        """Where what stood in front of the COMMIT has failed, so that this was not reached."""
        if not self.is_closed() and self.is_in_transaction():
            with suppress(*NOT_CONNECTED, asyncpg.PostgresError):  # gone, it has rolled back by itself
                await super().execute("ROLLBACK")


def aborted() -> TransactionAborted:
    """The error for a COMMIT that cannot be one."""
    return TransactionAborted(
        "nothing was committed: a statement inside the transaction had failed, and its error was not passed on"
    )


class Pools:
    """The pools of one process."""

    def __init__(self, *, application: str, min_size: int, max_size: int, options: dict[str, Any]) -> None:
        self._application = application
        self._min_size = min_size
        self._max_size = max_size
        self._options = options
        self._pools: dict[Database, asyncpg.Pool] = {}
        self._opening: dict[Database, asyncio.Lock] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._beside: list[Pools] = []
        self._closed = False

    def beside(self, init: Callable[[asyncpg.Connection], Awaitable[None]]) -> "Pools":
        """Pools like these with connections of their own, which `init` prepares; warmed and closed with these."""
        given = self._options.get("init")

        async def both(connection: asyncpg.Connection) -> None:
            if given is not None:
                await given(connection)
            await init(connection)

        pools = Pools(
            application=self._application,
            min_size=self._min_size,
            max_size=self._max_size,
            options={**self._options, "init": both},
        )
        self._beside.append(pools)
        return pools

    async def _pool(self, database: Database) -> asyncpg.Pool:
        if self._closed:
            raise PoolClosed("this RoutedPool has been closed; open a new one")
        if pool := self._pools.get(database):
            return pool
        async with self._opening.setdefault(database, asyncio.Lock()):
            if database not in self._pools:
                settings = {"application_name": self._application, **self._options.get("server_settings", {})}
                # made outside of the block: a wrong option of the caller's is no wrong DSN
                pool = asyncpg.create_pool(
                    database.dsn,
                    min_size=self._min_size,
                    max_size=self._max_size,
                    timeout=CONNECT_TIMEOUT,
                    connection_class=RoutedConnection,
                    **{**self._options, "server_settings": settings},
                )
                with database.readable():
                    self._pools[database] = await pool
        return self._pools[database]

    async def acquire(self, database: Database, within: float) -> "Connection":
        """A connection within so many seconds. Nothing was sent where this raises.

        Raises Unreachable with the database's name, ConfigError where its DSN cannot be read.
        """
        try:
            pool = await self._pool(database)
            with database.readable():
                # asyncpg's own limit and not a cancel scope: it gives back a connection that arrives too late
                return await pool.acquire(timeout=max(within, 0.001))
        except NOT_CONNECTED as error:
            busy = isinstance(error, TimeoutError) and self._busy(database)
            why = f"all {self._max_size} connections of this process are in use" if busy else type(error).__name__
            raise Unreachable(f"database {database.name!r} gave no connection: {why}; nothing was sent") from None

    def _busy(self, database: Database) -> bool:
        pool = self._pools.get(database)
        return pool is not None and pool.get_idle_size() == 0 and pool.get_size() >= self._max_size

    async def release(self, database: Database, connection: "Connection") -> None:
        """Gives it back. What fails here fails after the work was done, so it is nobody's error."""
        try:
            await self._pools[database].release(connection, timeout=RELEASE_TIMEOUT)
        except NOT_CONNECTED as error:
            _log.debug("a connection to %s was lost at its release: %s", database.name, type(error).__name__)
        except asyncpg.PostgresError as error:
            _log.debug("a connection to %s could not be reset: %s", database.name, type(error).__name__)

    def release_later(self, database: Database, connection: "Connection") -> None:
        """The same beside what the caller does next."""
        task = asyncio.create_task(self.release(database, connection))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def warm(self, database: Database, like: Database) -> None:
        """Opens as many connections as there are to `like`, before they are needed all at once; nobody waits for it."""
        for pools in self._beside:
            if like in pools._pools:
                await pools.warm(database, like)
        known = self._pools.get(like)
        wanted = min(known.get_size() if known else 1, self._max_size)
        try:
            pool = await self._pool(database)
        except (CutoverError, *NOT_CONNECTED) as error:
            _log.debug("connections to %s were not opened ahead: %s", database.name, type(error).__name__)
            return
        missing = wanted - pool.get_size()
        if missing <= 0:
            return
        # A pool lends its open connections first: they are taken, and given back once the others have begun to open.
        begun = asyncio.Event()
        openings = [self._open_ahead(database, begun) for _ in range(pool.get_idle_size() + missing)]
        opening = asyncio.gather(*openings)
        try:
            await asyncio.sleep(0)
        finally:
            begun.set()
        await opening

    async def _open_ahead(self, database: Database, begun: asyncio.Event) -> None:
        if self._busy(database):
            return
        try:
            connection = await self.acquire(database, CONNECT_TIMEOUT)
        except CutoverError as error:
            _log.debug("a connection to %s was not opened ahead: %s", database.name, type(error).__name__)
            return
        try:
            await begun.wait()
        finally:
            await self.release(database, connection)

    async def close(self, timeout: float) -> None:
        """Closes every pool; connections still in use after `timeout` seconds are cut."""
        self._closed = True
        await asyncio.gather(*(pools.close(timeout) for pools in self._beside))
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=timeout)
        for database, pool in self._pools.items():
            try:
                async with asyncio.timeout(timeout):
                    await pool.close()
            except NOT_CONNECTED as error:
                _log.warning("connections to %s were cut at close: %s", database.name, type(error).__name__)
                pool.terminate()
