"""SQL that mends rows on the side that is not the primary: read here as text, written there exactly.

Every write names the digest that its row must still have, checked by a statement of its own after the row's lock: a
single statement would check what it saw before it waited. A written row's digest is returned, so that a value that did
not travel exactly is noticed before the commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres import uniques
from cutover.postgres.catalog import Column
from cutover.postgres.compare import Look, key_arrays, look
from cutover.postgres.identifiers import quote
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape
from cutover.postgres.suggestions import did_you_mean

_MOMENTS = frozenset({"timestamptz", "timestamp", "date"})
_NUMBERS = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8"})
_BASE_TYPE = """
WITH RECURSIVE base AS (
    SELECT t.* FROM pg_catalog.pg_type t WHERE t.oid = $1
    UNION ALL SELECT t.* FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype
)
SELECT CASE WHEN typnamespace = 'pg_catalog'::regnamespace THEN typname::text END FROM base WHERE typbasetype = 0
"""


@dataclass(frozen=True)
class Row:
    """A row of the primary: its key, its look, and its values as text in the order of the shape's `stored`."""

    key: Key
    look: Look
    values: tuple[str | None, ...]


def _shown(shape: Shape) -> str:
    """SQL of an array of the texts of what a repair writes."""
    texts = {c.name: c.shown for c in shape.columns}
    return "ARRAY[" + ", ".join(texts[name] for name in shape.stored) + "]::text[]"


async def read_rows(connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key], *, lock: bool) -> dict[int, Row]:
    """Rows by the position of their key; `lock` holds them against change and deletion until the transaction ends."""
    if lock:
        await connection.execute(
            f"SELECT 1 FROM {shape.by_key()} ORDER BY {shape.order} FOR SHARE OF t", *key_arrays(shape, keys)
        )
    rows = await connection.fetch(
        f"SELECT v.n::int AS n, {shape.look}, {_shown(shape)} AS row FROM {shape.by_key()}",
        *key_arrays(shape, keys),
    )
    return {
        row["n"] - 1: Row(tuple(row.values())[3:-1], Look(row["digest"], row["xmin"]), tuple(row["row"]))
        for row in rows
    }


async def lock_rows(connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key]) -> list[Look]:
    """Locks the rows, then looks at them in a second statement, in the keys' order."""
    await connection.execute(
        f"SELECT 1 FROM {shape.by_key()} ORDER BY {shape.order} FOR UPDATE OF t", *key_arrays(shape, keys)
    )
    return [seen for _, seen in await look(connection, shape, keys)]


async def dating(connection: asyncpg.Connection, columns: Sequence[Column], column: str) -> tuple[str, bool]:
    """What is wrong with a column as the one that dates a row ("": nothing), and whether it holds a time.

    A moment, a date, or a number that rises with each version of the row; a domain counts as its base type.
    """
    found = next((c for c in columns if c.name == column), None)
    if found is None:
        return (
            f"there is no such column; {did_you_mean(column, [c.name for c in columns]) or 'correct the plan'}",
            False,
        )
    base = await connection.fetchval(_BASE_TYPE, found.type_oid)
    if base in _MOMENTS or base in _NUMBERS:
        return "", base in _MOMENTS
    return (
        f"its type {found.type_sql} does not date a row; name a column of type {', '.join(sorted(_MOMENTS))}, "
        "or a number that rises with each change",
        False,
    )


async def timestamps(
    connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key], column: str
) -> list[str | None]:
    """A number that rises with the column's time (or version), as text; None for NULL or no row.

    Raises ConfigError for a column that cannot date a row.
    """
    problem, of_time = await dating(connection, [c.column for c in shape.columns], column)
    if problem:
        raise ConfigError(f"table {shape.table}: `timestamp: {column}` of its conflict rule: {problem}")
    value = f"extract(epoch FROM t.{quote(column)})" if of_time else f"t.{quote(column)}"
    found: list[str | None] = [None] * len(keys)
    sql = f"SELECT v.n::int AS n, {value}::text AS at FROM {shape.by_key()}"
    for row in await connection.fetch(sql, *key_arrays(shape, keys)):
        found[row["n"] - 1] = row["at"]
    return found


async def delete_rows(connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key]) -> int:
    """Deletes rows that the caller has locked and checked; how many there were."""
    size = len(shape.key)
    status = await connection.execute(
        f"DELETE FROM {shape.table.sql} AS t USING unnest({_arrays(size)}) AS v({_names('k', size)}) "
        f"WHERE {shape.same_key()}",
        *key_arrays(shape, keys),
    )
    return int(status.rpartition(" ")[2])


async def insert_rows(connection: asyncpg.Connection, shape: Shape, rows: Sequence[Row]) -> dict[Key, int]:
    """Inserts rows that no row with one of their unique values stands in the way of; the digests of those, by key."""
    columns = shape.stored
    types = {c.name: c.type_sql for c in shape.columns}
    values = {name: f"CAST(v.c{n} AS {types[name]})" for n, name in enumerate(columns)}
    unless = "ON CONFLICT DO NOTHING"
    if await uniques.checked_late(connection, shape.table):
        row = {name: values.get(name, f"CAST(NULL AS {type_sql})") for name, type_sql in types.items()}
        unless = f"WHERE {uniques.free(shape.table, await uniques.of_table(connection, shape.table), row)}"
    written_rows = await connection.fetch(
        f"INSERT INTO {shape.table.sql} AS t ({', '.join(map(quote, columns))}) OVERRIDING SYSTEM VALUE "
        f"SELECT {', '.join(values.values())} FROM unnest({_arrays(len(columns))}) AS v({_names('c', len(columns))}) "
        f"{unless} RETURNING {shape.digest} AS digest, {shape.key_text}",
        *_columns(rows, len(columns)),
    )
    return {tuple(row.values())[1:]: row["digest"] for row in written_rows}


async def update_rows(
    connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key], rows: Sequence[Row]
) -> dict[Key, int]:
    """Gives rows that the caller has locked and checked the primary's values; digests of the rows written, by key.

    Columns that are GENERATED ALWAYS AS IDENTITY cannot be updated; where they differ the digest tells. Columns that
    the plan excludes are left as they are.
    """
    columns = shape.stored
    types = {c.name: c.type_sql for c in shape.columns}
    always = {c.name for c in shape.columns if c.column.identity == "a" or c.left_out}
    sets = ", ".join(
        f"{quote(name)} = CAST(v.c{n} AS {types[name]})" for n, name in enumerate(columns) if name not in always
    )
    if not sets:
        return {}
    size = len(shape.key)
    written_rows = await connection.fetch(
        f"UPDATE {shape.table.sql} AS t SET {sets} "
        f"FROM unnest({_arrays(size + len(columns))}) AS v({_names('k', size)}, {_names('c', len(columns))}) "
        f"WHERE {shape.same_key()} RETURNING {shape.digest} AS digest, {shape.key_text}",
        *key_arrays(shape, keys),
        *_columns(rows, len(columns)),
    )
    return {tuple(row.values())[1:]: row["digest"] for row in written_rows}


def _arrays(count: int) -> str:
    return ", ".join(f"${n + 1}::text[]" for n in range(count))


def _names(prefix: str, count: int) -> str:
    return ", ".join(f"{prefix}{n}" for n in range(count))


def _columns(rows: Sequence[Row], count: int) -> list[list[str | None]]:
    return [[row.values[n] for row in rows] for n in range(count)]
