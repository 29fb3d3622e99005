"""The first copy of an outbox stream: several ranges at once, by any number of processes, resumed after a kill."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

import asyncpg

from cutover import faults
from cutover.postgres import outbox_checksum, outbox_copy, outbox_schema
from cutover.postgres.databases import Direction, Pair, ended_after
from cutover.streams.outbox.sessions import open_ends

#: What an apply that writes the same rows may cost a range; it is copied again.
_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError, asyncpg.SerializationError)
_PAUSE = 0.2
#: Seconds after which the sessions of a range or a sweep are broken off: a statement of theirs has ended by then
#: (`sessions`). What was done stays done, and the copy is run again.
COPY_SECONDS = 2400.0
#: One reads a range, one writes it, one compares what was written.
_WORKERS = 3


class Backfill:
    """Copies what `start(copy=True)` has cut into ranges."""

    def __init__(self, pair: Pair, direction: Direction) -> None:
        self.pair = pair
        self.direction = direction
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, *, workers: int = _WORKERS, rest: Callable[[float], Awaitable[None]] | None = None) -> None:
        """Returns once every table is copied; `rest` is awaited after each range, with the seconds that it took.

        Raises GateClosed where the target does not hold what was read of a range, Unreachable and the servers' own
        errors: run it again, it goes on where it stood.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(rest))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(self, rest: Callable[[float], Awaitable[None]] | None) -> None:
        service = self.pair.service
        async with open_ends(self.pair, self.direction, "copy", copy=True) as ends:
            await outbox_schema.carry_over(ends.sink)
            row_hashes = await outbox_checksum.row_hashes(ends.source, ends.sink, ends.flows)
            job = outbox_copy.Job(service, self.direction, ends.flows, row_hashes, self._turns)
            while True:
                began = time.monotonic()
                try:
                    with ended_after(COPY_SECONDS, ends.source, ends.sink):
                        async with faults.step("backfill.range"):
                            copied = await outbox_copy.copy_next(ends.source, ends.sink, job)
                    if copied:
                        if rest is not None:
                            await rest(time.monotonic() - began)
                        continue
                    with ended_after(COPY_SECONDS, ends.source, ends.sink):
                        async with faults.step("backfill.sweep"):
                            swept = await outbox_copy.sweep_next(ends.sink, service, self.direction, ends.flows)
                    if swept:
                        continue
                except _CROSSED:
                    continue
                with ended_after(COPY_SECONDS, ends.sink):
                    found = await outbox_copy.progress(ends.sink, service, self.direction)
                if all(table.swept for table in found):
                    return
                await asyncio.sleep(_PAUSE)  # somebody else copies the last ranges
