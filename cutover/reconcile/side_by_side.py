"""The two rows of a key side by side, for a person: which columns differ, and the values that the plan lets show."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cutover.errors import ConfigError, GateClosed
from cutover.postgres.databases import Direction, Pair
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape, shapes
from cutover.postgres.suggestions import did_you_mean
from cutover.postgres.values import RowValues, Value, row_values
from cutover.reconcile.sides import at_once, both_sides


@dataclass(frozen=True)
class ColumnPair:
    """One column on both sides (None: no row there, or no such column). `differs` is None where it is not compared."""

    name: str
    source: Value | None
    target: Value | None
    differs: bool | None
    #: Why it is not compared; "" where it is.
    left_out: str


@dataclass(frozen=True)
class RowPair:
    """A key with its rows; a side without the row has no value in any column."""

    key: Key
    in_source: bool
    in_target: bool
    columns: list[ColumnPair]

    @property
    def differs(self) -> bool:
        return self.in_source != self.in_target or any(one.differs for one in self.columns)


async def side_by_side(
    pair: Pair,
    direction: Direction,
    table: TableName,
    keys: Sequence[Key],
    *,
    show: Sequence[str],
    columns: Sequence[str] = (),
) -> list[RowPair]:
    """Reads the rows of these keys from both sides at once. `show`: columns whose values may leave the databases.

    `columns`: only these. Raises ConfigError for a column or key that is not the table's, GateClosed where the table
    has no key, and what `both_sides` raises.
    """
    async with both_sides(pair, direction, f"diff/{pair.service}") as (source, sink):
        left, right = await shapes(source, sink, table, pair.passes_over(table))
        if not left.keyed_by:
            raise GateClosed(f"table {table} has no key, so there are no two rows to set side by side")
        names = _wanted(table, left, right, columns)
        if wrong := next((key for key in keys if len(key) != len(left.key)), None):
            parts = ", ".join(k.name for k in left.key)
            raise ConfigError(
                f"table {table}: the key has {len(left.key)} columns ({parts}) and {len(wrong)} values were given; "
                'write a composite key as a JSON array, as in ["a", "b"]'
            )
        salt = secrets.token_hex(16)
        here, there = await at_once(
            row_values(source, left, keys, open_columns=show, salt=salt),
            row_values(sink, right, keys, open_columns=show, salt=salt),
        )
    reasons = {c.name: c.left_out for c in (*right.columns, *left.columns)}
    return [
        RowPair(key, a is not None, b is not None, [_column(name, a, b, reasons[name]) for name in names])
        for key, a, b in zip(keys, here, there, strict=True)
    ]


def _wanted(table: TableName, left: Shape, right: Shape, columns: Sequence[str]) -> list[str]:
    """The key's columns first, then the others by name. Raises ConfigError."""
    key = [k.name for k in left.key]
    known = sorted({c.name for c in (*left.columns, *right.columns)})
    if unknown := [name for name in columns if name not in known]:
        hint = did_you_mean(unknown[0], known) or f"its columns: {', '.join(known)}"
        raise ConfigError(f"table {table} has no column {unknown[0]!r}; {hint}")
    others = [name for name in known if name not in key]
    return list(dict.fromkeys(columns)) if columns else [*key, *others]


def _column(name: str, here: RowValues | None, there: RowValues | None, left_out: str) -> ColumnPair:
    differs: bool | None = None
    if not left_out and here and there:
        differs = here.digests[name] != there.digests[name]
    elif not left_out:
        differs = (here is None) != (there is None)
    return ColumnPair(
        name, here.values.get(name) if here else None, there.values.get(name) if there else None, differs, left_out
    )
