"""Values of single rows for a person who looks at them: as they are, or masked before they leave the database.

A masked value is shown by the length of its text and a short digest, salted anew for each look: equal values of the two
sides show equal digests, and nobody can look a digest up in a list of likely values made beforehand.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres.columns import Compared
from cutover.postgres.compare import key_arrays
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape

#: Characters of a value that are shown; more are counted.
SHOWN = 1_000


@dataclass(frozen=True)
class Value:
    """One value as text, cut at `SHOWN`; or, masked, its digest. `length` in characters of the whole text.

    NULL has neither text nor length.
    """

    text: str | None
    length: int | None
    masked: bool

    @property
    def cut(self) -> bool:
        return not self.masked and self.length is not None and self.length > SHOWN


@dataclass(frozen=True)
class RowValues:
    """A row as one side has it: its key there, each column's value, and a digest of each column that is compared."""

    key: Key
    values: dict[str, Value]
    digests: dict[str, int | None]


async def row_values(
    connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key], *, open_columns: Collection[str], salt: str
) -> list[RowValues | None]:
    """The rows of these keys, in the keys' order; None where there is no row. One statement, so one snapshot.

    Columns of the key and those named are shown, all others masked by the server. Raises ConfigError for a key whose
    text is none of the key's type.
    """
    shown = {k.name for k in shape.key} | set(open_columns)
    salted = f"${len(shape.key) + 1}::text"
    texts = ", ".join(_value(column, column.name in shown, salted) for column in shape.columns)
    lengths = ", ".join(f"length({column.shown})" for column in shape.columns)
    sql = (
        f"SELECT v.n::int AS n, ARRAY[{texts}]::text[] AS texts, ARRAY[{lengths}]::int[] AS lengths, "
        f"{shape.column_digests} AS digests, {shape.key_text} FROM {shape.by_key()}"
    )
    found: list[RowValues | None] = [None] * len(keys)
    # where nothing is masked the salt has no place in the statement
    values = [*key_arrays(shape, keys), *([salt] if salted in sql else [])]
    try:
        rows = await connection.fetch(sql, *values)
    except asyncpg.DataError:
        # the server's own text would repeat the value
        types = ", ".join(f"{k.name} ({k.type_sql})" for k in shape.key)
        raise ConfigError(f"table {shape.table}: this is no key of it: its key is {types}") from None
    for row in rows:
        by_name = {
            column.name: Value(text, length, column.name not in shown)
            for column, text, length in zip(shape.columns, row["texts"], row["lengths"], strict=True)
        }
        digests = dict(zip((c.name for c in shape.compared), row["digests"], strict=True))
        found[row["n"] - 1] = RowValues(tuple(row.values())[4:], by_name, digests)
    return found


def _value(column: Compared, is_shown: bool, salted: str) -> str:
    if is_shown:
        return f"left({column.shown}, {SHOWN})"
    # NULL stays NULL: a concatenation with it is one
    return f"left(encode(sha256(convert_to({salted} || {column.shown}, 'UTF8')), 'hex'), 8)"
