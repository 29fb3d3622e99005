"""The `outbox` stream: one direction between the two databases of a pair."""

import asyncio
import time
import uuid
from contextlib import AbstractAsyncContextManager

import asyncpg

from cutover.errors import GateClosed, NotYet
from cutover.plan.models import Truncate
from cutover.postgres import (
    compare,
    outbox_capture,
    outbox_copy,
    outbox_lease,
    outbox_quarantine,
    outbox_schema,
    outbox_sink,
    outbox_source,
    outbox_tables,
    replication,
)  # fmt: skip
from cutover.postgres.databases import Database, Direction, Pair, Through
from cutover.postgres.keys import Key
from cutover.streams.base import Lag, Marker, OneDirection, StreamHealth, TableProgress, TableStage, Work
from cutover.streams.outbox import janitor
from cutover.streams.outbox.versions import raise_over_sink

_POLL_SECONDS = 0.002


class OutboxStream(OneDirection):
    """Captures at the source; a `Relay` carries over, and a `Backfill` brings the rows that were there before.

    Nothing flows through its publication, which the record of changed keys reads (`reconcile.changed`).
    """

    def __init__(
        self, pair: Pair, direction: Direction, *, truncate: Truncate = "capture", best_effort: bool = False
    ) -> None:
        super().__init__(pair, direction)
        self.truncate: Truncate = truncate
        self.best_effort = best_effort
        #: The name of the one that `start` has found or made.
        self._started = ""

    def _at(self, database: Database) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return database.session(self.label)

    async def prepare(self) -> None:
        """Capture at the source, and what relays need at the sink.

        Raises ConfigError for a table that this stream cannot carry, GateClosed where both sides do not fit, NotYet
        that names who holds a table.
        """
        async with self._at(self.source) as source, self._at(self.sink) as sink:
            await outbox_schema.install(sink, self.pair.service)
            await compare.read_alike(source)
            await compare.read_alike(sink)
            flows = await outbox_tables.flows(source, sink, self.pair.tables, self.pair.compare)
            await outbox_capture.install(source, self.pair.service, flows, truncate=self.truncate)
            await replication.ensure_publication(source, self.publication, self.pair.tables)

    async def start(self, *, copy: bool, gap: bool = False, through: Through | None = None) -> None:
        """Lets relays work, from what is captured on; with `copy` a `Backfill` has its ranges afterwards.

        A killed start leaves nothing that would have to be cleared away. Raises Conflict where a copy would meet rows
        at the target.
        """
        await self.prepare()
        service = self.pair.service
        async with self._at(self.source) as source, self._at(self.sink) as sink:
            await compare.read_alike(source)
            await compare.read_alike(sink)
            if await outbox_lease.stream_row(sink, service, self.direction) is None:
                await raise_over_sink(source, sink, service)
                if copy:
                    flows = await outbox_tables.flows(source, sink, self.pair.tables, self.pair.compare)
                    await outbox_copy.plan(source, sink, service, self.direction, list(flows.values()))
            self._started = await outbox_lease.start(
                sink, service, self.direction, uuid.uuid4().hex, best_effort=self.best_effort, gap=gap
            )

    async def draw_above(self) -> None:
        """After a failover of the source: what changes from here on is newer than all that the sink knows."""
        async with self._at(self.source) as source, self._at(self.sink) as sink:
            await raise_over_sink(source, sink, self.pair.service)

    async def close_gap(self) -> None:
        """Until then no read that must see its writes is answered at the sink. After `start`, by the same object.

        Raises StaleAttempt where the stream has been made anew since.
        """
        async with self._at(self.sink) as sink:
            await outbox_lease.close_gap(sink, self.pair.service, self.direction, self._started)

    async def give_up_nothing(self) -> None:
        """A change that is given up meanwhile is a difference, which the compare inside the fence finds."""
        async with self._at(self.sink) as sink:
            if await outbox_lease.stream_row(sink, self.pair.service, self.direction) is not None:
                await outbox_lease.give_up_nothing(sink, self.pair.service, self.direction)

    async def exists(self) -> bool:
        async with self._at(self.sink) as sink:
            return await outbox_lease.stream_row(sink, self.pair.service, self.direction) is not None

    async def ready(self) -> bool:
        """Copied, captured, and relays look after every shard."""
        async with self._at(self.sink) as sink:
            row = await outbox_lease.stream_row(sink, self.pair.service, self.direction)
            if row is None or not row.running:
                return False
            if await outbox_sink.copying(sink, self.pair.service, self.direction):
                return False
            relays = await outbox_lease.relays(sink, self.pair.service, self.direction)
        async with self._at(self.source) as source:
            missing = await outbox_capture.uncaptured(source, self.pair.tables)
        return relays.shards == outbox_schema.SHARDS and not missing.rows

    async def progress(self) -> list[TableProgress]:
        async with self._at(self.source) as source:
            estimates = await replication.estimated_rows(source, self.pair.tables)
        async with self._at(self.sink) as sink:
            started = await outbox_lease.stream_row(sink, self.pair.service, self.direction) is not None
            found = await outbox_copy.progress(sink, self.pair.service, self.direction) if started else []
        copies = {copy.table: copy for copy in found}
        listed = []
        for table in self.pair.tables:
            copy = copies.get(str(table))
            stage: TableStage = "ready" if started else "waiting"
            if copy is not None and not copy.swept:
                stage = "catching-up" if copy.done == copy.chunks else "copying" if copy.done else "waiting"
            rows, size = (copy.rows, copy.bytes) if copy else (0, 0)
            listed.append(TableProgress(str(table), stage, rows, max(rows, estimates.get(table, 0)), size))
        return listed

    async def put_marker(self) -> Marker:
        async with self._at(self.source) as source:
            return await self.put_marker_on(source)

    async def put_marker_on(self, source: asyncpg.Connection, *, kind: str = "") -> Marker:
        """An intent of its own, and the snapshot in which it is seen: its id names both."""
        name = kind + uuid.uuid4().hex
        return Marker(f"{name}@{await outbox_source.put_marker(source, self.pair.service, name)}")

    async def await_marker(self, marker: Marker, timeout: float) -> float:
        """Intents go after the apply that carried them was durable; so no intent of the snapshot may be left.

        Raises NotYet after `timeout` seconds, GateClosed at once while keys are held in quarantine.
        """
        begun = time.monotonic()
        snapshot = marker.id.rpartition("@")[2]
        async with self._at(self.source) as source:
            while await outbox_source.undone(source, self.pair.service, snapshot):
                await self._require_none_held(source)
                if time.monotonic() - begun > timeout:
                    raise NotYet(
                        f"{self.pair.service}: the {self.direction} stream did not carry a marker to "
                        f"{self.sink.name!r} within {timeout:.1f} s"
                    )
                await asyncio.sleep(_POLL_SECONDS)
            await self._require_none_held(source)
        return time.monotonic() - begun

    async def await_marker_on(self, sink: asyncpg.Connection, marker: Marker, timeout: float) -> float:
        """The same; what is awaited stands at the source, so the sink's connection is not needed."""
        return await self.await_marker(marker, timeout)

    async def end_in_doubt_on(self, source: asyncpg.Connection, sink: asyncpg.Connection) -> None:
        found = await janitor.resolve_on(source, sink, self.pair.service, self.direction)
        if left := [one.gid for one in found if one.decision is None]:
            raise NotYet(
                f"{self.pair.service}: {len(left)} strong writes are still deciding whether they are done ({left[0]})"
            )

    async def _require_none_held(self, source: asyncpg.Connection) -> None:
        if held := await outbox_quarantine.count(source, self.pair.service):
            raise GateClosed(
                f"{self.pair.service}: the {self.direction} stream holds {_counts(held)} in quarantine: the other side "
                "refuses them; mend the cause and retry them, or skip them"
            )

    async def lag(self, timeout: float) -> Lag:
        async with self._at(self.source) as source:
            marker = await self.put_marker_on(source)
            depth = await outbox_source.depth(source, self.pair.service)
        try:
            return Lag(await self.await_marker(marker, timeout), depth.bytes)
        except (NotYet, GateClosed):
            return Lag(None, depth.bytes)

    async def depth(self) -> outbox_source.Depth:
        """What is still to be carried over."""
        async with self._at(self.source) as source:
            return await outbox_source.depth(source, self.pair.service)

    async def health(self) -> StreamHealth:
        problems = []
        async with self._at(self.sink) as sink:
            row = await outbox_lease.stream_row(sink, self.pair.service, self.direction)
            if row is None:
                return StreamHealth(False, 0, False, f"the {self.direction} outbox stream has not been started")
            relays = await outbox_lease.relays(sink, self.pair.service, self.direction)
        if not row.running:
            problems.append(f"the {self.direction} outbox stream is stopped")
        elif relays.shards < outbox_schema.SHARDS:
            problems.append(f"no relay looks after {outbox_schema.SHARDS - relays.shards} of its shards")
        unattended = row.running and relays.shards < outbox_schema.SHARDS
        problems += relays.problems
        found, lost, unprepared = await self._look_at_source()
        problems += found
        if lost:
            problems.append("changes are missing, the stream has to be rebuilt (cutover doctor)")
        return StreamHealth(
            ok=not problems,
            apply_errors=row.failures,
            lost=lost,
            detail="; ".join(problems),
            stopped=(unprepared or not row.running) and not lost,
            unattended=unattended,
        )

    async def _look_at_source(self) -> tuple[list[str], bool, bool]:
        """What is wrong there, whether changes have passed by, and whether some can that have not."""
        async with self._at(self.source) as source:
            if not await outbox_schema.installed(source, self.pair.service):
                return [f"its outbox at {self.source.name!r} is gone"], True, False
            problems = []
            missing = await outbox_capture.uncaptured(source, self.pair.tables)
            if missing.rows:
                names = ", ".join(map(str, missing.rows))
                problems.append(f"changes of {names} are not captured at {self.source.name!r}")
            if missing.truncates:
                names = ", ".join(map(str, missing.truncates))
                problems.append(
                    f"a TRUNCATE of {names} is not captured at {self.source.name!r}: prepare the stream anew"
                )
            if held := await outbox_quarantine.count(source, self.pair.service):
                problems.append(f"{_counts(held)} held in quarantine")
            return problems, bool(missing.rows), bool(missing.truncates)

    async def work(self) -> Work | None:
        """Keys applied, and batches or keys that failed, as the relays have told."""
        async with self._at(self.sink) as sink:
            row = await outbox_lease.stream_row(sink, self.pair.service, self.direction)
        if row is None:
            return None
        return Work(row.stream, row.since.isoformat(), row.read_at, row.failures, row.applied)

    async def held(self) -> list[outbox_quarantine.Held]:
        """The keys in quarantine; none where the stream was never prepared."""
        async with self._at(self.source) as source:
            if not await outbox_schema.installed(source, self.pair.service):
                return []
            return await outbox_quarantine.held(source, self.pair.service)

    async def retry(self, ids: list[int], *, by: str, why: str) -> None:
        """Lets held keys be tried again. Raises Refused for one that is not held."""
        async with self._at(self.source) as source:
            await outbox_quarantine.retry(source, self.pair.service, ids, by=by, why=why)

    async def skip(self, ids: list[int], *, by: str, why: str) -> int:
        """Gives up what held keys wait for; how many intents. Raises Refused for a key that is not held."""
        async with self._at(self.source) as source:
            return await outbox_quarantine.skip(source, self.pair.service, ids, by=by, why=why)

    async def stop(self) -> None:
        """When it returns no relay can apply any more; capture goes on."""
        await self._stop(self.own_session)

    async def _stop(self, through: Through) -> None:
        async with through(self.sink_side) as sink:
            if await outbox_lease.stream_row(sink, self.pair.service, self.direction) is not None:
                await outbox_lease.stop(sink, self.pair.service, self.direction)

    async def drop(self, through: Through | None = None) -> None:
        """Capture at the source and all that this direction keeps; what waits in the outbox is given up."""
        through = through or self.own_session
        await self._stop(through)
        # table by table: no lock of one is kept while another one is awaited
        for table in self.pair.tables:
            async with through(self.source_side) as source:
                await outbox_capture.remove(source, self.pair.service, [table])
        async with through(self.source_side) as source:
            await outbox_schema.remove_source(source, self.pair.service, self.direction)
            await replication.drop_publication(source, self.publication)
        place: tuple[str, Key] | None = ("", ())
        while place is not None:
            async with through(self.sink_side) as sink:
                place = await outbox_schema.remove_versions(sink, self.pair.service, place)
        async with through(self.sink_side) as sink:
            await outbox_schema.remove_sink(sink, self.pair.service, self.direction)


def _counts(held: dict[str, int]) -> str:
    return ", ".join(f"{count} key{'s' if count > 1 else ''} of {table}" for table, count in held.items())
