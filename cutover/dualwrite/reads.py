"""One read by itself: at the primary, or at the side that has all that was written but is not the primary."""

from typing import TypeVar

import asyncpg

from cutover.dualwrite.epochs import Moved, writable_here
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.lending import Lent
from cutover.dualwrite.writes import Call

T = TypeVar("T")


class OnlyAtPrimary(Exception):
    """A read at the side that is not the primary turned out to be more than one, so it is to be done as a write.

    Nothing was done.
    """


async def read_primary(gate: Gate, call: Call[T], lent: Lent) -> T:
    """A read that must not be answered by a side that has stopped being the primary. Raises Moved.

    While the lease holds from before the read to after it, no switch has passed meanwhile. Otherwise the
    epoch row is looked at in the snapshot of the read.
    """
    lease = gate.lease
    generation = lease.generation
    if lease.valid:
        result = await call.on(lent.connection)
        if lease.unbroken(generation):
            return result
    # not READ ONLY: a statement that is no write to the tables may still draw from a sequence or lock rows
    async with lent.connection.transaction(isolation="repeatable_read"):
        await writable_here(lent.connection, gate.route, lent.side)
        return await call.on(lent.connection)


async def read_mirror(gate: Gate, call: Call[T], lent: Lent) -> T:
    """A read that must see what was written, at the side that has all of it but is not the primary. Raises Moved.

    In a read-only transaction: a statement that writes, draws from a sequence or locks rows is OnlyAtPrimary.
    """
    generation = gate.lease.generation
    try:
        async with lent.connection.transaction(readonly=True):
            result = await call.on(lent.connection)
            await still_mirrored(gate, lent)
    except asyncpg.ReadOnlySQLTransactionError:
        raise OnlyAtPrimary from None
    if not gate.lease.unbroken(generation):
        raise Moved(f"{gate.service}: the lease ran out during a read at {lent.side}")
    return result


async def still_mirrored(gate: Gate, lent: Lent) -> None:
    """Raises Moved where what a read there rested on has gone meanwhile."""
    if gate.mirror is None or lent.slot is None:
        raise Moved(f"{gate.service}: by the plan of now its reads are where its writes are")
    await gate.mirror.require(lent.connection, lent.slot.rests_on)
