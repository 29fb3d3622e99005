"""Rows of one table as they are looked at in two databases: sessions in which values read alike, and rows by key.

A row is taken as the text that a client would see (`ROW(…)::text` under fixed session settings), so that what a type's
own equality passes over still shows: `1.50` and `1.500`, `-0` and `0`, `'A'` and `'a'` in citext, NULL and `''`.
The text of a row value quotes its fields (manual, 8.16.6), so no two different rows have the same one; columns stand
in the order of their names and the key is among them, so swapped columns and swapped rows show as well.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from cutover.postgres.databases import Database
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape

#: Settings that change how values read as text; the same on both sides, whatever the role or database has.
TEXT_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmlbinary": "base64",
    "search_path": "pg_catalog",
    # a policy must fail loudly instead of hiding rows from the comparison
    "row_security": "off",
}
READ_SETTINGS = {
    **TEXT_SETTINGS,
    "default_transaction_read_only": "on",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # the planner cannot tell how few buckets there are, and would sort the table for them
    "enable_sort": "off",
    "work_mem": "16MB",
    "lock_timeout": "10s",
    "statement_timeout": "30s",
}


@dataclass(frozen=True)
class Hashed:
    """Rows of a range and the sum of their hashes. A sum, for an xor loses rows that come twice."""

    rows: int
    total: int


@dataclass(frozen=True)
class Look:
    """One row as it was found: its digest, and the transaction that wrote it; both None where there is no row.

    The transaction tells a row that changed and changed back (a flag that toggles) from one that stood still.
    """

    digest: int | None
    xmin: int | None


ABSENT = Look(None, None)


@asynccontextmanager
async def compare_session(database: Database, purpose: str, **settings: str) -> AsyncIterator[asyncpg.Connection]:
    """A read-only session in which values read alike on both sides, with `settings` of its own. Raises Unreachable."""
    async with database.session(f"cutover-{purpose}", **{**READ_SETTINGS, **settings}) as connection:
        yield connection


async def read_alike(connection: asyncpg.Connection) -> None:
    """Gives an open session the settings under which values read alike on both sides."""
    await connection.execute(
        "SELECT pg_catalog.set_config(s.name, s.value, false) FROM unnest($1::text[], $2::text[]) AS s(name, value)",
        list(TEXT_SETTINGS),
        list(TEXT_SETTINGS.values()),
    )


async def position(connection: asyncpg.Connection) -> str:
    """The server's place in its write-ahead log, as text."""
    return str(
        await connection.fetchval(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() "
            "ELSE pg_current_wal_insert_lsn() END::text"
        )
    )


async def sums(connection: asyncpg.Connection, wanted: Sequence[tuple[Shape, Sequence[Key]]]) -> list[Hashed]:
    """Rows and sum of digests of these keys, table by table, in one statement for all of them."""
    parts: list[str] = []
    values: list[list[str]] = []
    for place, (shape, keys) in enumerate(wanted):
        parts.append(
            f"SELECT {place} AS place, count(*) AS rows, coalesce(sum({shape.digest}), 0)::text AS total "
            f"FROM {shape.by_key(len(values) + 1)}"
        )
        values.extend(key_arrays(shape, keys))
    rows = await connection.fetch(" UNION ALL ".join(parts) + " ORDER BY place", *values)
    return [Hashed(row["rows"], int(row["total"])) for row in rows]


async def warm(connection: asyncpg.Connection, shapes: Sequence[Shape]) -> None:
    """Looks at no key of each table, so that the statements are prepared and the server's caches filled."""
    for shape in shapes:
        await look(connection, shape, [])
    await sums(connection, [(shape, []) for shape in shapes])


def key_arrays(shape: Shape, keys: Sequence[Key]) -> list[list[str]]:
    """Keys as one array per key column, for `Shape.by_key`."""
    return [[key[n] for key in keys] for n in range(len(shape.key))]


def look_sql(shape: Shape) -> str:
    """Rows by key: position of the key in the arrays, then what makes a `Look`."""
    return f"SELECT v.n::int AS n, {shape.look} FROM {shape.by_key()}"


async def look(connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key]) -> list[tuple[Key | None, Look]]:
    """The rows of these keys as they are now, in the keys' order, each with its key as this side has it.

    One statement, so one snapshot.
    """
    found: list[tuple[Key | None, Look]] = [(None, ABSENT)] * len(keys)
    for row in await connection.fetch(look_sql(shape), *key_arrays(shape, keys)):
        values = tuple(row.values())
        found[values[0] - 1] = (values[3:], Look(values[1], values[2]))
    return found


async def look_at_columns(
    connection: asyncpg.Connection, shape: Shape, keys: Sequence[Key]
) -> list[tuple[Key | None, Look, list[int | None]]]:
    """As `look`, and with a digest of each compared column, in the order of their names."""
    found: list[tuple[Key | None, Look, list[int | None]]] = [(None, ABSENT, [])] * len(keys)
    sql = f"SELECT v.n::int AS n, {shape.column_digests} AS columns, {shape.look} FROM {shape.by_key()}"
    for row in await connection.fetch(sql, *key_arrays(shape, keys)):
        values = tuple(row.values())
        found[values[0] - 1] = (values[4:], Look(values[2], values[3]), values[1])
    return found
