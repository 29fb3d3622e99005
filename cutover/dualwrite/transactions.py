"""A transaction on a lent connection, with an honest answer to the question whether it was committed."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import asyncpg

from cutover.dualwrite import outcome
from cutover.dualwrite.connections import gone
from cutover.dualwrite.endings import Ending
from cutover.dualwrite.epochs import Moved, writable_here
from cutover.dualwrite.errors import Fenced
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.routing import Access
from cutover.errors import Unreachable
from cutover.postgres.databases import NOT_CONNECTED, Database, Side

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    from cutover.dualwrite.connections import Connection

_log = logging.getLogger(__name__)


@asynccontextmanager
async def lent_transaction(
    gate: Gate,
    connection: "Connection",
    side: Side,
    database: Database,
    access: Access,
    isolation: Literal["read_committed", "repeatable_read", "serializable"] | None,
    ending: Ending,
) -> AsyncIterator["Connection"]:
    """BEGIN, the block, and its ending. Errors as `ServicePool.transaction` says; the caller's own pass unchanged."""
    reading = access.operation == "read"
    watch = None if access.stale_ok else Snapshots(gate, connection, side)
    transaction = connection.transaction(isolation=isolation, readonly=reading)
    try:
        try:
            await transaction.start()
            if watch is not None:
                await watch.begin()
            yield connection
            if watch is not None:
                await watch.end()
        except BaseException as error:
            try:
                if watch is not None and isinstance(error, GivenUp):
                    await watch.end()
            finally:
                await _roll_back(transaction, database)
            raise
    except BaseException as error:
        translated = _translated(error, gate, connection, database)
        if translated is error:
            raise
        raise translated from None
    try:
        await ending.commit(connection, transaction)
    except BaseException as error:
        if outcome.is_fenced(error):  # a deferred trigger wrote where writing has stopped
            raise _translated(error, gate, connection, database) from None
        if not outcome.is_lost(error):
            raise
        if reading:
            raise _lost(gate, database, error) from None
        timeout = outcome.is_timeout_on(connection, error)
        decision = await ending.decided()
        if decision == "commit":
            return
        if decision == "abort" and timeout:
            raise
        if decision == "abort":
            raise _lost(gate, database, error) from None
        gate.counters.unknown += 1
        raise outcome.unknown(f"{gate.service}: COMMIT", database.name, error) from None


class GivenUp(Exception):
    """Ends a block that is rolled back without an error; what it has read still counts, and is asked about."""


class Snapshots:
    """Whether every statement of a transaction, or of a block, saw this side while it was the primary.

    Under an unbroken lease no switch can have passed. With a gap in it the epoch row answers at the end, in
    the last snapshot: if this side is still the writable one, at the same epoch, all were good.
    """

    def __init__(self, gate: Gate, connection: "Connection", side: Side) -> None:
        self._gate, self._connection, self._side = gate, connection, side
        self._generation = gate.lease.generation
        #: As routed when it began: the route may be another one by its end.
        self._routed = gate.route.epoch
        self._epoch: int | None = None

    async def begin(self) -> None:
        if not self._gate.lease.valid:
            self._epoch = await self._look()

    async def end(self) -> None:
        if self._epoch is None and self._gate.lease.unbroken(self._generation):
            return
        begun = self._routed if self._epoch is None else self._epoch
        if await self._look() != begun:
            raise Moved(f"{self._gate.service}: its writes moved away and back during the transaction")

    async def _look(self) -> int:
        return await writable_here(self._connection, self._gate.route, self._side)


def _translated(error: BaseException, gate: Gate, connection: "Connection", database: Database) -> BaseException:
    """The pool's own error where one fits; the caller's otherwise."""
    if outcome.is_fenced(error) or isinstance(error, Moved):
        gate.counters.fenced += 1
        return Fenced(
            f"{gate.service}: a transaction at {database.name!r} met the fence or a moved epoch and was rolled back; "
            "nothing was done, run it again (run_in_transaction does so by itself)"
        )
    if gone(connection) and outcome.is_lost(error):
        return _lost(gate, database, error)
    return error


def _lost(gate: Gate, database: Database, error: BaseException) -> Unreachable:
    return Unreachable(
        f"{gate.service}: the connection to {database.name!r} was lost before a transaction was committed "
        f"({type(error).__name__}); nothing was done"
    )


async def _roll_back(transaction: "Transaction", database: Database) -> None:
    try:
        await transaction.rollback()
    except (*NOT_CONNECTED, asyncpg.PostgresError) as error:
        # the connection is gone or was never in a transaction: then the server has rolled back by itself
        _log.debug("ROLLBACK at %s was not answered: %s", database.name, type(error).__name__)
