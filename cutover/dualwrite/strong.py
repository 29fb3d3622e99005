"""The end of a strong write: prepared at the other side, committed with its decision at the primary, committed there.

1. At the primary, in the application's transaction, whose row locks come first: its own intents and the rows that they
   name are read, and the row is written by which the commit will be known. Meanwhile a branch is begun at the other
   side.
2. The branch applies them, by the stream's own statements and guard, and is prepared.
3. The primary commits.
4. The branch is committed. Only then the caller has its answer.

Up to 3 an error leaves nothing anywhere. After it the write is done, whatever happens: a branch that cannot be
committed now is committed by the janitor. A process that dies between 2 and 3 leaves a branch without a decision, which
the janitor aborts. The intents stay in the outbox until 4, so that no marker is believed before it.

Nothing of this can be cancelled halfway: a caller that is cancelled waits for the end, which has its time limits.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from cutover import faults
from cutover.dualwrite import outcome
from cutover.dualwrite.branch import Branch
from cutover.dualwrite.connections import aborted
from cutover.dualwrite.errors import SecondaryAway
from cutover.dualwrite.gate import Counters
from cutover.dualwrite.two_sides import Route, TwoSides
from cutover.errors import CutoverError
from cutover.postgres import own_schema, two_phase
from cutover.postgres.databases import CONNECTION_ERRORS, Side
from cutover.postgres.outbox_source import Change
from cutover.postgres.outbox_tables import Redefined
from cutover.postgres.two_phase import Decision

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    from cutover.dualwrite.connections import Connection

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Errors of the reading that say that a column is not there any more.
_COLUMNS = (asyncpg.UndefinedColumnError, asyncpg.InvalidCachedStatementError)


@dataclass
class Strong:
    """One transaction at both sides, or at neither."""

    sides: TwoSides
    side: Side
    route: Route
    epoch: int
    counters: Counters
    begun: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def __post_init__(self) -> None:
        self.gid = two_phase.branch_id(self.sides.service, self.epoch)
        self._branch = Branch(self.sides, self.side, self.route, self.gid)
        self._changes: list[Change] = []
        #: COMMIT was sent: it may have been done.
        self._sent = False
        #: Its answer was lost.
        self._lost = False

    async def commit(self, connection: "Connection", transaction: "Transaction") -> None:
        try:
            await uninterrupted(self._commit(connection, transaction))
        except asyncio.CancelledError:
            if self._lost:  # a caller that is cancelled does not ask any more
                await self.decided()
            raise

    async def _commit(self, connection: "Connection", transaction: "Transaction") -> None:
        beginning = asyncio.create_task(self._branch.begin())
        try:
            async with faults.step("strong.read"):
                self._changes = await read_changes(connection, self.sides, self.side, self.route, self.gid)
            await beginning
            if self._changes:
                async with faults.step("strong.apply"):
                    await self._branch.apply(self._changes)
                async with faults.step("strong.prepare"):
                    await self._branch.prepare()
        except BaseException:
            await asyncio.gather(beginning, return_exceptions=True)
            await roll_back(transaction, self.sides.service)
            await self._branch.end("abort")
            raise
        self._sent = True
        try:
            async with faults.step("strong.commit"):
                await transaction.commit()
        except BaseException as error:
            self._lost = outcome.is_lost(error)
            if isinstance(error, asyncpg.PostgresError | CutoverError):
                if not self._lost:  # else `decided` finds out
                    await self._branch.end("abort")
            elif not self._lost:
                self._leave_to_the_janitor()
            raise
        await self._finish()

    async def _finish(self) -> None:
        """The decision stands. What cannot be carried out now is the janitor's."""
        async with faults.step("strong.end"):
            ended = await self._branch.end("commit")
        if ended:
            self.sides.carried(self.side, [intent for change in self._changes for intent in change.intents])
        else:
            self._leave_to_the_janitor()

    def _leave_to_the_janitor(self) -> None:
        self._branch.leave()
        self.counters.in_doubt += 1
        self.sides.mirror.left_behind()

    async def decided(self) -> Decision | None:
        return await uninterrupted(self._decided())

    async def _decided(self) -> Decision | None:
        if not self._sent:
            return "abort"
        decision = await self.sides.decided(self.gid, self.side, self.begun)
        if decision == "commit":
            await self._finish()
        elif decision == "abort":
            await self._branch.end("abort")
        else:
            self._leave_to_the_janitor()
        return decision


async def read_changes(connection: "Connection", sides: TwoSides, side: Side, route: Route, gid: str) -> list[Change]:
    """What the open transaction has changed; its commit is known by `gid` from here on.

    Raises SecondaryAway where the tables are not as they were read.
    """
    try:
        return await two_phase.decide_own(connection, route.own, gid)  # type: ignore[arg-type]  # a pool's proxy
    except asyncpg.InFailedSQLTransactionError:
        raise aborted() from None
    except (Redefined, *_COLUMNS):
        sides.forget_route(route.direction)
        raise SecondaryAway(
            f"{sides.service}: a table's columns have changed; nothing was done, run it again"
        ) from None
    except asyncpg.PostgresError as error:
        if not own_schema.is_taken_away(error):
            raise
        sides.forget_route(route.direction)
        sides.noted.discard(side)
        raise SecondaryAway(
            f"{sides.service}: its stream was taken away during a transaction, which was rolled back; run it again"
        ) from None


async def roll_back(transaction: "Transaction", service: str) -> None:
    """ROLLBACK; a connection that is gone has rolled back by itself."""
    try:
        await transaction.rollback()
    except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
        _log.debug("%s: ROLLBACK was not answered: %s", service, type(error).__name__)


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Its result; a cancellation in between is raised once it has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        await asyncio.gather(task, return_exceptions=True)
        raise cancelled
    return task.result()
