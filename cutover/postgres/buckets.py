"""SQL that hashes a part of a table into buckets, and opens the buckets that differ.

A part (`Region`) is a range of the key in its index's order, a share of the key's hashes where there is no such order,
or both. Its buckets are equal slices of the range where the key is an integer, so that a few of them can be read again
by the index; else they are shares of the key's hash: balanced whatever the keys are, and the same on every server.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from cutover.postgres import hashing
from cutover.postgres.hashing import Hashing
from cutover.postgres.identifiers import quote
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape

#: Buckets of one region at most: their numbers travel in two bytes, the middle one as 0.
MOST_BUCKETS = 2**16
#: A bucket as it travels: its number, its rows (32767 for more), a hash of their number and the sum of their hashes.
_BUCKET = struct.Struct("!hhq")
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
    """The buckets of one side as they travelled, in no order; empty ones are left out."""

    rows: int
    packed: bytes

    def differing(self, other: "Buckets") -> dict[int, int]:
        """The buckets that are not the same here and there, in order, with the greater number of rows."""
        if self.packed == other.packed:  # mostly: two servers alike give the same order
            return {}
        here, there = self._records(), other._records()
        sizes: dict[int, int] = {}
        for number, rows, _ in map(_BUCKET.unpack, here ^ there):
            bucket = number + MOST_BUCKETS // 2
            sizes[bucket] = max(rows, sizes.get(bucket, 0))
        return dict(sorted(sizes.items()))

    def _records(self) -> set[bytes]:
        return {self.packed[at : at + _BUCKET.size] for at in range(0, len(self.packed), _BUCKET.size)}


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
            return f"({column} - {hashing.literal(slices.low + 1)}) / {hashing.literal(slices.width)}"
        shift = region.mask.bit_length()
        return f"(({self._key_hash} >> {shift}) & {count - 1}::int8)::int4"

    async def extent(self) -> tuple[int, int] | None:
        """The least and the greatest key of an integer one; None in an empty table."""
        column = f"t.{quote(self.shape.key[0].name)}"
        row = await self.connection.fetchrow(
            f"SELECT min({column})::int8 AS low, max({column})::int8 AS high FROM {self.shape.relation} AS t"
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
        total = self.hashing.of_text(
            "(x.rows::text || ' ' || x.total::text)", hashing.literal(hashing.seed_of(self.hashing.seed, "bucket"))
        )
        row = await self.connection.fetchrow(
            f"SELECT coalesce(sum(x.rows), 0)::int8 AS rows, coalesce(string_agg("
            f"int2send((x.bucket - {MOST_BUCKETS // 2})::int2) || int2send(least(x.rows, 32767)::int2) "
            f"|| int8send({total}), ''::bytea), '') AS packed "
            f"FROM (SELECT {self._bucket(region, slices, count)} AS bucket, count(*) AS rows, "
            f"{hashing.TOTAL.format(self.hashing.row(self.shape))} AS total "
            f"FROM {self.shape.relation} AS t WHERE {condition} GROUP BY 1) AS x",
            *values,
        )
        assert row is not None
        return Buckets(row["rows"], row["packed"])

    async def opened(self, region: Region, slices: Slices | None, count: int, wanted: Sequence[int]) -> set[bytes]:
        """The rows of these buckets, each as its hash and its key; for buckets whose rows fit in memory."""
        texts = {c.name: c.shown for c in self.shape.columns}
        keys = [texts[k.name] for k in self.shape.key]
        key = keys[0] if len(keys) == 1 else f"to_json(ARRAY[{', '.join(keys)}]::text[])::text"
        record = f"int8send({self.hashing.row(self.shape)}) || textsend({key}) AS record"
        if slices:
            column = f"t.{quote(self.shape.key[0].name)}"
            lows = [slices.low + bucket * slices.width for bucket in wanted]
            found = await self.connection.fetchval(
                "SELECT array_agg(x.record) FROM unnest($1::int8[], $2::int8[]) AS r(low, high) CROSS JOIN LATERAL "
                f"(SELECT {record} FROM {self.shape.relation} AS t WHERE {column} > r.low AND {column} <= r.high) AS x",
                lows, [min(slices.high, low + slices.width) for low in lows],
            )  # fmt: skip
        else:
            condition, values = self._condition(region, 2)
            found = await self.connection.fetchval(
                f"SELECT array_agg(x.record) FROM (SELECT {record} FROM {self.shape.relation} AS t "
                f"WHERE {condition} AND {self._bucket(region, None, count)} = ANY($1::int4[])) AS x",
                list(wanted), *values,
            )  # fmt: skip
        return set(found or ())

    def key_of(self, record: bytes) -> Key:
        """The key in a record of `opened`."""
        text = record[8:].decode()
        return (text,) if len(self.shape.key) == 1 else tuple(json.loads(text))
