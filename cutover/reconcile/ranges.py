"""The walk over a table: parts of it hashed on both sides at once into buckets, and opened only where those differ.

Every statement is short and has its own snapshot, so a row in flight shows as a candidate; whether it is a
difference is decided later (`cutover.reconcile.confirm`). A part ends at the key that comes first of the two sides'
next `step`-th ones, so neither side has more rows in it than asked for, even where the other has none: memory stays
flat, and statements short. A table without an order of keys that both sides share is read in shares of the key's hash
(see `cutover.reconcile.spans`).
"""

import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

import asyncpg

from cutover.postgres import compare
from cutover.postgres.buckets import MOST_BUCKETS, Reader, Region, Slices
from cutover.postgres.compare import Look
from cutover.postgres.keys import Key, key_json
from cutover.reconcile.pace import Pace
from cutover.reconcile.sides import at_once
from cutover.reconcile.spans import SHARE_ROWS, Span

#: Rows of the first part; then as many as take about SECONDS.
FIRST_STEP = 100_000
SMALLEST_STEP, LARGEST_STEP = 1_000, 1_000_000
SECONDS = 1.0
#: Rows of a bucket, about: fewer, and equal tables move more; more, and each difference opens more.
BUCKET_ROWS = 35
#: Rows of one side whose keys and hashes may be in memory at once.
OPEN_ROWS = 25_000
#: Keys looked at by one statement.
LOOK_KEYS = 2_000


@dataclass(frozen=True)
class Candidate:
    """A key whose row differed at one look."""

    key: Key
    source: Look
    target: Look


@dataclass
class Chunk:
    """One finished part: a resumed walk goes on after `after` (None: it was the span's last one)."""

    after: str | None
    rows_source: int = 0
    rows_target: int = 0
    #: Bytes of hashes and keys that travelled.
    moved: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    #: Opening may find many; what `candidates` holds is handed on whenever it is long.
    last: bool = True


@dataclass
class Walk:
    """Both sides of one table, with open sessions."""

    source: Reader
    sink: Reader
    pace: Pace = field(default_factory=Pace)
    _step: int = 0
    #: Rows per value of an integer key in the part before, while parts turn out as large as that foretells.
    _density: float | None = None

    @property
    def ordered(self) -> bool:
        return self.source.shape.ordered

    async def chunks(self, span: Span, after: str | None) -> AsyncIterator[Chunk]:
        """The span from `after` on. Of a chunk that comes in parts only the one with `last` ends it."""
        self._step = self._step or FIRST_STEP
        parts = self._ranges(span, after) if span.ordered else self._part(Region().deeper(span.of, span.share), None)
        async for part in parts:
            yield part

    async def _ranges(self, span: Span, after: str | None) -> AsyncIterator[Chunk]:
        low: Key | None = tuple(json.loads(after)) if after else span.low
        end = span.high
        if self.source.shape.integer:
            extents = [e for e in await at_once(self.source.extent(), self.sink.extent()) if e]
            if extents:
                low = low or (str(min(e[0] for e in extents) - 1),)
                end = end or (str(max(int(low[0]), *(e[1] for e in extents))),)
        if self.source.shape.integer and low and int(low[0]) < -(2**63):
            low = None
        while True:
            try:
                high = await self._next(low)
                if high is None or await self._reaches(high, end):
                    region, token = Region(low, end), None
                else:
                    region, token = Region(low, high), key_json(high)
                async for chunk in self._part(region, token):
                    yield chunk
            except asyncpg.QueryCanceledError:
                if self._step <= SMALLEST_STEP:
                    raise
                self._step, self._density = max(SMALLEST_STEP, self._step // 4), None
                continue
            if token is None:
                return
            low = high

    async def _reaches(self, high: Key, end: Key | None) -> bool:
        """Whether a part that ends at `high` would be the span's last one."""
        if end is None:
            return False
        if self.source.shape.integer:
            return int(high[0]) >= int(end[0])
        return high == end or await self.source.first_of(end, high) == end

    async def _next(self, low: Key | None) -> Key | None:
        """The key at which a part from `low` on ends; None: there is less than a part left on both sides.

        Counting keys costs a twentieth of hashing rows, so where keys lie evenly the end is foretold.
        """
        if self._density and low:
            return (str(int(low[0]) + int(self._step / self._density)),)
        left, right = await at_once(self.source.nth_key(low, self._step), self.sink.nth_key(low, self._step))
        if left is None or right is None or left == right:
            return left or right
        return await self.source.first_of(left, right)

    async def _part(self, region: Region, token: str | None) -> AsyncIterator[Chunk]:
        chunk = Chunk(token, last=False)
        async for full in self._compare(region, chunk, counted=True):
            yield full
        chunk.last = True
        yield chunk

    async def _compare(self, region: Region, chunk: Chunk, *, counted: bool) -> AsyncIterator[Chunk]:
        """Hashes a region and opens what differs; `chunk` is handed on and emptied whenever it is full."""
        rows = self._step if self.ordered else SHARE_ROWS
        count = min(MOST_BUCKETS, _power_of_two(max(rows // BUCKET_ROWS, 16)))
        slices = Slices.of(self.source.shape, region, min(MOST_BUCKETS, max(self._step // BUCKET_ROWS, 1)))
        started = time.monotonic()
        try:
            left, right = await at_once(
                self.source.buckets(region, slices, count), self.sink.buckets(region, slices, count)
            )
        except asyncpg.QueryCanceledError:
            if self.ordered or region.mask >= 2**20:
                raise
            for half in (0, 1):
                async for full in self._compare(region.deeper(2, half), chunk, counted=counted):
                    yield full
            return
        self._foretell(region, max(left.rows, right.rows))
        await self._pace(time.monotonic() - started)
        chunk.moved += len(left.packed) + len(right.packed)
        if counted:
            chunk.rows_source += left.rows
            chunk.rows_target += right.rows
        sizes = left.differing(right)
        for bucket in [b for b, rows in sizes.items() if rows > OPEN_ROWS]:
            del sizes[bucket]
            inner = slices.region(bucket, bucket) if slices else region.deeper(count, bucket)
            async for full in self._compare(inner, chunk, counted=False):
                yield full
        for wanted in _batches(sizes):
            await self._open(region, slices, count, wanted, chunk)
            if len(chunk.candidates) >= OPEN_ROWS:
                yield chunk
                chunk.candidates = []

    async def _open(
        self, region: Region, slices: Slices | None, count: int, wanted: Sequence[int], chunk: Chunk
    ) -> None:
        left, right = await at_once(
            self.source.opened(region, slices, count, wanted), self.sink.opened(region, slices, count, wanted)
        )
        chunk.moved += sum(map(len, left)) + sum(map(len, right))
        keys = list({self.source.key_of(record) for record in left ^ right})
        for start in range(0, len(keys), LOOK_KEYS):
            chunk.candidates.extend(await self._look(keys[start : start + LOOK_KEYS], chunk))

    async def _look(self, keys: Sequence[Key], chunk: Chunk) -> Iterable[Candidate]:
        left, right = await at_once(
            compare.look(self.source.connection, self.source.shape, keys),
            compare.look(self.sink.connection, self.sink.shape, keys),
        )
        chunk.moved += 4 * sum(len(text) for key in keys for text in key) + 32 * len(keys)
        # '1.5' and '1.50', or 'A' and 'a' in citext, are one key to the server: the source's text names the row
        found = {
            key_here or key_there or key: (here, there)
            for key, (key_here, here), (key_there, there) in zip(keys, left, right, strict=True)
        }
        return [Candidate(key, here, there) for key, (here, there) in found.items() if here.digest != there.digest]

    def _foretell(self, region: Region, rows: int) -> None:
        if self.source.shape.integer and region.low and region.high and not region.mask:
            span = int(region.high[0]) - int(region.low[0])
            self._density = rows / span if span > 0 and self._step / 4 < rows < self._step * 2 else None

    async def _pace(self, elapsed: float) -> None:
        if self.ordered:
            factor = min(2.0, max(0.5, SECONDS / max(elapsed, 0.001)))
            self._step = min(LARGEST_STEP, max(SMALLEST_STEP, int(self._step * factor)))
        await self.pace.rest(elapsed)


def _batches(sizes: dict[int, int]) -> list[list[int]]:
    """The buckets in groups of at most OPEN_ROWS rows."""
    groups: list[list[int]] = []
    rows = OPEN_ROWS + 1
    for bucket, size in sizes.items():
        if rows + size > OPEN_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(bucket)
        rows += size
    return groups


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
