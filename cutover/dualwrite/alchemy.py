"""SQLAlchemy over a routed pool: an AsyncEngine whose transactions go where the service's tables are.

    from cutover.dualwrite.alchemy import routed_engine

    engine = routed_engine(pool.service("trading_engine"))
    sessions = async_sessionmaker(engine, expire_on_commit=False)

SQLAlchemy's asyncpg dialect begins a transaction before the first statement and ends it by COMMIT or ROLLBACK. Each of
them is a `ServicePool.transaction` here: held through a pause, on one side from its first statement to its end, at the
service's level, with that method's errors. Between two transactions a SQLAlchemy connection holds none of PostgreSQL's.

The asyncpg connections are the engine's own, for the dialect gives them its codecs (json as objects, for one).
Needs SQLAlchemy 2.0.16 or newer: the extra `sqlalchemy`. See docs/dual-write.md.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from cutover.dualwrite import outcome
from cutover.dualwrite.connections import gone, routed
from cutover.dualwrite.errors import Fenced
from cutover.dualwrite.service_pool import Isolation, ServicePool
from cutover.dualwrite.transactions import GivenUp
from cutover.errors import ConfigError, CutoverError, Unreachable

try:
    from sqlalchemy import Connection as AlchemyConnection
    from sqlalchemy import event
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import NullPool
except ImportError as error:
    raise ImportError(
        "cutover.dualwrite.alchemy needs SQLAlchemy 2 with asyncio: pip install '.[sqlalchemy]' in cutover's checkout"
    ) from error

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

__all__ = ["routed_engine"]

_log = logging.getLogger(__name__)

#: Execution options and what they may say; None: anything.
_OPTIONS: dict[str, tuple[str, ...] | None] = {
    "cutover_read": ("read_your_writes", "stale_ok"),
    "cutover_level": ("strong", "eventual", "best_effort"),
    "cutover_key": None,
    "cutover_table": None,
}
#: Statements and types that were prepared before a table was changed.
_STALE = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)


def routed_engine(pool: ServicePool, **options: Any) -> AsyncEngine:
    """An engine for the tables of one service; open it once, as the pool. `options` go to `create_async_engine`.

    Its connections are the engine's own: at most the pool's `max_size` per database, closed with the RoutedPool.
    Execution options, of the engine, a connection or `session.connection(execution_options=…)`, read when a transaction
    begins: `cutover_read="stale_ok"` (read-only, by the flags' share, with `cutover_key` sticky), `cutover_level`
    and `cutover_table` (the label of measurements).
    A statement raises Fenced where the database refuses writes at this side, HeldTooLong where a pause lasted too long,
    Unreachable: nothing was done, run the transaction again. The commit raises what `ServicePool.transaction` raises.
    """
    if wrong := sorted({"creator", "async_creator", "poolclass", "pool"} & set(options)):
        raise ConfigError(f"routed_engine connects through its pool: leave {', '.join(wrong)} out")
    shared = _Shared(pool)

    async def connect() -> _Driver:
        return _Driver(shared)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool, **options)
    event.listen(engine.sync_engine, "begin", _tell_options)
    event.listen(engine.sync_engine, "handle_error", _let_go)
    return engine


def _tell_options(connection: AlchemyConnection) -> None:
    """A transaction is about to begin: its driver is told what it was asked for."""
    given = connection.get_execution_options()
    chosen = {str(name): value for name, value in given.items() if str(name).startswith("cutover_")}
    for name, value in chosen.items():
        if name not in _OPTIONS:
            raise ConfigError(f"execution option {name} is unknown; there are {', '.join(_OPTIONS)}")
        allowed = _OPTIONS[name]
        if allowed is not None and value not in allowed:
            raise ConfigError(f"execution option {name} is one of {', '.join(allowed)}, not {value!r}")
    driver = connection.connection.driver_connection
    assert isinstance(driver, _Driver)
    driver.options = chosen


def _let_go(context: ExceptionContext) -> None:
    """A session whose end is refused does not come to giving its connection back."""
    if context.statement is None and isinstance(context.original_exception, CutoverError):
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False


class _Shared:
    """What the drivers of one engine have in common."""

    def __init__(self, pool: ServicePool) -> None:
        #: By schema and type, as the dialect wants them in every connection.
        self.codecs: dict[tuple[str, str], dict[str, Any]] = {}
        #: Blocks that end in the background.
        self.ending: set[asyncio.Task[None]] = set()
        self.pool = pool.beside(self._prepare)

    async def _prepare(self, connection: asyncpg.Connection) -> None:
        for (schema, name), codec in self.codecs.items():
            await connection.set_type_codec(name, schema=schema, **codec)


class _Driver:
    """What the dialect takes for an asyncpg connection. It has one of PostgreSQL's while a transaction is open."""

    def __init__(self, shared: _Shared) -> None:
        self.options: dict[str, Any] = {}
        self._shared = shared
        self._pool = shared.pool
        self._block: AbstractAsyncContextManager[Connection] | None = None
        self._connection: Connection | None = None
        #: What the last statement raised: the reason of a rollback.
        self._error: BaseException | None = None
        #: Whether its transaction is one.
        self._readonly = False
        self._outdated = False

    def __getattr__(self, name: str) -> Any:
        """What else asyncpg has (`copy_records_to_table`, …), inside a transaction."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._open, name)

    @property
    def _open(self) -> "Connection":
        if self._connection is None:
            raise ConfigError(
                f"{self._pool.service}: an engine of routed_engine runs everything in transactions, so isolation level "
                "AUTOCOMMIT cannot be had: use RoutedPool's own execute()"
            )
        return self._connection

    # ------------------------------------------------------------------ transactions

    def transaction(
        self, *, isolation: Isolation | None = None, readonly: bool = False, deferrable: bool = False
    ) -> "_Transaction":
        if deferrable:
            raise ConfigError("postgresql_deferrable cannot be had through routed_engine")
        return _Transaction(self, isolation, readonly)

    async def begin(self, isolation: Isolation | None, readonly: bool) -> None:
        read = self.options.get("cutover_read", "read_your_writes")
        only_reads = readonly or read == "stale_ok"
        block = self._pool.transaction(
            table=self.options.get("cutover_table"),
            isolation=isolation,
            readonly=only_reads,
            read=read,
            key=self.options.get("cutover_key"),
            level=self.options.get("cutover_level"),
        )
        self._connection = await block.__aenter__()
        self._block, self._error, self._readonly = block, None, only_reads
        if self._outdated:
            self._outdated = False
            await self._connection.reload_schema_state()

    async def commit(self) -> None:
        if block := self._taken():
            await block.__aexit__(None, None, None)

    async def rollback(self) -> None:
        """The end of a session that only reads, too: Fenced where what it has read came from a side that was left.

        After an error the block ends by that one, so that it is counted as one of the transaction's.
        """
        if (block := self._taken()) is None:
            return
        if error := self._error:
            # translated, for a caller who has met it already
            with suppress(Fenced, Unreachable):
                await block.__aexit__(type(error), error, None)
        elif self._readonly:
            await block.__aexit__(None, None, None)
        else:
            await block.__aexit__(GivenUp, GivenUp(), None)

    async def abandon(self) -> None:
        """The same where nobody is there to be told."""
        with suppress(Fenced, Unreachable):
            await self.rollback()

    def _taken(self) -> "AbstractAsyncContextManager[Connection] | None":
        block, self._block, self._connection = self._block, None, None
        return block

    # ------------------------------------------------------------------ statements

    async def prepare(self, query: str, *, name: str | None = None) -> "_Statement":
        statement = _Statement(self, query)
        await statement.resolved()
        return statement

    async def prepared(self, query: str) -> PreparedStatement:
        with self.noticing():
            return await routed(self._open).prepare_cached(query)

    async def executemany(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        with self.noticing():
            await self._open.executemany(query, rows)

    async def fetchrow(self, query: str, *args: object) -> asyncpg.Record | None:
        with self.noticing():
            return await self._open.fetchrow(query, *args)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Keeps a statement's error; raises the pool's own one where it says that nothing was done."""
        self._error = None
        try:
            yield
        except BaseException as error:
            self._error = error
            if isinstance(error, _STALE):
                self._outdated = True
            if outcome.is_fenced(error):
                raise Fenced(
                    f"{self._pool.service}: a transaction met the fence, so it is rolled back: the service's writes "
                    "move just now; nothing was done, run it again"
                ) from None
            # a server that says goodbye (FATAL) is gone, though its connection may not know it yet
            goodbye = isinstance(error, asyncpg.PostgresError)
            if outcome.is_lost(error) and (goodbye or self.is_closed()):
                raise Unreachable(
                    f"{self._pool.service}: the connection was lost before a transaction was committed "
                    f"({type(error).__name__}); nothing was done, run it again"
                ) from None
            raise

    # ------------------------------------------------------------------ the connection's life

    async def set_type_codec(self, typename: str, *, schema: str = "public", **codec: Any) -> None:
        """The dialect's codecs, for the connections that PostgreSQL's pool opens from here on."""
        self._shared.codecs[schema, typename] = codec

    async def reload_schema_state(self) -> None:
        if self._connection is None:
            self._outdated = True
        else:
            await self._connection.reload_schema_state()

    def is_closed(self) -> bool:
        return self._connection is not None and gone(self._connection)

    async def close(self, *, timeout: float | None = None) -> None:
        await self.abandon()

    def terminate(self) -> None:
        """For one that nobody gave back: the garbage collector cannot wait for a ROLLBACK."""
        if self._connection is not None:
            _log.warning("%s: a SQLAlchemy connection was dropped inside a transaction", self._pool.service)
            if not gone(self._connection):
                self._connection.terminate()
            with suppress(RuntimeError):  # no loop: the process ends
                task = asyncio.get_running_loop().create_task(self.abandon())
                self._shared.ending.add(task)
                task.add_done_callback(self._shared.ending.discard)


class _Transaction:
    """What the dialect takes for asyncpg's transaction."""

    def __init__(self, driver: _Driver, isolation: Isolation | None, readonly: bool) -> None:
        self._driver = driver
        self._isolation = isolation
        self._readonly = readonly

    async def start(self) -> None:
        await self._driver.begin(self._isolation, self._readonly)

    async def commit(self) -> None:
        await self._driver.commit()

    async def rollback(self) -> None:
        await self._driver.rollback()


class _Statement:
    """What the dialect takes for a prepared statement, and keeps for a later transaction: prepared anew in each."""

    def __init__(self, driver: _Driver, query: str) -> None:
        self._driver = driver
        self._query = query
        self._last: PreparedStatement | None = None

    async def resolved(self) -> PreparedStatement:
        self._last = await self._driver.prepared(self._query)
        return self._last

    @property
    def _known(self) -> PreparedStatement:
        assert self._last is not None, "it was prepared"
        return self._last

    def get_attributes(self) -> Sequence[Any]:
        return self._known.get_attributes()

    def get_statusmsg(self) -> str | None:
        return self._known.get_statusmsg()

    async def fetch(self, *args: object) -> list[asyncpg.Record]:
        statement = await self.resolved()
        with self._driver.noticing():
            return await statement.fetch(*args)

    async def cursor(self, *args: object) -> Any:
        statement = await self.resolved()
        with self._driver.noticing():
            return await statement.cursor(*args)
