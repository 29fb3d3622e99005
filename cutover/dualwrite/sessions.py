"""Sessions of our own at a service's two databases: kept open, a few at each, beside the application's pool.

Those that write at the other side run in replica mode and are let through by the fence, as every applier of ours
(`postgres.applier`). They carry no replication origin: an origin belongs to one session at a time and a server has few,
and of `stream: outbox` nothing is read from the WAL that would send the rows back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from cutover.errors import ConfigError, NotYet
from cutover.postgres.compare import TEXT_SETTINGS
from cutover.postgres.databases import NOT_CONNECTED, Database

_log = logging.getLogger(__name__)

#: Limits of what a branch may wait for while the primary's locks are held, and plans by index whatever is known of a
#: table. `idle_in_transaction_session_timeout` ends what a frozen process has begun.
_SETTINGS = {
    **TEXT_SETTINGS,
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",
    "synchronous_commit": "on",
}
_BEHIND_THE_FENCE = {"session_replication_role": "replica", "cutover.applier": "on"}
#: Seconds for a new connection.
CONNECT_TIMEOUT = 3.0
#: Seconds after which a statement counts as lost. The server gives it up sooner, so then the network says nothing.
COMMAND_TIMEOUT = 12.0
CLOSE_TIMEOUT = 2.0


class Sessions:
    """The sessions at one database; at most `limit` at once, whoever wants more waits."""

    def __init__(self, database: Database, label: str, limit: int, *, behind_the_fence: bool) -> None:
        self.database = database
        self._label = label
        self._settings = {**_SETTINGS, **(_BEHIND_THE_FENCE if behind_the_fence else {})}
        self._idle: list[asyncpg.Connection] = []
        self._free = asyncio.Semaphore(limit)
        self._closed = False

    async def take(self) -> asyncpg.Connection:
        """A session for the caller alone, to be given back. Raises Unreachable, ConfigError, NotYet if none is free."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._free.acquire()
        except TimeoutError:
            raise NotYet(f"all sessions of this process to {self.database.name!r} are in use") from None
        try:
            while self._idle:
                session = self._idle.pop()
                if not session.is_closed():
                    return session
            return await self.database.connect(
                self._label, timeout=CONNECT_TIMEOUT, command_timeout=COMMAND_TIMEOUT, **self._settings
            )
        except asyncpg.InsufficientPrivilegeError:
            self._free.release()
            raise ConfigError(
                f"the role that cutover has at {self.database.name!r} may not write behind the fence: name databases "
                "with cutover's own role in RoutedPool.open(appliers=…)"
            ) from None
        except BaseException:
            self._free.release()
            raise

    def give(self, session: asyncpg.Connection) -> None:
        """Takes it back: kept if it is in no transaction, ended otherwise."""
        self._free.release()
        if session.is_closed():
            return
        if self._closed or session.is_in_transaction():
            session.terminate()
        else:
            self._idle.append(session)

    @asynccontextmanager
    async def one(self, within: float | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A session for one block; ended where the block failed, and after `within` seconds in any case."""
        session = await self.take()
        limit = None if within is None else asyncio.get_running_loop().call_later(within, session.terminate)
        try:
            yield session
        except BaseException:
            session.terminate()
            raise
        finally:
            if limit is not None:
                limit.cancel()
            self.give(session)

    async def close(self) -> None:
        """Ends those that are kept; one that is in use is ended when it is given back."""
        self._closed = True
        while self._idle:
            session = self._idle.pop()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await session.close()
            except (*NOT_CONNECTED, asyncpg.PostgresError) as error:
                _log.debug("a session at %s was cut at its end: %s", self.database.name, type(error).__name__)
                session.terminate()
