"""One attempt at a switch: its fencing token, its sessions, and the end of every older attempt's.

After a missed heartbeat a second attempt may start while the first one sleeps. So each attempt draws a
new token in the control database, then in each database ends older sessions, until its own raise of
the token gets the row's lock. From then on no older attempt can have another effect (design 5.6).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from cutover.control import switches
from cutover.errors import NotYet
from cutover.postgres import epoch
from cutover.postgres.databases import CONNECTION_ERRORS, Side
from cutover.switch.environment import SwitchEnvironment

_SEIZE_SECONDS = 10.0


class Attempt:
    """Holds the token and one session per side; sessions that broke are opened again under the same token."""

    def __init__(self, env: SwitchEnvironment, row: switches.SwitchRow) -> None:
        self.env = env
        self.row = row
        self._sessions: dict[Side, asyncpg.Connection] = {}

    async def session(self, side: Side) -> asyncpg.Connection:
        """The open session of that side."""
        current = self._sessions.get(side)
        if current is None or current.is_closed():
            current = await self.env.pair.at(side).connect(
                epoch.application_name(self.env.pair.service, self.row.token), synchronous_commit="on"
            )
            try:
                # an autovacuum in the way is cancelled after the waiter's deadlock_timeout
                await current.execute("SET deadlock_timeout = '50ms'")
            except asyncpg.InsufficientPrivilegeError:
                await current.execute("SELECT 1")  # not a superuser: the server's own deadlock_timeout stays
            self._sessions[side] = current
        return current

    async def seize(self) -> None:
        """Raises the token on both sides. Raises StaleAttempt, or NotYet when an old session will not end."""
        for side in ("monolith", "service"):
            await self._seize_side(side)

    async def _seize_side(self, side: Side) -> None:
        service, token = self.env.pair.service, self.row.token
        deadline = time.monotonic() + _SEIZE_SECONDS
        while True:
            connection = await self.session(side)
            await epoch.end_older_sessions(connection, service, token)
            try:
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '250ms'")
                    await epoch.raise_token(connection, service, token)
                return
            except asyncpg.LockNotAvailableError:
                if time.monotonic() > deadline:
                    raise NotYet(f"{service}: an older attempt's session at the {side} does not end") from None
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def effect(self, side: Side, lock_timeout: str = "2s") -> AsyncIterator[asyncpg.Connection]:
        """One transaction with an effect on that side, under the token."""
        connection = await self.session(side)
        async with connection.transaction():
            await connection.execute("SELECT set_config('lock_timeout', $1, true)", lock_timeout)
            await epoch.hold_token(connection, self.env.pair.service, self.row.token)
            yield connection

    async def close(self) -> None:
        for connection in self._sessions.values():
            try:
                await connection.close(timeout=2)
            except CONNECTION_ERRORS:
                connection.terminate()


@asynccontextmanager
async def open_attempt(env: SwitchEnvironment) -> AsyncIterator[Attempt]:
    """A new attempt that owns the switch of this service on both sides."""
    row = await switches.raise_token(env.control, env.pair.migration, env.pair.service)
    attempt = Attempt(env, row)
    try:
        await attempt.seize()
        yield attempt
    finally:
        await attempt.close()
