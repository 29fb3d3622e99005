"""A block of statements on a lent connection, each committed by itself, and what it says where its side has moved."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from cutover.dualwrite import outcome
from cutover.dualwrite.connections import gone, routed
from cutover.dualwrite.epochs import Moved
from cutover.dualwrite.errors import Fenced, PartlyDone
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.lending import Lent
from cutover.dualwrite.statements import may_commit, writes
from cutover.dualwrite.transactions import Snapshots
from cutover.postgres.databases import CONNECTION_ERRORS

if TYPE_CHECKING:
    from asyncpg.connection import LoggedQuery

    from cutover.dualwrite.connections import Connection


@asynccontextmanager
async def lent_block(gate: Gate, lent: Lent, fenced: Callable[[], Fenced]) -> AsyncIterator["Connection"]:
    """The block. `fenced` makes the error for one that was refused with nothing done.

    Raises that, PartlyDone, UnknownOutcome; the caller's own errors pass unchanged.
    """
    connection = lent.connection
    snapshots = Snapshots(gate, connection, lent.side)
    standing = Standing(connection)
    connection.add_query_logger(standing.heard)
    try:
        try:
            await snapshots.begin()
        except Moved:
            raise fenced() from None
        try:
            yield connection
        except BaseException as error:
            if outcome.is_fenced(error):
                gate.counters.fenced += 1
                await asyncio.sleep(0)  # the driver tells of the refused statement itself in the loop's next round
                raise (_partly_done(gate, lent) if standing.something else fenced()) from None
            if gone(connection) and outcome.is_lost(error):
                gate.counters.unknown += 1
                raise outcome.unknown(f"{gate.service}: a session", lent.database.name, error) from None
            raise
        if gone(connection) or connection.is_in_transaction():
            return
        try:
            await snapshots.end()
        except (Moved, asyncpg.PostgresError, *CONNECTION_ERRORS):
            gate.counters.fenced += 1
            raise _partly_done(gate, lent) from None
    finally:
        if not gone(connection):
            connection.remove_query_logger(standing.heard)


class Standing:
    """Whether something stands that a block has done: it was committed, and may have written."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._committed = False
        routed(connection).unlogged(forget=True)

    @property
    def something(self) -> bool:
        return self._committed or (not gone(self._connection) and routed(self._connection).unlogged())

    def heard(self, query: "LoggedQuery") -> None:
        """A statement was answered. The driver says so before it hears the next one's answer."""
        if gone(self._connection) or self._connection.is_in_transaction():
            return
        if query.exception is not None:
            self._committed |= may_commit(query.query)
            return
        self._committed |= query.query.rstrip("; ").upper() in ("COMMIT", "END") or writes(query.query)


def _partly_done(gate: Gate, lent: Lent) -> PartlyDone:
    return PartlyDone(
        f"{gate.service}: its writes moved away from {lent.database.name!r} during a block of acquire(): what the "
        "block's earlier statements committed stands, and what they read may be out of date; look before you do any "
        "of it again (in a transaction nothing would have been done)"
    )
