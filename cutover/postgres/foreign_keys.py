"""Foreign keys that cross services: taken away on the monolith before a switch, put back when all are home again.

The caller keeps what `drop` returns (the definition); it is all that `restore` needs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

from cutover.errors import Conflict, NotYet
from cutover.postgres import catalog
from cutover.postgres.catalog import ForeignKey
from cutover.postgres.identifiers import TableName, quote
from cutover.postgres.locks import Guard, with_lock_limit


@dataclass(frozen=True)
class CrossingKey:
    """A key with one end inside a service; `leaves`: it begins inside and refers to a table outside."""

    key: ForeignKey
    leaves: bool


async def crossing(connection: asyncpg.Connection, tables: Iterable[TableName]) -> list[CrossingKey]:
    """The keys of this database with exactly one end at these tables or their descendants."""
    inside = {name for info in await catalog.find_tables(connection, tables) for name in info.everywhere}
    return [
        CrossingKey(key, key.table in inside)
        for key in await catalog.foreign_keys(connection)
        if (key.table in inside) != (key.references in inside)
    ]


async def find(connection: asyncpg.Connection, key: ForeignKey) -> ForeignKey | None:
    """The key of that name on that table as it is here now, or None."""
    return next((k for k in await catalog.foreign_keys(connection) if (k.table, k.name) == (key.table, key.name)), None)


async def drop(connection: asyncpg.Connection, key: ForeignKey, guard: Guard | None = None) -> bool:
    """Takes the key away; False where it is gone already.

    Raises Conflict where another key has its name, and what `guard` raises, asked in the same transaction.
    """
    here = await find(connection, key)
    if here is None:
        return False
    if here.definition != key.definition and here.validated == key.validated:
        raise Conflict(
            f"foreign key {key.name!r} of {key.table} was changed since it was recorded: now {here.definition!r}. "
            "Record it again (preflight, then the step that keeps the definitions)"
        )
    await with_lock_limit(
        connection,
        f"ALTER TABLE {key.table.sql} DROP CONSTRAINT IF EXISTS {quote(key.name)}",
        (key.table, key.references),
        f"dropping foreign key {key.name!r} of {key.table}",
        guard=guard,
    )
    return True


async def restore(connection: asyncpg.Connection, key: ForeignKey, guard: Guard | None = None) -> None:
    """Puts the key back NOT VALID (a short lock), for new rows; `validate` is next. Run again, nothing.

    A partitioned table's is validated at once before PostgreSQL 18: Conflict where rows refer to nothing. Raises what
    `guard` raises, asked in the same transaction.
    """
    if await find(connection, key) is not None:
        return
    tables = (key.table, key.references)
    what = f"restoring foreign key {key.name!r} of {key.table}"
    base = key.definition.removesuffix(" NOT VALID")
    add = f"ALTER TABLE {key.table.sql} ADD CONSTRAINT {quote(key.name)} {base}"
    try:
        await with_lock_limit(connection, f"{add} NOT VALID", tables, what, guard=guard)
    except (asyncpg.WrongObjectTypeError, asyncpg.FeatureNotSupportedError):
        # a partitioned table before 18 cannot wait
        with _orphans_told(key):
            await with_lock_limit(connection, add, tables, what, guard=guard)


async def validate(connection: asyncpg.Connection, key: ForeignKey) -> None:
    """Checks the rows there are (which lets writes go on).

    Raises Conflict where some refer to nothing, with the remedy, NotYet where the key was taken off again meanwhile.
    """
    if key.definition.endswith(" NOT VALID"):
        return
    try:
        with _orphans_told(key):
            await connection.execute(f"ALTER TABLE {key.table.sql} VALIDATE CONSTRAINT {quote(key.name)}")
    except asyncpg.UndefinedObjectError:
        raise NotYet(f"foreign key {key.name!r} of {key.table} was taken off again while it was validated") from None


@contextmanager
def _orphans_told(key: ForeignKey) -> Iterator[None]:
    try:
        yield
    except asyncpg.ForeignKeyViolationError:
        raise Conflict(
            f"restoring foreign key {key.name!r} of {key.table}: rows of {key.table} refer to rows of {key.references} "
            "that do not exist. Count them (orphans), repair them, and run this again"
        ) from None
