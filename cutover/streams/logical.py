"""The `logical` stream: native publication and subscription with explicit table lists.

Between servers from 16 on `origin = none` keeps the two directions apart; with an older one they take turns.
"""

import asyncio
import time
import uuid

import asyncpg

from cutover.errors import Conflict, NotYet
from cutover.postgres import epoch, fence, giving_way, replication
from cutover.postgres.databases import Direction, Pair, Through
from cutover.streams.base import Lag, Marker, OneDirection, StreamHealth, TableProgress, TableStage, Work
from cutover.streams.turns import Turns

_STAGES: dict[str, TableStage] = {"i": "waiting", "d": "copying", "f": "catching-up", "s": "catching-up", "r": "ready"}

#: Between two looks for a marker. Apply takes 2 to 10 ms; a shorter poll costs the target more than it gains.
_POLL_SECONDS = 0.002


class LogicalStream(OneDirection):
    """One direction between the two databases of a pair."""

    def __init__(self, pair: Pair, direction: Direction) -> None:
        super().__init__(pair, direction)
        self.subscription = f"{pair.service}{self.infix}_sub"

    async def prepare(self) -> None:
        """The publication at the source. The target's tables and the markers' exist since Preparation."""
        async with self.source.session(self.label) as connection:
            members = [*self.pair.tables, epoch.marker_table(self.pair.service)]
            await replication.ensure_publication(connection, self.publication, members)

    async def start(self, *, copy: bool, gap: bool = False, through: Through | None = None) -> None:
        """Slot first, then the subscription on it.

        A slot without a subscription is left over from a start that was killed, or from an older
        direction; nothing was applied through it, so it is made anew. Raises Conflict when the target
        holds rows that a copy would collide with, or where the other direction runs and must not run beside this one.
        """
        await self.prepare()
        async with self.sink.session(self.label) as sink, self.source.session(self.label) as source:
            if gap:
                await giving_way.install(sink, self.pair.service, self.pair.tables)
            apart = self.turns(source, sink) is None
            if not apart:
                await self._require_alone(source)
            if await replication.has_subscription(sink, self.subscription):
                if not await replication.is_enabled(sink, self.subscription):
                    # under a token: whoever slept until now may have it at a side that a switch has left
                    async with (through or self.own_session)(self.sink_side) as held:
                        await replication.set_enabled(held, self.subscription, True)
                return
            if await replication.has_slot(source, self.subscription):
                async with (through or self.own_session)(self.source_side) as held:
                    # asked once more: whoever slept until now has found the leftover of a stream that is in use by now
                    if await replication.has_subscription(sink, self.subscription):
                        return
                    await replication.drop_slot(held, self.subscription)
            await replication.create_slot(source, self.subscription)
            await replication.create_subscription(
                sink, self.subscription, self.source, self.publication, copy=copy, origins=apart
            )

    async def _require_alone(self, source: asyncpg.Connection) -> None:
        opposite = f"{self.pair.service}{'_reverse' if self.direction == 'forward' else ''}_sub"
        if await replication.is_enabled(source, opposite):
            raise Conflict(
                f"{self.pair.service}: the {self.direction} stream must not start while {opposite!r} is enabled at "
                f"{self.source.name!r}: with a server below PostgreSQL 16 rows would go round in circles"
            )

    async def close_gap(self) -> None:
        async with self.sink.session(self.label) as sink:
            await giving_way.remove(sink, self.pair.service, self.pair.tables)

    def turns(self, one: asyncpg.Connection, other: asyncpg.Connection) -> Turns | None:
        if replication.tells_origins_apart(one) and replication.tells_origins_apart(other):
            return None
        service, label = self.pair.service, self.label
        return Turns(service, self.subscription, self.publication, self.source, self.sink, label)

    async def exists(self) -> bool:
        async with self.sink.session(self.label) as sink:
            return await replication.has_subscription(sink, self.subscription)

    async def ready(self) -> bool:
        async with self.sink.session(self.label) as sink:
            return await self._all_ready(sink)

    async def _all_ready(self, sink: asyncpg.Connection) -> bool:
        states = await replication.table_states(sink, self.subscription)
        return len(states) == len(self.pair.tables) + 1 and all(s.state == "r" for s in states)

    async def progress(self) -> list[TableProgress]:
        async with self.source.session(self.label) as source:
            estimates = await replication.estimated_rows(source, self.pair.tables)
        async with self.sink.session(self.label) as sink:
            states = await replication.table_states(sink, self.subscription)
        listed = []
        for state in states:
            if state.table not in estimates:
                continue  # the marker's table
            stage = _STAGES[state.state]
            done = stage in ("catching-up", "ready")
            estimate = estimates[state.table]
            listed.append(
                TableProgress(
                    table=str(state.table),
                    stage=stage,
                    rows_copied=max(estimate, state.rows_copied) if done else state.rows_copied,
                    rows_estimated=estimate,
                    bytes_copied=state.bytes_copied,
                )
            )
        return listed

    async def put_marker(self) -> Marker:
        async with self.source.session(self.label, synchronous_commit="on") as source:
            return await self.put_marker_on(source)

    async def put_marker_on(self, source: asyncpg.Connection, *, kind: str = "") -> Marker:
        """The same on a connection that is open already (inside the write pause); `kind` begins its id."""
        marker = Marker(kind + uuid.uuid4().hex)
        await epoch.put_marker(source, self.pair.service, marker.id)
        return marker

    async def await_marker(self, marker: Marker, timeout: float) -> float:
        async with self.sink.session(self.label) as sink:
            return await self.await_marker_on(sink, marker, timeout)

    async def await_marker_on(self, sink: asyncpg.Connection, marker: Marker, timeout: float) -> float:
        """The same on a connection that is open already."""
        begun = time.monotonic()
        while not await epoch.marker_seen(sink, self.pair.service, marker.id):
            if time.monotonic() - begun > timeout:
                raise NotYet(
                    f"{self.pair.service}: the {self.direction} stream did not carry a marker to "
                    f"{self.sink.name!r} within {timeout:.1f} s"
                )
            await asyncio.sleep(_POLL_SECONDS)
        if not await self._all_ready(sink):
            raise NotYet(f"{self.pair.service}: not every table of {self.subscription!r} is in state ready")
        await epoch.make_durable(sink)
        return time.monotonic() - begun

    async def lag(self, timeout: float) -> Lag:
        async with self.source.session(self.label) as source:
            marker = await self.put_marker_on(source)
            await epoch.prune_markers(source, self.pair.service)
            slot = await replication.slot_health(source, self.subscription)
        try:
            return Lag(await self.await_marker(marker, timeout), slot.behind_bytes)
        except NotYet:
            return Lag(None, slot.behind_bytes)

    async def health(self) -> StreamHealth:
        async with self.sink.session(self.label) as sink:
            subscription = await replication.subscription_health(sink, self.subscription)
            half_rebuilt = await giving_way.installed(sink, self.pair.tables)
        async with self.source.session(self.label) as source:
            slot = await replication.slot_health(source, self.subscription)
        problems = []
        if not subscription.exists:
            problems.append(f"subscription {self.subscription!r} does not exist at {self.sink.name!r}")
        elif not subscription.enabled:
            problems.append(f"subscription {self.subscription!r} is disabled at {self.sink.name!r}")
        elif not subscription.worker_running:
            problems.append(
                f"the apply worker of {self.subscription!r} is not running; the log of {self.sink.name!r}'s server "
                "says why, and mended, it goes on by itself"
            )
        lost = subscription.exists and (not slot.exists or slot.wal_status == "lost")
        if lost:
            problems.append(
                f"replication slot {self.subscription!r} at {self.source.name!r} is {slot.wal_status}: "
                "changes are missing, the stream has to be rebuilt (cutover doctor)"
            )
        elif half_rebuilt:
            problems.append("a rebuild of the stream has not come to its end: changes may be missing (cutover doctor)")
        return StreamHealth(
            ok=not problems,
            apply_errors=subscription.apply_errors + subscription.sync_errors,
            lost=lost or half_rebuilt,
            detail="; ".join(problems),
            stopped=subscription.exists and not subscription.enabled and not lost,
        )

    async def work(self) -> Work | None:
        """Apply and sync errors stand for secondary failures; rows written at the sink, markers too, for the work."""
        async with self.sink.session(self.label) as sink:
            members = await fence.relations(sink, [*self.pair.tables, epoch.marker_table(self.pair.service)])
            counts = await replication.subscription_counts(sink, self.subscription, members)
        if counts is None:
            return None
        return Work(str(counts.subscription), counts.since, counts.read_at, counts.failures, counts.rows)

    async def stop(self) -> None:
        async with self.sink.session(self.label) as sink:
            await replication.disable(sink, self.subscription)

    async def drop(self, through: Through | None = None) -> None:
        through = through or self.own_session
        # each by itself: in one transaction two droppers at a server would wait for each other (pg_subscription)
        for step in (replication.disable, replication.leave_slot, replication.drop_subscription):
            async with through(self.sink_side) as sink:
                await step(sink, self.subscription)
        for table in self.pair.tables:  # none is locked while another one is waited for
            async with through(self.sink_side) as sink:
                await giving_way.remove(sink, self.pair.service, [table])
        await self._drop_slot(through)
        async with through(self.source_side) as source:
            await replication.drop_publication(source, self.publication)

    async def _drop_slot(self, through: Through) -> None:
        """The walsender needs a moment to notice that its subscriber is gone."""
        deadline = time.monotonic() + 10
        while True:
            try:
                async with through(self.source_side) as source:
                    await replication.drop_slot(source, self.subscription)
                return
            except NotYet:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
