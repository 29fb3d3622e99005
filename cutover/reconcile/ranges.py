"""The walk over a table: key ranges hashed on both sides at once, and opened only where they differ.

Every statement is short and has its own snapshot, so a row in flight shows as a candidate; whether it is a
difference is decided later (`cutover.reconcile.confirm`). Ranges are cut at keys of the source; the first is open
below and the last open above, so rows that only the target has outside of them are found. A range in which one side is
far denser is cut again at that side's keys: memory stays flat even where a whole table is missing.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncpg

from cutover.postgres import compare
from cutover.postgres.compare import ABSENT, Key, Look, Shape

#: Rows of the first range; then as many as take about SECONDS.
FIRST_STEP = 10_000
SMALLEST_STEP, LARGEST_STEP = 1_000, 100_000
SECONDS = 0.2
#: Rows of a range whose keys may travel.
OPEN_ROWS = 2_000
#: Cuts asked for at once.
CUTS = 64
#: Ranges in which a table is read whose key's index does not serve the common order: each costs a scan.
SCANS = 16
#: A range holding this many times the rows it was cut for is cut again.
DENSE = 2


@dataclass(frozen=True)
class Candidate:
    """A key whose row differed at one look."""

    key: Key
    source: Look
    target: Look


@dataclass
class Chunk:
    """One finished range: `high` is where a resumed walk goes on (None after the last one)."""

    high: Key | None
    rows_source: int = 0
    rows_target: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    #: Opening may find many; what `candidates` holds is handed on whenever it is this long.
    last: bool = True


@dataclass
class Walk:
    """Both sides of one table, with open sessions and this pass's seed."""

    source: asyncpg.Connection
    sink: asyncpg.Connection
    source_shape: Shape
    sink_shape: Shape
    seed: int
    #: Share of the time that statements may take; the rest is left to the application.
    busy: float = 1.0
    fast: bool = True
    _step: int = FIRST_STEP

    async def chunks(self, after: Key | None) -> AsyncIterator[Chunk]:
        """The table from `after` on. Of a chunk that comes in parts only the one with `last` ends its range."""
        self.fast = await self._hashes_agree()
        async for low, high in self._ranges(after):
            started = time.monotonic()
            async for part in self._compare(low, high):
                yield part
            await self._pace(time.monotonic() - started)

    async def _hashes_agree(self) -> bool:
        left, right = await asyncio.gather(compare.probe(self.source, self.seed), compare.probe(self.sink, self.seed))
        return left == right

    async def _ranges(self, low: Key | None) -> AsyncIterator[tuple[Key | None, Key | None]]:
        indexed = self.source_shape.indexed and self.sink_shape.indexed
        if not indexed:
            self._step = max(FIRST_STEP, self.source_shape.estimated_rows // SCANS)
        count = 1 if indexed else CUTS
        while True:
            found = await compare.bounds(self.source, self.source_shape, low, None, self._step, count)
            for high in found:
                yield low, high
                low = high
            if len(found) < count:
                yield low, None
                return

    async def _pace(self, elapsed: float) -> None:
        if self.source_shape.indexed and self.sink_shape.indexed:
            factor = min(2.0, max(0.5, SECONDS / max(elapsed, 0.001)))
            self._step = min(LARGEST_STEP, max(SMALLEST_STEP, int(self._step * factor)))
        if self.busy < 1.0:
            await asyncio.sleep(elapsed * (1.0 / max(self.busy, 0.01) - 1.0))

    async def _compare(self, low: Key | None, high: Key | None) -> AsyncIterator[Chunk]:
        """One range; differing parts are cut down until they may be opened."""
        chunk = Chunk(high, last=False)
        todo = [(low, high, self._step)]
        while todo:
            lower, upper, size = todo.pop()
            limit = size * DENSE + 1
            source, sink = await self._hash(lower, upper, limit)
            larger = max(source.rows, sink.rows)
            if larger < limit and source == sink:
                chunk.rows_source += source.rows
                chunk.rows_target += sink.rows
            elif larger < limit and larger <= OPEN_ROWS * DENSE:
                await self._open(chunk, lower, upper)
                if len(chunk.candidates) >= OPEN_ROWS:
                    yield chunk
                    chunk = Chunk(high, last=False)
            else:
                width = size if larger >= limit else OPEN_ROWS
                todo.extend(await self._cut(lower, upper, width, source.rows >= sink.rows))
        chunk.last = True
        yield chunk

    async def _hash(self, low: Key | None, high: Key | None, limit: int) -> tuple[compare.Hashed, compare.Hashed]:
        source, sink = await asyncio.gather(
            compare.hash_range(self.source, self.source_shape, low, high, seed=self.seed, limit=limit, fast=self.fast),
            compare.hash_range(self.sink, self.sink_shape, low, high, seed=self.seed, limit=limit, fast=self.fast),
        )
        return source, sink

    async def _cut(
        self, low: Key | None, high: Key | None, width: int, at_source: bool
    ) -> list[tuple[Key | None, Key | None, int]]:
        """The range in pieces of about `width` rows of the denser side, last piece first."""
        connection, shape = (self.source, self.source_shape) if at_source else (self.sink, self.sink_shape)
        cuts: list[Key | None] = [*await compare.bounds(connection, shape, low, high, width, CUTS)]
        if not cuts or cuts[-1] != high:
            cuts.append(high)
        pieces = [(lower, upper, width) for lower, upper in zip([low, *cuts[:-1]], cuts, strict=True)]
        return pieces[::-1]

    async def _open(self, chunk: Chunk, low: Key | None, high: Key | None) -> None:
        source, sink = await asyncio.gather(
            compare.digests_in(self.source, self.source_shape, low, high),
            compare.digests_in(self.sink, self.sink_shape, low, high),
        )
        chunk.rows_source += len(source)
        chunk.rows_target += len(sink)
        for key in source.keys() | sink.keys():
            left, right = source.get(key, ABSENT), sink.get(key, ABSENT)
            if left.digest != right.digest:
                chunk.candidates.append(Candidate(key, left, right))
