"""How a writing transaction ends: alone, with a note by which a lost answer is decided, or at both sides.

A *note* is a row of `cutover.decision` in the transaction itself (see `postgres.two_phase`).
"""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import asyncpg

from cutover.dualwrite.connections import routed
from cutover.dualwrite.errors import SecondaryAway
from cutover.dualwrite.two_sides import TwoSides
from cutover.postgres import own_schema, two_phase
from cutover.postgres.databases import Side
from cutover.postgres.two_phase import Decision

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    from cutover.dualwrite.connections import Connection


class Ending(Protocol):
    """The end of one transaction."""

    async def commit(self, connection: "Connection", transaction: "Transaction") -> None:
        """Commits it, or raises with nothing done, or with the connection lost; then `decided` is asked."""

    async def decided(self) -> Decision | None:
        """What became of it, after its connection was lost in `commit`; None where nobody can say."""


class Alone:
    """COMMIT and no more."""

    async def commit(self, connection: "Connection", transaction: "Transaction") -> None:
        await transaction.commit()

    async def decided(self) -> Decision | None:
        return None


@dataclass
class Noted:
    """COMMIT with a note in front of it, in the same message."""

    sides: TwoSides
    side: Side
    gid: str = ""
    begun: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def __post_init__(self) -> None:
        self.gid = self.gid or two_phase.write_id(self.sides.service)

    async def commit(self, connection: "Connection", transaction: "Transaction") -> None:
        routed(connection).send_with_commit(two_phase.note_sql(self.gid, self.sides.service))
        try:
            await transaction.commit()
        except asyncpg.PostgresError as error:
            if not own_schema.is_taken_away(error):
                raise
            self.sides.noted.discard(self.side)
            raise SecondaryAway(
                f"{self.sides.service}: its stream was taken away during a transaction, which was rolled back; run it "
                "again"
            ) from None

    async def decided(self) -> Decision | None:
        return await self.sides.decided(self.gid, self.side, self.begun)
