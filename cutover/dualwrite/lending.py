"""The way to a connection: through the gate, to the side that the route names, and again where it has turned."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutover.dualwrite.connections import Pools
from cutover.dualwrite.epochs import find_writable
from cutover.dualwrite.errors import SpansServices
from cutover.dualwrite.gate import Gate, Slot, running_slots
from cutover.dualwrite.measure import Trial
from cutover.dualwrite.routing import Access
from cutover.errors import Unreachable
from cutover.postgres.databases import Database, Side

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

#: Seconds between two tries, from the first to the longest.
_BACK_OFF = (0.005, 0.5)


@dataclass(frozen=True)
class Surroundings:
    """What the services of one RoutedPool share."""

    pools: Pools
    databases: Mapping[str, Mapping[Side, Database]]
    #: Which service owns a table, as far as the pool was told.
    owners: Mapping[str, str]
    #: Seconds for which an operation looks for a database that is away, or for the writable side.
    patience: float
    #: Asks for the routes to be read now.
    wake: Callable[[], None]


@dataclass(frozen=True)
class Lent:
    """A connection out of a pool, at the side that the route named."""

    connection: "Connection"
    side: Side
    database: Database
    slot: Slot | None


class Lender:
    """Lends connections for the operations of one service."""

    def __init__(self, gate: Gate, around: Surroundings) -> None:
        self.gate = gate
        self._around = around

    @property
    def service(self) -> str:
        return self.gate.service

    @property
    def _databases(self) -> Mapping[Side, Database]:
        return self._around.databases[self.service]

    def _same_service(self, table: str | None, *, writing: bool) -> None:
        """Refuses what would look like one transaction over two services, and is none."""
        owner = self._around.owners.get(table, self.service) if table is not None else self.service
        if owner != self.service:
            raise SpansServices(f"table {table} belongs to {owner}, not to {self.service}: use pool.service({owner!r})")
        if not writing:
            return
        for slot in running_slots():
            if slot.transaction and slot.service != self.service:
                raise SpansServices(
                    f"a transaction on {slot.service} is open, and {self.service} was asked for a write inside it: "
                    "they live in two databases, so no transaction spans them; do one after the other"
                )

    @asynccontextmanager
    async def _lend(self, access: Access, trial: Trial, *, transaction: bool = False) -> AsyncIterator[Lent]:
        """A connection at the right side, held through a pause, and a slot that the next pause waits for.

        The connection comes first and the slot after it, so that a pause never waits for a queue of requests.
        """
        inside = None if access.stale_ok else self.gate.inside()
        pools, clock = self._around.pools, self.gate.lease.clock
        deadline = clock() + self._around.patience
        while True:
            if inside is None and not access.stale_ok:
                asked = clock()
                trial.held_since = await self.gate.admitted(trial.held_since)
                waited = clock() - asked
                trial.held_seconds += waited
                deadline += waited
            side = self.gate.side(access, inside)
            database = self._databases[side]
            try:
                connection = await pools.acquire(database, deadline - clock())
            except Unreachable:
                if clock() >= deadline:
                    trial.gave_up = True
                    raise
                await self._look_again(trial, moved=False)
                continue
            if access.stale_ok:
                slot = None
                break
            slot = self.gate.take(access, side, transaction=transaction, inside=inside)
            if slot is not None:
                break
            await pools.release(database, connection)
        if slot:
            self.gate.enter(slot)
        trial.begin(side, database)
        answered = False
        try:
            yield Lent(connection, side, database, slot)
            answered = True
        finally:
            try:
                if answered and not transaction:
                    # nobody has to wait for the reset of its session, and no switch either
                    pools.release_later(database, connection)
                else:
                    await asyncio.shield(pools.release(database, connection))
            finally:
                if slot:
                    self.gate.leave(slot)

    async def _look_again(self, trial: Trial, *, moved: bool) -> None:
        """Waits for another route, and a little in any case; asks the databases where control cannot be asked."""
        trial.retries += 1
        self.gate.counters.retried += 1
        self._around.wake()
        low, high = _BACK_OFF
        delay = min(high, low * 2 ** min(trial.retries, 10)) * random.uniform(0.5, 1.0)
        if moved and not self.gate.lease.valid:
            found = await find_writable(self._around.pools, self.service, dict(self._databases))
            if found is not None and (found.side, found.epoch) != (self.gate.route.primary_side, self.gate.route.epoch):
                self.gate.adopt(found.side, found.epoch)
                return
        await self.gate.changed(delay)
