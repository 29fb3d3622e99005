"""One attempt at a switch: its fencing token, its sessions, and the end of every older attempt's.

After a missed heartbeat a second attempt may start while the first one sleeps. So each attempt draws a
new token in the control database, then in each database ends older sessions, until its own raise of
the token gets the row's lock. From then on no older attempt can have another effect there (design 5.6).
A side is seized before the first effect on it: what has to be done at one side does not wait for the other.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg

from cutover import faults
from cutover.control import switches
from cutover.errors import GateClosed, NotYet, Refused, StaleAttempt, Unreachable
from cutover.flags import store as flags
from cutover.flags.store import Route
from cutover.postgres import epoch
from cutover.postgres.databases import CONNECTION_ERRORS, SIDES, Side, Through
from cutover.switch.environment import SwitchEnvironment

_SEIZE_SECONDS = 10.0
#: Beyond the pause's limit: what recovery may wait for an answer of a database.
_COMMAND_SECONDS = 5.0
#: What is taken away between two switches may be large.
_LEISURE_SECONDS = 600.0
_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', $1, true)"


class Attempt:
    """Holds the token and one session per side; sessions that broke are opened again under the same token."""

    def __init__(self, env: SwitchEnvironment, row: switches.SwitchRow, seconds: float = 0.0) -> None:
        """`seconds`: how long a statement may take, where that is not the pause's limit and a little more."""
        self.env = env
        self.row = row
        self._seconds = seconds or env.max_pause + _COMMAND_SECONDS
        self._sessions: dict[Side, asyncpg.Connection] = {}
        #: Sides where an autovacuum in the way is cancelled before a lock attempt gives up.
        self.outranks_autovacuum: set[Side] = set()
        #: The epoch that each side that is seized knew then.
        self._seized: dict[Side, int] = {}

    async def session(self, side: Side) -> asyncpg.Connection:
        """The open session of that side."""
        current = self._sessions.get(side)
        if current is None or current.is_closed():
            current = await self.env.pair.at(side).connect(
                epoch.application_name(self.env.pair.service, self.row.token),
                command_timeout=self._seconds,
                synchronous_commit="on",
                # a process that is stopped in the middle of an effect must not keep its locks
                idle_in_transaction_session_timeout=str(int(1000 * (self.env.max_pause + _COMMAND_SECONDS))),
            )
            try:
                # an autovacuum in the way is cancelled after the waiter's deadlock_timeout
                await current.execute("SET deadlock_timeout = '50ms'")
                self.outranks_autovacuum.add(side)
            except asyncpg.InsufficientPrivilegeError:
                await current.execute("SELECT 1")  # not a superuser: the server's own deadlock_timeout stays
            self._sessions[side] = current
        return current

    async def seize(self, side: Side) -> int:
        """Raises the token on that side; the epoch that it knew then.

        Raises StaleAttempt, or NotYet when an old session will not end.
        """
        if side in self._seized:
            return self._seized[side]
        service, token = self.env.pair.service, self.row.token
        deadline = time.monotonic() + _SEIZE_SECONDS
        while True:
            connection = await self.session(side)
            try:
                async with faults.step("switch.seize"):
                    await epoch.end_older_sessions(connection, service, token)
                    async with connection.transaction():
                        await connection.execute("SET LOCAL lock_timeout = '250ms'")
                        known = await epoch.raise_token(connection, service, token)
                self._seized[side] = known
                return known
            except asyncpg.LockNotAvailableError:
                if time.monotonic() > deadline:
                    raise NotYet(f"{service}: an older attempt's session at the {side} does not end") from None
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def effect(self, side: Side, lock_timeout: str = "2s") -> AsyncIterator[asyncpg.Connection]:
        """One transaction with an effect on that side, under the token."""
        await self.seize(side)
        connection = await self.session(side)
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT, lock_timeout)
            await self.hold_token(connection)
            yield connection

    async def hold_token(self, connection: asyncpg.Connection) -> None:
        """Guards an effect in a transaction of the caller's, on a side that is seized. Raises StaleAttempt."""
        await epoch.hold_token(connection, self.env.pair.service, self.row.token)

    def at_leisure(self, side: Side) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """An effect outside of a pause: it may wait for our own relays, which hold no lock of the application's."""
        return self.effect(side, "30s")

    async def rehearse(self, side: Side) -> None:
        """Prepares the statements of an effect on that side's session, before the pause; without effect or lock."""
        connection = await self.session(side)
        await connection.execute(_LOCK_TIMEOUT, "0")  # by itself it ends with its own statement
        await epoch.rehearse(connection, self.env.pair.service)

    def cut(self, sides: Sequence[Side] = SIDES) -> None:
        """Ends the sessions there are at once, whatever they wait for; the servers roll back, new ones are opened."""
        for side in sides:
            if connection := self._sessions.get(side):
                connection.terminate()

    async def close(self) -> None:
        for connection in self._sessions.values():
            try:
                await connection.close(timeout=2)
            except CONNECTION_ERRORS:
                connection.terminate()


@asynccontextmanager
async def open_attempt(
    env: SwitchEnvironment, states: Collection[str] = switches.STATES, seconds: float = 0.0
) -> AsyncIterator[Attempt]:
    """A new attempt that owns the switch of this service. Raises Refused where that is in none of `states`."""
    async with faults.step("switch.token"):
        row = await switches.raise_token(env.control, env.pair.migration, env.pair.service, states)
    if row is None:
        raise Refused(f"{env.pair.service}: another switch has begun; it is left alone")
    attempt = Attempt(env, row, seconds)
    try:
        yield attempt
    finally:
        await attempt.close()


@asynccontextmanager
async def between_switches(
    env: SwitchEnvironment, primary_side: Side, sides: Sequence[Side] = SIDES
) -> AsyncIterator[Attempt]:
    """An attempt for work between two switches, while writes are at `primary_side`: it holds the token at `sides`.

    A switch that begins meanwhile ends its sessions before it looks at anything. Raises Refused where writes are at the
    other side or a switch is under way, GateClosed where the control database has lost a switch, NotYet where another
    attempt took over, Unreachable.
    """
    try:
        async with open_attempt(env, switches.SETTLED, _LEISURE_SECONDS) as attempt:
            # no switch was under way when the token was drawn: what a side knows by it the route has to know
            known = {side: await attempt.seize(side) for side in sides}
            route = await flags.get(env.control, env.pair.migration, env.pair.service)
            for side, number in known.items():
                require_not_ahead(side, number, route)
            if route.primary_side != primary_side:
                raise Refused(f"{env.pair.service} is writable at the {route.primary_side}; it is left alone")
            yield attempt
    except StaleAttempt as error:
        raise NotYet(str(error)) from None
    except CONNECTION_ERRORS as error:
        raise Unreachable(f"{env.pair.service}: a database stopped answering ({type(error).__name__})") from None


def require_not_ahead(side: Side, known: int, route: Route) -> None:
    """Raises GateClosed where a side knows a later epoch than the route while no switch is under way."""
    if known > route.epoch:
        raise GateClosed(
            f"{route.service}: the {side} says epoch {known} and the control database {route.epoch}: it has lost its "
            "last commits (a failover or a restored backup). Nothing is changed; find out which side holds the newest "
            "rows before anything else"
        )


def under_token(env: SwitchEnvironment, primary_side: Side) -> Through:
    """Each effect in an attempt of its own `between_switches`: a token is drawn only where there is an effect."""

    @asynccontextmanager
    async def through(side: Side) -> AsyncIterator[asyncpg.Connection]:
        async with between_switches(env, primary_side) as attempt, attempt.at_leisure(side) as connection:
            yield connection

    return through
