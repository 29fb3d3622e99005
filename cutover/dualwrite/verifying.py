"""Samples of what was read, compared with the other side in the background.

Bounded: a few keys wait, one is compared at a time, and what does not fit is passed over. A row that differs is looked
at until its changes have been carried over; only then it is a mismatch. A mismatch is counted, its key is marked to be
reconciled, and an alert says so; no value leaves the databases, only digests do.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from cutover.alerts.store import Alert, raise_alert
from cutover.control.database import Control
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.two_sides import TwoSides
from cutover.postgres import compare, outbox_source
from cutover.postgres.databases import FAILURES, direction_from, other
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key
from cutover.reconcile.marking import mark

_log = logging.getLogger(__name__)

#: Keys that wait at most.
MOST_WAITING = 100
#: Seconds for which a key's changes are waited for.
PATIENCE = 10.0
_POLL = 0.05


@dataclass(eq=False)
class Verifier:
    """Compares the sampled keys of one service."""

    sides: TwoSides
    gate: Gate
    control: Control
    _waiting: deque[tuple[TableName, Key]] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def possible(self) -> bool:
        """Whether there is a stream, and so another side to compare with."""
        return self.sides.streams(self.gate.route.primary_side)

    def names(self, table: TableName) -> bool:
        """Whether the plan has the table, so that it is on both sides."""
        return table in self.sides.pair.tables

    def offer(self, table: TableName, key: Key) -> None:
        """A key to compare; never waits."""
        if len(self._waiting) >= MOST_WAITING:
            self.gate.counters.unverified += 1
            return
        self._waiting.append((table, key))
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            while self._waiting:
                table, key = self._waiting.popleft()
                try:
                    equal = await self._equal(table, key)
                    if equal is False:
                        await self._tell(table, key)
                except FAILURES as error:
                    _log.debug("%s: a key of %s was not verified: %s", self.sides.service, table, type(error).__name__)
                    equal = None
                except Exception as error:  # a sample that goes wrong must not end all those after it
                    kind = type(error).__name__  # its text may hold a value
                    _log.error("%s: a key of %s could not be verified: %s", self.sides.service, table, kind)
                    equal = None
                counters = self.gate.counters
                counters.verified += equal is not None
                counters.mismatches += equal is False
                counters.unverified += equal is None
            self._wake.clear()

    async def _equal(self, table: TableName, key: Key) -> bool | None:
        """None where the key changed all the time, or moved with its service."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + PATIENCE
        primary = self.gate.route.primary_side
        flow = (await self.sides.route(primary)).flows[str(table)]
        before: tuple[object, object] | None = None
        async with self.sides.own(primary).one() as source, self.sides.own(other(primary)).one() as sink:
            while clock() < deadline and self.gate.route.primary_side == primary:
                [(at_source, here)] = await compare.look(source, flow.source, [key])
                # after the source: whatever it showed has an intent, or has been carried over
                carried = not await outbox_source.any_waits(source, self.sides.service, [(flow.name, at_source or key)])
                [(_, there)] = await compare.look(sink, flow.sink, [key])
                if here.digest == there.digest:
                    return True
                # seen twice, unchanged on both sides, with nothing on its way in between
                if carried and before == (here, there):
                    return False
                before = (here, there) if carried else None
                await asyncio.sleep(_POLL)
        return None

    async def _tell(self, table: TableName, key: Key) -> None:
        route = self.gate.route
        direction = direction_from(route.primary_side)
        await mark(self.control, route.migration, route.service, direction, table, [key])
        alert = Alert(
            "read-mismatch", "warning", route.migration, route.service,
            f"{route.service}.{table}: a row that was read differs on the other side, with no change of it on its way; "
            "its key is marked, and the next pass of reconciliation compares it",
            subject=str(table),
        )  # fmt: skip
        await raise_alert(self.control, alert)
