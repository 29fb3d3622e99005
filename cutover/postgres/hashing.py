"""The hash of a row as one SQL expression, built column by column (see `cutover.postgres.columns`).

Each column has a seed of its own, so that two columns that are swapped show; NULL has a value that no other has. The
hash of a column without NULLs is the seed of the next one's, the others are added by xor, and the whole becomes the
seed of the key's hash: a value that two rows have swapped shows, and so does any other change that leaves all columns'
contents the same. All seeds are drawn from the pass's.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from cutover.postgres.columns import NESTABLE, NEWER, OWN, PROBES, Compared
from cutover.postgres.shapes import Shape

#: Aggregates hashes of rows. A sum, for an xor loses rows that come twice; numeric, so it cannot overflow.
TOTAL = "sum({})"


@dataclass(frozen=True)
class Hashing:
    """The functions by which both sides hash alike, and the seed of a pass."""

    seed: int
    own: frozenset[str]
    newer: frozenset[str] = frozenset()

    def of_text(self, text: str, seed: str) -> str:
        """SQL of the hash of a text, by its bytes whatever its collation."""
        if "text" in self.own:
            return f'hashtextextended({text} COLLATE "C", {seed})'
        # servers that hash differently (other byte order, say) agree on this one
        salted = f"({seed})::text || ':' || {text}"
        return f"('x' || left(encode(sha256(convert_to({salted}, 'UTF8')), 'hex'), 16))::bit(64)::int8"

    def column(self, column: Compared) -> str:
        """SQL of the column's hash, with its own seed."""
        seed = literal(seed_of(self.seed, f"column {column.name}"))
        return f"coalesce({self._one(column, seed)}, {literal(seed_of(self.seed, f'null {column.name}'))})"

    def row(self, shape: Shape) -> str:
        """SQL of the row's hash."""
        names = {k.name for k in shape.key}
        columns = [c for c in shape.compared if c.name not in names]
        nested = [c for c in columns if c.not_null and self._nestable(c)]
        seed = literal(seed_of(self.seed, "row"))
        for column in nested:
            seed = self._one(column, seed)
        return self._keyed(shape, " # ".join([seed, *(self.column(c) for c in columns if c not in nested)]))

    def key(self, shape: Shape, purpose: str) -> str:
        """SQL of a hash of the key alone."""
        return self._keyed(shape, literal(seed_of(self.seed, purpose)))

    def _keyed(self, shape: Shape, seed: str) -> str:
        columns = {c.name: c for c in shape.compared}
        for key in shape.key:
            column = columns[key.name]
            seed = self._one(column, seed) if self._nestable(column) else self.of_text(column.text, seed)
        return seed

    def _nestable(self, column: Compared) -> bool:
        return column.own in NESTABLE or column.own in self.newer or column.own not in self.own

    def _one(self, column: Compared, seed: str) -> str:
        text = self.of_text(column.text, seed)
        if column.own in self.newer:
            return NEWER[column.own](column.value, seed, text)
        return OWN[column.own](column.value, seed, text) if column.own in self.own else text


def seed_of(seed: int, label: str) -> int:
    """A seed for one purpose, drawn from the pass's; never 0, which the server's functions take for none."""
    digest = hashlib.blake2b(label.encode(), key=seed.to_bytes(8, "big", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


def literal(number: int) -> str:
    """The number as SQL of a bigint (the smallest one has no literal of its own)."""
    return f"'{number}'::int8"


async def agree(source: asyncpg.Connection, sink: asyncpg.Connection, shapes: Iterable[Shape], seed: int) -> Hashing:
    """Which hashes both servers compute alike for the same values; columns of the others are hashed by their text."""
    wanted = {"text"} | {c.own for shape in shapes for c in shape.compared if c.own}
    left, right = await asyncio.gather(_probe(source, wanted, seed), _probe(sink, wanted, seed))
    alike = {name for name in left.keys() & right.keys() if left[name] and left[name] == right[name]}
    return Hashing(seed, frozenset(alike & wanted), frozenset(n for n in wanted & NEWER.keys() if _newer(n) in alike))


def _newer(name: str) -> str:
    return f"newer {name}"


async def _probe(connection: asyncpg.Connection, wanted: set[str], seed: int) -> dict[str, list[int] | None]:
    found: dict[str, list[int] | None] = {}
    plain, salt = Hashing(seed, frozenset({"text"})), literal(seed_of(seed, "probe"))
    for name in sorted(wanted):
        text = plain.of_text("v::text", salt)
        forms = {name: OWN[name](f"v::{name}", salt, text) if name in OWN else text}
        if name in NEWER:
            forms[_newer(name)] = NEWER[name](f"v::{name}", salt, text)
        for form, hashed in forms.items():
            try:
                found[form] = await connection.fetchval(
                    f"SELECT array_agg({hashed} ORDER BY n) FROM unnest($1::text[]) WITH ORDINALITY AS p(v, n)",
                    list(PROBES[name]),
                )
            except asyncpg.UndefinedFunctionError:
                found[form] = None  # an older server does not have it
    return found
