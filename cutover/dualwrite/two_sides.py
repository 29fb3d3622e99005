"""What the writes of one service need to know of both sides: its tables, its stream, and our own sessions at each.

Strong writes and answers to lost commits rest on what `stream: outbox` makes in the databases. That is there from the
stream's preparation to its cleanup, while an application runs from before the first to after the last: so it is looked
for every few seconds, and where it is not there, a service is written at its primary alone.
"""

import asyncio
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import asyncpg

from cutover import pairs
from cutover.dualwrite.mirror import KNOWN_FOR, Mirror
from cutover.dualwrite.sessions import Sessions
from cutover.errors import ConfigError, Unreachable
from cutover.plan.models import Consistency, Plan
from cutover.postgres import (
    outbox_capture,
    outbox_lease,
    outbox_sink,
    outbox_source,
    outbox_tables,
    own_schema,
    two_phase,
)
from cutover.postgres.databases import (
    FAILURES,
    SIDES,
    Database,
    Direction,
    Pair,
    Side,
    direction_from,
    other,
)
from cutover.postgres.outbox_schema import KNOWN_MINUTES
from cutover.postgres.outbox_tables import Flow
from cutover.postgres.two_phase import Decision, OwnChanges

_log = logging.getLogger(__name__)

#: Seconds between two looks at what is there.
LOOK_EVERY = 2.0
#: Seconds between two rounds that forget intents which have been carried over.
FORGET_EVERY = 0.1
#: Seconds between two looks whether what was not written strongly has been carried over.
SETTLE_EVERY = 0.25
#: Seconds for which a decision in flight is waited for, and those that the answer may take beyond.
DECIDE_WITHIN = 10.0
ANSWER_WITHIN = 1.0
#: Seconds after which nobody is asked any more.
ASKED_FOR = 0.6 * 60 * KNOWN_MINUTES


@dataclass(frozen=True)
class Route:
    """One direction, ready for strong writes."""

    direction: Direction
    flows: Mapping[str, Flow]
    own: OwnChanges
    begin_sql: str
    sink_definition: str


class TwoSides:
    """One service's databases as its writes see them."""

    def __init__(self, pair: Pair, level: Consistency, *, limit: int, planned: Consistency | None = None) -> None:
        """`planned`: the plan's level, where another one is used."""
        self.pair = pair
        self.level = level
        self.planned = planned or level
        strong = level == self.planned == "strong"
        self.mirror = Mirror(lambda: strong and self.streams("monolith"), pair.service)
        label = f"cutover-dualwrite/{pair.service}"
        self._own = {side: Sessions(pair.at(side), label, 2, behind_the_fence=False) for side in SIDES}
        self._writers = {side: Sessions(pair.at(side), label, limit, behind_the_fence=True) for side in SIDES}
        #: Sides at which decisions can be kept, and directions whose stream has been started.
        self.noted: set[Side] = set()
        self.streaming: set[Direction] = set()
        #: Sides that have been looked at; of another one nobody knows whether it has a stream.
        self._looked: set[Side] = set()
        #: When the newest look at a side was begun (monotonic), and the newest one that was answered.
        self._begun: dict[Side, float] = {}
        self._asked: dict[Side, float] = {}
        self._carrying = asyncio.Lock()
        self._looking = {side: asyncio.Lock() for side in SIDES}
        self._routes: dict[Direction, Route] = {}
        self._preparing = asyncio.Lock()
        self._done: dict[Side, list[tuple[int, int]]] = defaultdict(list)

    @property
    def service(self) -> str:
        return self.pair.service

    def same_as(self, another: "TwoSides") -> bool:
        """Whether the plans that they were made by say the same of the service."""
        return (self.pair, self.level, self.planned) == (another.pair, another.level, another.planned)

    def own(self, side: Side) -> Sessions:
        """Sessions that read and tidy."""
        return self._own[side]

    def writers(self, side: Side) -> Sessions:
        """Sessions that may write at the side that is not the primary."""
        return self._writers[side]

    # ------------------------------------------------------------------ what is there

    async def look(self) -> None:
        """Finds out what is there. A side that does not answer is thought to be as it was."""
        for side in SIDES:
            await self._look_at(side)

    async def _look_at(self, side: Side) -> None:
        came = time.monotonic()
        async with self._looking[side]:  # what was seen first must not be believed last
            if self._begun.get(side, -math.inf) < came:
                self._begun[side] = time.monotonic()
                await self._see(side)

    async def _see(self, side: Side) -> None:
        direction = direction_from(other(side))
        stands = ""
        try:
            async with self._own[side].one() as session:
                noted = await two_phase.installed(session, self.service)
                (self.noted.add if noted else self.noted.discard)(side)
                stream = await outbox_lease.stream_row(session, self.service, direction)
                # a range that is being copied holds its rows; and what is half there cannot be at both sides
                streaming = stream is not None and not await outbox_sink.copying(session, self.service, direction)
                if stream is not None and streaming and stream.running and stream.whole and not stream.best_effort:
                    stands = stream.stream
        except asyncpg.InsufficientPrivilegeError:
            streaming = False  # an application's own role, without `appliers`: it writes at its primary alone
        except FAILURES as error:
            _log.debug("%s: %s could not be looked at: %s", self.service, side, type(error).__name__)
            return
        self._asked[side] = self._begun[side]
        self._looked.add(side)
        if direction == "forward":
            self.mirror.rest_on(stands)
        (self.streaming.add if streaming else self.streaming.discard)(direction)
        if not streaming:
            self._routes.pop(direction, None)

    async def known(self, primary: Side, *, moved: bool = False) -> bool:
        """Whether it is known if there is a stream from that primary; looks where nobody has looked yet.

        `moved`: reads have moved to the other side, so that nobody may go by what was seen long ago.
        """
        if moved and primary == "monolith" and not self.streams(primary):
            if not self._surely_alone():
                await self.look()
            return self.streams(primary) or self._surely_alone()
        if primary not in self._looked:
            await self._look_at(primary)
        if primary in self._looked and primary not in self.noted:
            return True
        if other(primary) not in self._looked:
            await self._look_at(other(primary))
        return {primary, other(primary)} <= self._looked

    def streams(self, primary: Side) -> bool:
        """Whether a stream from that primary was seen."""
        return primary in self.noted and direction_from(primary) in self.streaming

    def in_force(self, level: Consistency, primary: Side) -> Consistency:
        """The level that writes at that primary have: eventual where there is no stream (any more).

        The other side that has never answered may have one: then the level stands, and a strong write is refused.
        """
        unknown = primary in self.noted and other(primary) not in self._looked
        return level if unknown or self.streams(primary) else "eventual"

    async def answerable(self) -> None:
        """To be awaited before a write is answered that was to be strong, and was done at the monolith alone.

        Another process may read at the service by a stream that has come up meanwhile (`mirror`): where one has, this
        returns once it has carried the write. A server that does not answer is waited for only a moment.
        """
        if self.planned != "strong":
            return
        if not self._surely_alone():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.look(), ANSWER_WITHIN)
        if self.streams("monolith"):
            await self._carried_over()

    def _surely_alone(self) -> bool:
        nothing_noted = "monolith" not in self.noted and not self._old("monolith")
        return nothing_noted or ("forward" not in self.streaming and not self._old("service"))

    def _old(self, side: Side) -> bool:
        """Whether what is known of that side may not be so any more."""
        return time.monotonic() > self._asked.get(side, -math.inf) + KNOWN_FOR

    async def _carried_over(self) -> None:
        deadline = time.monotonic() + DECIDE_WITHIN
        with suppress(*FAILURES):
            # one at a time: others need the sessions too
            async with self._carrying, self._own["monolith"].one(DECIDE_WITHIN + ANSWER_WITHIN) as session:
                snapshot = await outbox_source.snapshot(session)
                while await outbox_source.undone(session, self.service, snapshot) and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)

    async def require_prepared(self) -> None:
        """Raises ConfigError where a server would refuse to prepare a transaction, or our role to write there."""
        for side in SIDES:
            try:
                async with self._writers[side].one() as session:
                    most = await two_phase.most_prepared(session)
            except Unreachable as error:
                _log.warning("%s: whether strong writes work was not proved: %s", self.service, error)
                continue
            if not most:
                raise ConfigError(
                    f"{self.service}: strong consistency prepares transactions, and the server of "
                    f"{self.pair.at(side).name!r} has that switched off: set max_prepared_transactions there to at "
                    "least the number of writers at once (it needs a restart), or use another level"
                )

    # ------------------------------------------------------------------ strong writes

    async def route(self, primary: Side) -> Route:
        """What a strong write needs; made at the first one. Raises Unreachable, ConfigError, GateClosed."""
        direction = direction_from(primary)
        if known := self._routes.get(direction):
            return known
        async with self._preparing, AsyncExitStack() as stack:
            if direction in self._routes:
                return self._routes[direction]
            source = await stack.enter_async_context(self._own[primary].one())
            sink = await stack.enter_async_context(self._own[other(primary)].one())
            if missing := (await outbox_capture.uncaptured(source, self.pair.tables)).rows:
                raise ConfigError(
                    f"{self.service}: changes of {', '.join(map(str, missing))} are not captured at "
                    f"{self.pair.at(primary).name!r}, so they cannot be written strongly: prepare the stream anew"
                )
            # columns that change while they are read are noticed at the first write
            sink_definition = await outbox_tables.definition(sink, self.pair.tables)
            definition = await outbox_tables.definition(source, self.pair.tables)
            flows = await outbox_tables.flows(source, sink, self.pair.tables, self.pair.compare)
            own = await two_phase.own_changes(source, self.service, flows)
            await outbox_tables.require_definition(source, self.pair.tables, definition)
            begin_sql = two_phase.begin_sql(self.service, self.pair.tables)
            self._routes[direction] = Route(direction, flows, own, begin_sql, sink_definition)
        return self._routes[direction]

    def forget_route(self, direction: Direction) -> None:
        """The tables are not as they were; the next write reads them anew."""
        self._routes.pop(direction, None)

    def carried(self, primary: Side, intents: list[tuple[int, int]]) -> None:
        """These intents are durable at the other side; they are forgotten soon. Until then a relay may carry them."""
        self._done[primary] += intents

    # ------------------------------------------------------------------ lost answers

    async def decided(self, gid: str, side: Side, begun: float) -> Decision | None:
        """What became of a write at that side; None where nobody can say. `begun`: the loop's time before it was sent.

        Tried for some seconds, for the server may be starting. None too where so long has passed since `begun` that
        the note of a commit may be gone.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + DECIDE_WITHIN
        while True:
            left = max(deadline - clock(), 0.1)
            try:
                async with self._own[side].one(left + ANSWER_WITHIN) as session:
                    decision = await two_phase.decide(session, gid, self.service, left)
            except FAILURES as error:
                _log.debug("%s: a lost commit is still undecided: %s", self.service, type(error).__name__)
                if clock() + 0.1 >= deadline or own_schema.is_taken_away(error):
                    return None
                await asyncio.sleep(0.1)
                continue
            return decision if clock() - begun < ASKED_FOR else None

    # ------------------------------------------------------------------ in the background

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_looking())
            tasks.create_task(self._keep_forgetting())
            tasks.create_task(self._keep_settling())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY * random.uniform(0.8, 1.2))
            await self.look()

    async def _keep_forgetting(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY)
            for side in SIDES:
                if intents := self._done.pop(side, []):
                    # what is not forgotten here a relay finds, and carries to no effect
                    with suppress(*FAILURES):
                        async with self._own[side].one() as session, self._own[other(side)].one() as there:
                            await outbox_source.forget(session, self.service, intents)
                            # the stream's failures are judged against all that was carried over
                            await outbox_lease.count(there, self.service, direction_from(side), len(intents))

    async def _keep_settling(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_EVERY * random.uniform(0.8, 1.2))
            if self.mirror.unsettled and self.mirror.strong():
                # what cannot be asked now is asked again; reads stay at the primary meanwhile
                with suppress(*FAILURES):
                    async with self._own["monolith"].one() as session:
                        await self.mirror.settle(session, self.service)

    async def close(self) -> None:
        for sessions in (*self._own.values(), *self._writers.values()):
            await sessions.close()


def sides_of(
    plan: Plan, service: str, databases: Mapping[Side, Database], level: Consistency | None, *, limit: int
) -> TwoSides | None:
    """None where the plan has no outbox for the service. Raises ConfigError for a level that its stream has not."""
    chosen = plan.service(service)
    if chosen.stream != "outbox":
        if level not in (None, "eventual"):
            raise ConfigError(
                f"{service}: {level} is a level of dual-write, and its stream {chosen.stream} is always eventual: "
                "write `stream: outbox` in the plan, or leave the level out"
            )
        return None
    pair = pairs.between(plan, service, databases["monolith"], databases["service"])
    return TwoSides(pair, level or chosen.consistency, limit=limit, planned=chosen.consistency)
