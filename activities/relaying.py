"""What an `outbox` stream needs at work: its relays for as long as a run wants them, and its first copy."""

import asyncio
from typing import Any

from temporalio import activity

from activities import models as m
from activities import signatures as s
from activities.context import Context
from activities.registration import implements
from cutover.reconcile.pace import Looking, Pace
from cutover.streams.outbox import Backfill, carrying

#: Seconds after which the run is told that all is well, and asked whether it goes on.
SHIFT = 3600.0
#: Seconds without a way to one of the databases after which the relays are left to another worker, with their leases.
UNREACHABLE_SECONDS = 30.0
#: A copy makes room for the application where a marker takes longer than so many seconds.
LAG_SECONDS = 60.0
#: Of the time, at least: a copy that hardly goes on is behind for ever.
LEAST_BUSY = 0.05


class RelayActivities:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @implements(s.RELAY)
    async def relay(self, ref: m.Ref) -> None:
        """Relays of both directions, until the shift is over, the worker ends, or the run cancels it.

        Killed, its leases run out within seconds, and the next attempt takes over; that may be on another worker, so
        what does not reach a database for a while fails.
        """
        pair, control = await self.context.pair(ref), self.context.control
        async with carrying(pair, control, unreachable_after=UNREACHABLE_SECONDS) as failed:
            ending = asyncio.create_task(activity.wait_for_worker_shutdown())
            try:
                waited: list[asyncio.Future[Any]] = [failed, ending]
                await asyncio.wait(waited, timeout=SHIFT, return_when=asyncio.FIRST_COMPLETED)
                if failed.done():
                    failed.result()
            finally:
                ending.cancel()

    @implements(s.COPY_ROWS)
    async def copy_rows(self, ref: m.Ref) -> None:
        """The ranges of the first copy that are not copied yet; slower while the application's writes get slow."""
        stream = await self.context.stream(ref, "forward")
        least = max(LEAST_BUSY, (await self.context.plan(ref)).dual_write.copy_at_least)
        pace = Pace(look=Looking(stream, LAG_SECONDS), lag_limit=LAG_SECONDS, alone=False, least=least)
        try:
            await pace.begin()
            await Backfill(await self.context.pair(ref), "forward").run(rest=pace.rest)
        finally:
            await pace.end()
