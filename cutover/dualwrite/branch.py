"""The part of a strong write that is done at the other side: begun, applied, prepared, and ended either way."""

import asyncio
import logging
from collections.abc import Sequence

import asyncpg

from cutover.dualwrite.errors import SecondaryAway, SecondaryRefused
from cutover.dualwrite.two_sides import Route, TwoSides
from cutover.errors import ConfigError, Conflict, CutoverError, NotYet, StaleAttempt, Unreachable
from cutover.postgres import outbox_sink, outbox_source, outbox_tables, own_schema, two_phase
from cutover.postgres.databases import CONNECTION_ERRORS, FAILURES, Side, other
from cutover.postgres.keys import Key
from cutover.postgres.outbox_source import Change
from cutover.postgres.outbox_tables import Redefined
from cutover.postgres.two_phase import Decision

_log = logging.getLogger(__name__)

#: Seconds for which a unique value is waited for that another key's change has given up, but not yet at this side.
PATIENCE = 1.0
_POLL = 0.005
#: What passes by itself: locks that others hold, a server that is full.
_BUSY = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class Branch:
    """One branch. Its errors say that nothing was done: the caller rolls back at the primary, and calls `end`."""

    def __init__(self, sides: TwoSides, primary: Side, route: Route, gid: str) -> None:
        self._sides = sides
        self._primary = primary
        self._side = other(primary)
        self._route = route
        self._gid = gid
        self._session: asyncpg.Connection | None = None
        #: PREPARE was sent: it may have been done.
        self._prepared = False

    @property
    def _open(self) -> asyncpg.Connection:
        assert self._session is not None, "the branch has been begun"
        return self._session

    async def begin(self) -> None:
        """Raises SecondaryAway, ConfigError."""
        try:
            self._session = await self._sides.writers(self._side).take()
            await self._begin()
            return
        except FAILURES as error:
            problem = self._translated(error)
        raise problem

    async def _begin(self) -> None:
        """Under its locks the columns stay: an image is read by their places. Raises Redefined."""
        await self._open.execute(self._route.begin_sql)
        await outbox_tables.require_definition(self._open, self._sides.pair.tables, self._route.sink_definition)

    async def apply(self, changes: Sequence[Change]) -> None:
        """Writes the changes, and waits a little for unique values that are on their way to be free here too.

        Raises SecondaryAway, SecondaryRefused.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + PATIENCE
        replace = False
        while True:
            try:
                await outbox_sink.apply_open(
                    self._open, self._sides.service, self._route.flows, changes, replace=replace
                )
                return
            except outbox_sink.IN_THE_WAY as error:
                problem = self._translated(error)
                if replace and clock() >= deadline:
                    break
            except FAILURES as error:
                problem = self._translated(await self._because(error))
                break
            try:
                await self._open.execute("ROLLBACK")
                if not await self._freed(changes, deadline):
                    problem = SecondaryAway(
                        f"{self._sides.service}: a unique value is still in use at the other side, by a row whose "
                        "change waits to be carried over; nothing was done, try again"
                    )
                    break
                await self._begin()
            except FAILURES as error:
                problem = self._translated(error)
                break
            # rows of this very transaction may change places: then all are taken away before they are put
            replace = True
            await asyncio.sleep(_POLL)
        # raised out here, so that what the other side said is no part of what this side's caller is told
        raise problem

    async def _freed(self, changes: Sequence[Change], deadline: float) -> bool:
        """Waits until no row that is in the way has a change on its way; False where one still has at the deadline.

        Raises Redefined where none is found and the unique indexes are other ones than when the route was read.
        """
        clock = asyncio.get_running_loop().time
        blocking: set[tuple[str, Key]] = set()
        for name, flow in self._route.flows.items():
            images = [c.image for c in changes if c.flow == name and c.image is not None]
            found = await outbox_sink.in_the_way(self._open, flow, images)
            blocking |= {(name, key) for key in found - {c.key for c in changes if c.flow == name}}
        if not blocking:
            await outbox_tables.require_uniques(self._open, self._route.flows.values())
            return True
        async with self._sides.own(self._primary).one() as source:
            while await outbox_source.any_waits(source, self._sides.service, sorted(blocking)):
                if clock() >= deadline:
                    return False
                await asyncio.sleep(_POLL)
        return True

    async def _because(self, error: BaseException) -> BaseException:
        """The reason of an error: that the tables have other columns than when they were read, or itself."""
        if isinstance(error, CutoverError | TimeoutError):
            return error
        try:
            await self._open.execute("ROLLBACK")
            await outbox_tables.require_definition(self._open, self._sides.pair.tables, self._route.sink_definition)
        except Redefined as redefined:
            return redefined
        except FAILURES:
            return error  # the first one says enough
        return error

    async def prepare(self) -> None:
        """Raises SecondaryAway, ConfigError where the server has the feature switched off."""
        self._prepared = True
        try:
            await two_phase.prepare(self._open, self._gid)
            return
        except asyncpg.ObjectNotInPrerequisiteStateError:
            self._prepared = False
            problem: CutoverError = ConfigError(
                f"{self._sides.service}: the server of {self._sides.pair.at(self._side).name!r} prepares no "
                "transactions: set max_prepared_transactions there (it needs a restart), or use another level"
            )
        except FAILURES as error:
            problem = self._translated(error)
        raise problem

    async def end(self, decision: Decision) -> bool:
        """Carries the decision out; False where that was not possible just now, so that it is the janitor's.

        False too for a commit of a branch that is not there: a janitor may have been faster, or a server was promoted
        that has lost it. Then the write is the stream's.
        """
        if not self._prepared:
            if self._session is not None and not self._session.is_closed() and self._session.is_in_transaction():
                await self._try_to_roll_back(self._session)
            self._give_back()
            return True
        for _ in range(2):
            try:
                if self._session is None:
                    self._session = await self._sides.writers(self._side).take()
                found = await two_phase.end(self._session, self._gid, decision)
            except FAILURES as error:
                _log.info("%s: branch %s was not ended: %s", self._sides.service, self._gid, type(error).__name__)
                if self._session is not None:
                    self._session.terminate()
                self._give_back()
                continue
            self._give_back()
            return found or decision == "abort"
        return False

    def leave(self) -> None:
        """Leaves it as it stands, to whoever finds out its decision; its session is not kept for that."""
        if self._session is not None:
            self._session.terminate()
        self._give_back()

    async def _try_to_roll_back(self, session: asyncpg.Connection) -> None:
        try:
            await session.execute("ROLLBACK")
        except FAILURES as error:
            _log.debug("%s: ROLLBACK was not answered: %s", self._sides.service, type(error).__name__)
            session.terminate()

    def _give_back(self) -> None:
        if self._session is not None:
            self._sides.writers(self._side).give(self._session)
            self._session = None

    def _translated(self, error: BaseException) -> CutoverError:
        """What the caller is told. No text of the server: it may quote a row."""
        service, place = self._sides.service, repr(self._sides.pair.at(self._side).name)
        if isinstance(error, TimeoutError) and self._session is not None:
            self._session.terminate()  # it would wait for the answer that has not come, before anything else
        match error:
            case ConfigError():
                return error
            case Redefined():
                self._sides.forget_route(self._route.direction)
                return SecondaryAway(
                    f"{service}: a table's columns or unique indexes have changed at {place}; nothing was done, "
                    "try again"
                )
            case StaleAttempt() | NotYet() | Unreachable():
                return SecondaryAway(f"{error}; nothing was done at either side, try again")
            case Conflict() | asyncpg.IntegrityConstraintViolationError() | asyncpg.DataError():
                return SecondaryRefused(f"{service}: {place} refuses the rows ({_words(error)}); nothing was done")
            case _ if own_schema.is_taken_away(error):
                self._sides.streaming.discard(self._route.direction)
                return SecondaryAway(f"{service}: its stream was taken away at {place}; nothing was done, try again")
            case _ if isinstance(error, (*_BUSY, *CONNECTION_ERRORS)):
                return SecondaryAway(
                    f"{service}: {place} is away or busy ({_words(error)}); nothing was done at either side, try again"
                )
            case _:
                return SecondaryRefused(f"{service}: {place} refuses the write ({_words(error)}); nothing was done")


def _words(error: BaseException) -> str:
    """The kind of an error and what it names, without a value."""
    if isinstance(error, CutoverError):
        return str(error)
    named = [type(error).__name__]
    for label in ("constraint_name", "column_name"):
        if name := getattr(error, label, None):
            named.append(f"{label.removesuffix('_name')} {name}")
    return ", ".join(named)
