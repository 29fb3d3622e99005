"""The relay: takes shards under leases and carries their intents over, until it is cancelled.

Any number of relays of a direction may run, in any number of processes; each shard has one at a time. At least once:
the intents are deleted at the source after the apply has committed at the sink, and what is carried twice has no
effect the second time. Killed anywhere, its shards are taken over when its leases have run out.
"""

import asyncio
import logging
import math
import os
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import asyncpg

from cutover import faults
from cutover.errors import CutoverError, NotYet, StaleAttempt, Unreachable
from cutover.postgres import catalog, outbox_lease, outbox_quarantine, outbox_sink, outbox_source
from cutover.postgres.databases import CONNECTION_ERRORS, FAILURES, Direction, Pair, ended_after
from cutover.postgres.outbox_lease import LEASE_SECONDS
from cutover.postgres.outbox_schema import WAKE
from cutover.postgres.outbox_source import Batch
from cutover.postgres.outbox_tables import Redefined
from cutover.streams.outbox.apply import Applier, Outcome
from cutover.streams.outbox.sessions import Ends, open_ends
from cutover.streams.outbox.versions import raise_over_sink

_log = logging.getLogger(__name__)

#: Seconds in which changes gather before they are carried together: a batch of one costs nearly what one of fifty does.
#: A marker ends them.
_GATHER = 0.06
#: Seconds between two looks whether there are leases.
_NOTHING_TO_DO = 0.05
#: Seconds before the next try after an error, doubled from the first to the second.
_SHORTEST_RETRY, _LONGEST_RETRY = 0.05, 5.0
_TIDY_SECONDS = 30.0
#: Two lanes that wanted the same rows or unique values; the one that was ended begins its batch anew.
_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
#: A change that another row is in the way of is refused for good after so many tries in a row.
_STRIKES = 6
_STRIKE_PAUSE = 0.1
#: Seconds after which the sessions of a batch are broken off: its statements end before (`sessions`), so what is not
#: back by then has no server or no network behind it.
ROUND_SECONDS = 180.0


class Relay:
    """One process's share of the work for one direction.

    The first lane carries alone while it keeps up. With a full batch it shares the keys out among all `lanes`, each of
    which takes its part until it has caught up.
    """

    def __init__(
        self,
        pair: Pair,
        direction: Direction,
        *,
        lanes: int = 2,
        batch: int = 500,
        lease_seconds: float = LEASE_SECONDS,
        unreachable_after: float = math.inf,
    ) -> None:
        """`unreachable_after`: seconds without a way to both databases after which `run` gives up, and the leases."""
        self.pair = pair
        self.direction = direction
        self.lanes = lanes
        self.batch = batch
        self.lease_seconds = lease_seconds
        self.unreachable_after = unreachable_after
        self.owner = f"{socket.gethostname()[:40]}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        #: Shards that are ours, with the token of each lease.
        self.tokens: dict[int, int] = {}
        self.applied = 0
        self.failures = 0
        #: Level best_effort: a change that the sink refuses is forgotten and left to reconciliation.
        self.gives_up = False
        self._told = (0, 0)
        self._problems: dict[int, str] = {}
        #: System identifier and timeline of the source's server, once a lane has looked.
        self._server: tuple[str, int] | None = None
        #: Lanes beside the first that are at work; changed by the first between two of its batches, and by themselves.
        self._helping: set[int] = set()
        self._help = asyncio.Event()
        self._ending = False
        #: Lanes whose sessions are open, and since when the beat or all lanes do not get theirs.
        self._open = 0
        self._away: dict[str, float] = {}

    @property
    def _label(self) -> str:
        return f"cutover-relay/{self.pair.service}/{self.direction}"

    async def run(self) -> None:
        """Works until it is cancelled; then gives its leases back. Errors are counted, told and tried again.

        Raises Unreachable after `unreachable_after`: a relay elsewhere may reach both databases.
        """
        self._ending = False
        failed: list[BaseException] = []
        tasks = {asyncio.create_task(self._beat()), *(asyncio.create_task(self._lane(n)) for n in range(self.lanes))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._ending = True
            while tasks:
                for task in tasks:
                    task.cancel()
                ended, tasks = await asyncio.wait(tasks, timeout=1)
                failed += [error for task in ended if not task.cancelled() and (error := task.exception())]
            with suppress(*FAILURES):
                async with asyncio.timeout(5), self.pair.sink(self.direction).session(self._label) as sink:
                    await outbox_lease.leave(sink, self.pair.service, self.direction, self.owner)
        for error in failed:
            raise error

    async def _beat(self) -> None:
        """Keeps the leases."""
        while not self._ending:
            try:
                async with self.pair.sink(self.direction).session(self._label) as sink:
                    while not self._ending:
                        with ended_after(self.lease_seconds, sink):
                            await self._renew(sink)
                        self._away.pop("leases", None)
                        # until there are leases nothing can be done
                        await asyncio.sleep(self.lease_seconds / 5 if self.tokens else _NOTHING_TO_DO)
            except FAILURES as error:
                self._require_reached("leases", error)
                await asyncio.sleep(0.2)

    def _require_reached(self, what: str, error: Exception) -> None:
        """Counts the seconds for which a database is away. Raises Unreachable after too many of them."""
        if not isinstance(error, (*CONNECTION_ERRORS, Unreachable)):
            self._away.pop(what, None)
        elif time.monotonic() - self._away.setdefault(what, time.monotonic()) > self.unreachable_after:
            raise Unreachable(
                f"{self.pair.service}: the {self.direction} relay has not reached both databases for "
                f"{self.unreachable_after:g} s from this worker: {_words(error)}"
            )

    async def _renew(self, sink: asyncpg.Connection) -> None:
        applied, failures = self.applied, self.failures
        try:
            self.tokens = await outbox_lease.beat(
                sink,
                self.pair.service,
                self.direction,
                self.owner,
                self.tokens,
                applied=applied - self._told[0],
                failures=failures - self._told[1],
                problem="; ".join(sorted(set(self._problems.values()))),
                seconds=self.lease_seconds,
            )
            self._told = (applied, failures)
            row = await outbox_lease.stream_row(sink, self.pair.service, self.direction)
            self.gives_up = row is not None and row.best_effort
        except NotYet:
            self.tokens = {}
        except asyncpg.UndefinedTableError:
            self.tokens = {}  # the stream has not been prepared

    async def _lane(self, lane: int) -> None:
        pause = _SHORTEST_RETRY
        while not self._ending:
            begun = self.applied
            try:
                await self._hold_on(lane)
            except (StaleAttempt, Redefined):
                await asyncio.sleep(_SHORTEST_RETRY)
            except FAILURES as error:
                self.failures += 1
                self._problems[lane] = _words(error)
                _log.info("%s: the %s relay tries again: %s", self.pair.service, self.direction, _words(error))
                if not self._open:
                    self._require_reached("ends", error)
                pause = _SHORTEST_RETRY if self.applied > begun else min(pause * 2, _LONGEST_RETRY)
                await asyncio.sleep(pause)

    async def _hold_on(self, lane: int) -> None:
        """Carries batches over sessions that are kept until an error."""
        while not self._share(lane):
            self._problems.pop(lane, None)  # without leases there is nothing that could be wrong
            if not self.tokens:
                self._away.pop("ends", None)
            await self._nothing(lane)
            if self._ending:
                return
        async with open_ends(self.pair, self.direction, "relay") as ends, self._reached():
            await self._know_source(ends)
            wake = asyncio.Event()
            await ends.source.add_listener(WAKE, lambda *_: wake.set())
            applier = Applier(ends, self.pair.service, self.direction)
            turn, tidied, full = 0, time.monotonic(), True
            while not self._ending:
                if not full:
                    await _rest(wake, _GATHER)
                wake.clear()
                tokens = self._share(lane)
                if not tokens:
                    await self._nothing(lane)
                    continue
                due = time.monotonic() - tidied > _TIDY_SECONDS
                with ended_after(ROUND_SECONDS, ends.source, ends.sink):
                    # a portion at a time; where there is more, the next one after a batch
                    if due and await self.tidy(ends, tokens) < outbox_sink.PRUNED:
                        tidied = time.monotonic()
                    full = await outbox_source.waiting(ends.source, self.pair.service, list(tokens))
                    if full:
                        turn += 1
                        try:
                            full = await self.step(applier, tokens, turn)
                        except _CROSSED:
                            # no row was refused, so nothing failed
                            await asyncio.sleep(_SHORTEST_RETRY * random.random())
                            continue
                self._problems.pop(lane, None)
                self._share_out(lane, full)

    async def _know_source(self, ends: Ends) -> None:
        """Before anything is carried of another server than before: it may have been set back (`versions`)."""
        now = await catalog.server_identity(ends.source)
        if now != self._server:
            await raise_over_sink(ends.source, ends.sink, self.pair.service)
            self._server = now

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[None]:
        """While a lane's sessions are open."""
        self._open += 1
        self._away.pop("ends", None)
        try:
            yield
        finally:
            self._open -= 1

    def _share(self, lane: int) -> dict[int, int]:
        """The leases whose keys this lane carries just now. A key is never in two lanes' hands."""
        if lane and lane not in self._helping:
            return {}
        away = self._helping - {lane} if lane == 0 else set(range(self.lanes)) - {lane}
        return {shard: token for shard, token in self.tokens.items() if shard % self.lanes not in away}

    def _share_out(self, lane: int, full: bool) -> None:
        """Between two batches of a lane: more hands while there is more than it can carry, and fewer afterwards."""
        if lane == 0 and full and not self._helping:
            self._helping = set(range(1, self.lanes))
            self._help.set()
        elif lane and not full:
            self._helping.discard(lane)

    async def _nothing(self, lane: int) -> None:
        """A pause of a lane that has nothing to carry; whoever waits for the event is woken before it is cleared."""
        if lane:
            await _rest(self._help, _NOTHING_TO_DO)
            self._help.clear()
        else:
            await asyncio.sleep(_NOTHING_TO_DO)

    async def step(self, applier: Applier, tokens: Mapping[int, int], turn: int = 0) -> bool:
        """Carries one batch of these shards over; whether more waits behind it."""
        shards = sorted(tokens)
        turned = shards[turn % max(len(shards), 1) :] + shards[: turn % max(len(shards), 1)]
        ends, service = applier.ends, self.pair.service
        batch = await outbox_source.read(ends.source, service, ends.flows, ends.source_definition, turned, self.batch)
        if not batch.shards:
            return False
        async with faults.step("relay.apply"):
            outcome = await applier.carry(batch, {shard: tokens[shard] for shard in batch.shards})
        async with faults.step("relay.forget"):
            await outbox_source.forget(ends.source, service, outcome.done)
        self.applied += outcome.applied
        if outcome.refused or applier.strikes:
            await self._refused(applier, batch, outcome)
        return batch.full

    async def _refused(self, applier: Applier, batch: Batch, outcome: Outcome) -> None:
        """Holds keys that the sink refuses for good; those that a row is only in the way of get a few more tries."""
        service, ends, strikes = self.pair.service, applier.ends, applier.strikes
        refused = {(refusal.change.flow, refusal.change.key) for refusal in outcome.refused}
        for change in batch.changes:
            if (change.flow, change.key) not in refused:
                strikes.pop((change.flow, change.key), None)
        if not outcome.refused:
            return
        patient = await outbox_sink.copying(ends.sink, service, self.direction)
        if self.gives_up and not patient:
            self.failures += len(outcome.refused)
            given_up = [intent for refusal in outcome.refused for intent in refusal.change.intents]
            async with faults.step("relay.forget"):
                await outbox_source.forget(ends.source, service, given_up)
            strikes.clear()
            return
        for refusal in outcome.refused:
            self.failures += 1
            change = refusal.change
            place = (change.flow, change.key)
            strikes[place] += 1
            if refusal.may_pass and (patient or strikes[place] < _STRIKES):
                continue
            del strikes[place]
            async with faults.step("relay.hold"):
                await outbox_quarantine.hold(
                    ends.source, service, self.direction, change, refusal.sqlstate, refusal.reason
                )
        if strikes:
            await asyncio.sleep(_STRIKE_PAUSE)

    async def tidy(
        self, ends: Ends, tokens: Mapping[int, int], *, keep_seconds: float = outbox_sink.KEEP_SECONDS
    ) -> int:
        """Deletes version rows that guard against nothing any more; for between two batches of these shards."""
        if not tokens:
            return 0
        least = await outbox_source.least_versions(ends.source, self.pair.service, list(tokens))
        async with faults.step("relay.tidy"):
            return await outbox_sink.prune(
                ends.sink, self.pair.service, self.direction, tokens, least, keep_seconds=keep_seconds
            )


async def _rest(event: asyncio.Event, seconds: float) -> None:
    """A pause that the event ends."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _words(error: Exception) -> str:
    """An error for `health`, without what a server's text may quote of a row."""
    if isinstance(error, CutoverError):
        return str(error)
    sqlstate = getattr(error, "sqlstate", None)
    return type(error).__name__ + (f" ({sqlstate})" if sqlstate else "")
