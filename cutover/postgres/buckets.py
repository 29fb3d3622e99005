"""SQL that hashes a part of a table into buckets, and opens the buckets that differ.

A part (`Region`) is a range of the key in its index's order, a share of the key's hashes where there is no such order,
or both. Its buckets are equal slices of the range where the key is an integer, so that a few of them can be read again
by the index; else they are shares of the key's hash: balanced whatever the keys are, and the same on every server.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from cutover.postgres import hashing
from cutover.postgres.hashing import Hashing
from cutover.postgres.identifiers import quote
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape

#: A bucket as it travels: its number, its rows, a hash of the sum of its rows' hashes.
_BUCKET = struct.Struct("!iiq")
#: A range wider than this is not sliced: differences within it must fit a bigint.
_WIDEST = 2**62


@dataclass(frozen=True)
class Region:
    """Rows with `low < key <= high`, of those the ones with `hash of the key & mask = value`."""

    low: Key | None = None
    high: Key | None = None
    mask: int = 0
    value: int = 0

    def deeper(self, buckets: int, bucket: int) -> "Region":
        """One of `buckets` (a power of two) shares of this region, by the next bits of the hash."""
        return Region(self.low, self.high, self.mask * buckets + buckets - 1, self.value + bucket * (self.mask + 1))


@dataclass(frozen=True)
class Slices:
    """How a region of an integer key is cut: bucket b holds `low + b*width < key <= low + (b+1)*width`."""

    low: int
    high: int
    width: int

    @classmethod
    def of(cls, shape: Shape, region: Region, count: int) -> "Slices | None":
        """About `count` slices of the region, or None where it cannot be cut by arithmetic."""
        if not shape.integer or region.mask or region.low is None or region.high is None:
            return None
        low, high = int(region.low[0]), int(region.high[0])
        if not 0 < high - low < _WIDEST:
            return None
        return cls(low, high, -((low - high) // count))

    def region(self, first: int, last: int) -> Region:
        """The region of buckets first to last."""
        return Region((str(self.low + first * self.width),), (str(min(self.high, self.low + (last + 1) * self.width)),))


@dataclass(frozen=True)
class Buckets:
    """The buckets of one side as they travelled; empty ones are left out."""

    rows: int
    packed: bytes

    def read(self) -> dict[int, tuple[int, int]]:
        """Rows and hash of each bucket."""
        return {bucket: (rows, total) for bucket, rows, total in _BUCKET.iter_unpack(self.packed)}


@dataclass(frozen=True)
class Reader:
    """One side of a table: a session, the shape, and the hashes of this pass."""

    connection: asyncpg.Connection
    shape: Shape
    hashing: Hashing

    @property
    def _key_hash(self) -> str:
        return self.hashing.key(self.shape, "region")

    def _condition(self, region: Region, first: int = 1) -> tuple[str, list[str]]:
        condition, values = self.shape.within(region.low, region.high, first)
        if region.mask:
            condition += f" AND ({self._key_hash} & {region.mask}::int8) = {region.value}::int8"
        return condition, values

    def _bucket(self, region: Region, slices: Slices | None, count: int) -> str:
        if slices:
            column = f"t.{quote(self.shape.key[0].name)}::int8"
            return f"(({column} - {hashing.literal(slices.low)} - 1) / {hashing.literal(slices.width)})::int4"
        shift = region.mask.bit_length()
        return f"(({self._key_hash} >> {shift}) & {count - 1}::int8)::int4"

    async def extent(self) -> tuple[int, int] | None:
        """The least and the greatest key of an integer one; None in an empty table."""
        column = f"t.{quote(self.shape.key[0].name)}::int8"
        row = await self.connection.fetchrow(
            f"SELECT min({column}) AS low, max({column}) AS high FROM {self.shape.relation} AS t"
        )
        return None if row is None or row["low"] is None else (row["low"], row["high"])

    async def nth_key(self, low: Key | None, count: int) -> Key | None:
        """The key of the `count`-th row after `low`; None where there are fewer."""
        condition, values = self.shape.within(low, None)
        row = await self.connection.fetchrow(
            f"SELECT {self.shape.key_text} FROM {self.shape.relation} AS t WHERE {condition} "
            f"ORDER BY {self.shape.order} OFFSET {count - 1} LIMIT 1",
            *values,
        )
        return tuple(row.values()) if row else None

    async def first_of(self, left: Key, right: Key) -> Key:
        """The one of two keys that comes first here."""
        size = len(self.shape.key)
        earlier = await self.connection.fetchval(
            f"SELECT ({self.shape.bound(1)}) <= ({self.shape.bound(1 + size)})", *left, *right
        )
        return left if earlier else right

    async def buckets(self, region: Region, slices: Slices | None, count: int) -> Buckets:
        """Hashes of the region: by `slices`, or in `count` (a power of two) shares of the key's hash."""
        condition, values = self._condition(region)
        total = self.hashing.of_text("x.total::text", hashing.literal(hashing.seed_of(self.hashing.seed, "bucket")))
        row = await self.connection.fetchrow(
            f"SELECT coalesce(sum(x.rows), 0)::int8 AS rows, coalesce(string_agg("
            f"int4send(x.bucket) || int4send(x.rows::int4) || int8send({total}), ''::bytea ORDER BY x.bucket), '') "
            f"AS packed FROM (SELECT {self._bucket(region, slices, count)} AS bucket, count(*) AS rows, "
            f"{hashing.TOTAL.format(self.hashing.row(self.shape))} AS total "
            f"FROM {self.shape.relation} AS t WHERE {condition} GROUP BY 1) AS x",
            *values,
        )
        assert row is not None
        return Buckets(row["rows"], row["packed"])

    async def opened(
        self, region: Region, slices: Slices | None, count: int, wanted: Sequence[int]
    ) -> dict[int, dict[Key, int]]:
        """Hashes of the rows of these buckets, by key; for buckets whose rows fit in memory."""
        keys = ", ".join(f"array_agg({text}) AS k{n}" for n, text in enumerate(self._key_texts()))
        hashes = f"array_agg({self.hashing.row(self.shape)}) AS hashes, {keys}"
        if slices:
            column = f"t.{quote(self.shape.key[0].name)}"
            cuts = [(slices.low + b * slices.width, min(slices.high, slices.low + (b + 1) * slices.width))
                    for b in wanted]  # fmt: skip
            rows = await self.connection.fetch(
                "SELECT r.bucket, x.* FROM unnest($1::int4[], $2::int8[], $3::int8[]) AS r(bucket, low, high) "
                f"CROSS JOIN LATERAL (SELECT {hashes} FROM {self.shape.relation} AS t "
                f"WHERE {column} > r.low AND {column} <= r.high) AS x WHERE x.hashes IS NOT NULL",
                list(wanted), [low for low, _ in cuts], [high for _, high in cuts],
            )  # fmt: skip
        else:
            condition, values = self._condition(region, 2)
            bucket = self._bucket(region, None, count)
            rows = await self.connection.fetch(
                f"SELECT {bucket} AS bucket, {hashes} FROM {self.shape.relation} AS t "
                f"WHERE {condition} AND {bucket} = ANY($1::int4[]) GROUP BY 1",
                list(wanted), *values,
            )  # fmt: skip
        return {
            row["bucket"]: dict(zip(zip(*tuple(row.values())[2:], strict=True), row["hashes"], strict=True))
            for row in rows
        }

    def _key_texts(self) -> list[str]:
        shown = {c.name: c.shown for c in self.shape.columns}
        return [shown[k.name] for k in self.shape.key]
