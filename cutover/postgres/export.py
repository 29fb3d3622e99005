"""Rows out of a table and into a scratch copy, with a hash that does not depend on their order."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from cutover.postgres import catalog
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName, columns_sql, quote

#: The text of a value has to be the same on every server: session settings that change it.
_SETTINGS = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


@dataclass(frozen=True)
class Exported:
    """What one export saw in its snapshot; `row_hash` is the sum of the rows' 64-bit hashes, as text."""

    rows: int
    row_hash: str
    columns: tuple[tuple[str, str], ...]


def _hash_sql(columns: tuple[str, ...], relation: str) -> str:
    texts = ", ".join(f"{quote(column)}::text" for column in columns)
    return (
        f"SELECT count(*) AS rows, coalesce(sum(hashtextextended(ROW({texts})::text, 0)::numeric), 0)::text AS hash "
        f"FROM {relation}"
    )


async def export(database: Database, table: TableName, sink: Callable[[bytes], Coroutine[Any, Any, None]]) -> Exported:
    """Streams the table's rows (descendants included, generated columns not) in COPY's text format to `sink`.

    One snapshot for rows, count and hash. One line a row: the format writes a line break as `\\n`.
    """
    async with database.session("cutover-archive", **_SETTINGS) as connection:
        info = await catalog.table(connection, table)
        columns = info.written_columns
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            [row] = await connection.fetch(_hash_sql(columns, table.sql))
            # in the same order each time: the same rows give the same file
            await connection.execute(
                "SET LOCAL synchronize_seqscans = off; SET LOCAL max_parallel_workers_per_gather = 0"
            )
            await connection.copy_from_query(f"SELECT {columns_sql(columns)} FROM {table.sql}", output=sink)
        types = {column.name: column.type_sql for column in info.columns}
        return Exported(row["rows"], row["hash"], tuple((name, types[name]) for name in columns))


@dataclass(frozen=True)
class Scratch:
    """A table in a schema of its own that goes with the session's block."""

    connection: asyncpg.Connection
    table: TableName
    columns: tuple[str, ...]
    typed: bool

    async def load(self, rows: AsyncIterator[bytes]) -> None:
        """Loads COPY text into the scratch table."""
        await self.connection.copy_to_table(
            self.table.name, schema_name=self.table.schema, columns=list(self.columns), source=rows
        )

    async def measure(self) -> tuple[int, str]:
        """Rows, and their hash as `export` computes it."""
        [row] = await self.connection.fetch(_hash_sql(self.columns, self.table.sql))
        return row["rows"], row["hash"]


@asynccontextmanager
async def scratch(database: Database, columns: tuple[tuple[str, str], ...]) -> AsyncIterator[Scratch]:
    """A scratch table with these columns (name, type), gone at the block's end on every path.

    The columns have their own types where this database knows all of them, and are text where it does not. It is
    all one transaction that is rolled back: a killed worker leaves nothing behind.
    """
    async with database.session("cutover-restore-test", **_SETTINGS) as connection:
        known = True
        for _, type_sql in columns:
            known = known and await connection.fetchval("SELECT to_regtype($1) IS NOT NULL", type_sql)
        schema = f"cutover_restore_{hashlib.sha256(secrets.token_bytes(16)).hexdigest()[:12]}"
        table = TableName(schema, "rows")
        transaction = connection.transaction()
        await transaction.start()
        try:
            definitions = ", ".join(f"{quote(name)} {type_sql if known else 'text'}" for name, type_sql in columns)
            await connection.execute(f"CREATE SCHEMA {quote(schema)}; CREATE TABLE {table.sql} ({definitions})")
            yield Scratch(connection, table, tuple(name for name, _ in columns), bool(known))
        finally:
            if not connection.is_closed():
                await transaction.rollback()
