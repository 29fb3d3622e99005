"""DualWriteRepository: the rows of one table as models, read and written where the migration has them just now.

The developer's page is docs/dual-write.md. The application's code is the same from the first day of a migration to
the last: flags and plan say what the settings mean at each moment.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import asyncpg

from cutover.dualwrite.errors import AnswerLost
from cutover.dualwrite.models import RowModel
from cutover.dualwrite.routing import ReadClass
from cutover.dualwrite.service_pool import ServicePool
from cutover.errors import ConfigError
from cutover.plan.models import Consistency
from cutover.postgres import catalog
from cutover.postgres.identifiers import TableName
from cutover.postgres.rows import Rows

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

T = TypeVar("T")


@dataclass(frozen=True)
class RepositorySettings:
    """What a repository does just now, by the names of the migration strategy."""

    #: Every write is at both sides when it is answered.
    write_to_both: bool
    #: Reads that do not say otherwise see the caller's own writes.
    read_from_primary: bool
    #: The share (0 to 1) of reads that are compared with the other side afterwards.
    verify_consistency: float


class DualWriteRepository(Generic[T]):
    """The rows of one table. Open it with `DualWriteRepository.open`, once per process."""

    def __init__(
        self,
        pool: ServicePool,
        model: type[T],
        table: str,
        *,
        columns: Sequence[str] | None = None,
        without: Sequence[str] = (),
        write_to_both: bool | None = None,
        read_from_primary: bool = True,
        verify_consistency: float | str = 0.0,
    ) -> None:
        """`model`: a pydantic model, a dataclass, a TypedDict or dict; its fields are named as the table's columns.

        `columns` of a dict (default: all), `without`: columns that the model leaves out. `write_to_both`: True for
        level strong, False for eventual, None for what the plan says. `read_from_primary` False makes `stale_ok` the
        default of reads. `verify_consistency`: a share such as 0.05 or "5%".
        Raises ConfigError.
        """
        self._pool = pool
        self._model = RowModel(model, columns)
        self._name = TableName.parse(table)
        self._table = table
        self._without = tuple(without)
        self._level: Consistency | None = None if write_to_both is None else "strong" if write_to_both else "eventual"
        self._read: ReadClass = "read_your_writes" if read_from_primary else "stale_ok"
        self._share = _share(verify_consistency)
        self._rows: Rows | None = None

    @classmethod
    async def open(cls, pool: ServicePool, model: type[T], table: str, **settings: Any) -> "DualWriteRepository[T]":
        """A repository that has been checked; `settings` as in the constructor."""
        repository = cls(pool, model, table, **settings)
        await repository.check()
        return repository

    async def check(self) -> None:
        """Compares model and table, for the first use and whenever it is called.

        Raises ConfigError that says all that does not fit: an unknown table, no primary key, columns, types of the key;
        or a table that cannot be verified.
        """
        if self._level is not None:
            await self._pool.require_level(self._level)
        if self._share and self._pool.verifier is not None and not self._pool.verifier.names(self._name):
            raise ConfigError(
                f"{self._table}: verify_consistency compares it with the other side, but the plan of "
                f"{self._pool.service} does not name it: add it there, or leave verify_consistency out"
            )
        async with self._pool.acquire(write=False, table=self._table) as connection:
            info = await catalog.table(connection, self._name)  # type: ignore[arg-type]  # a pool's proxy
        self._rows = Rows(info, self._model.check(info, self._without))

    @property
    def settings(self) -> RepositorySettings:
        """What is in force just now: before the stream of a migration has begun, and after it has gone, less is."""
        verifier = self._pool.verifier
        return RepositorySettings(
            write_to_both=self._pool.level_in_force(self._level) == "strong",
            read_from_primary=self._read == "read_your_writes",
            verify_consistency=self._share if verifier is not None and verifier.possible else 0.0,
        )

    @property
    def _checked(self) -> Rows:
        if self._rows is None:
            raise ConfigError(f"the repository of {self._table} was not checked: await its check(), or use open()")
        return self._rows

    # ------------------------------------------------------------------ writes

    async def insert(self, row: T, *, connection: "Connection | None" = None) -> T:
        """The row as the database has it now. None in a column that is NOT NULL asks for the database's default."""
        values = self._insertable(row)
        record = await self._write(self._checked.insert(list(values)), list(values.values()), values, connection)
        assert record is not None, "an insert returns its row, or raises"
        return self._model.row(record)

    async def insert_many(self, rows: Iterable[T], *, connection: "Connection | None" = None) -> int:
        """All of the rows or none, in one transaction; how many."""
        groups: dict[tuple[str, ...], list[list[object]]] = {}
        for row in rows:
            values = self._insertable(row)
            groups.setdefault(tuple(values), []).append(list(values.values()))

        async def work(lent: "Connection") -> None:
            for names, part in groups.items():
                await lent.executemany(self._checked.insert(names, returning=False), part)

        if groups and connection is not None:
            await work(connection)
        elif groups:
            await self._pool.run_in_transaction(work, table=self._table, level=self._level)
        return sum(len(part) for part in groups.values())

    async def update(self, row: T, *, connection: "Connection | None" = None) -> T | None:
        """Writes the row over the one with its key; None where there is none. Of a mapping, the columns that it has."""
        given = self._model.values(row, self._checked.columns)
        key = self._key_in(given)
        values = {n: v for n, v in given.items() if n in self._checked.written and n not in self._checked.key}
        if not values:
            raise ConfigError(f"{self._table}: an update without a column to write")
        sql = self._checked.update(list(values))
        record = await self._write(sql, [*values.values(), *key], given, connection, may_be_none=True)
        return None if record is None else self._model.row(record)

    async def upsert(self, row: T, *, connection: "Connection | None" = None) -> T:
        """Inserts the row, or writes it over the one with its key."""
        values = self._insertable(row)
        self._key_in(values)
        record = await self._write(self._checked.upsert(list(values)), list(values.values()), values, connection)
        assert record is not None, "an upsert returns its row, or raises"
        return self._model.row(record)

    async def delete(self, *key: object, connection: "Connection | None" = None) -> bool:
        """Whether there was a row with that key (its values in the key's order)."""
        record = await self._write(self._checked.delete(), list(self._given(key)), None, connection)
        return record is not None

    # ------------------------------------------------------------------ reads

    async def find_by_id(
        self, *key: object, read: ReadClass | None = None, connection: "Connection | None" = None
    ) -> T | None:
        """The row with that key (its values in the key's order), or None."""
        values = self._given(key)
        records = await self._fetch(self._checked.by_key(), list(values), read, values, connection)
        if connection is None:
            self._sample(values)
        return self._model.row(records[0]) if records else None

    async def find(
        self,
        equal: Mapping[str, object] | None = None,
        *,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        read: ReadClass | None = None,
        key: object = None,
        connection: "Connection | None" = None,
    ) -> list[T]:
        """Rows whose columns have these values (None: NULL), ordered by columns (`-name`: descending).

        `key` is whose rows are read (a user, an account): a share of the `stale_ok` reads moves key by key.
        """
        equal = equal or {}
        wanted = {name: value for name, value in equal.items() if value is not None}
        null = [name for name, value in equal.items() if value is None]
        order = (order_by,) if isinstance(order_by, str) else order_by
        sql = self._checked.find(list(wanted), null, order, limited=limit is not None)
        values = [*wanted.values(), *([limit] if limit is not None else [])]
        records = await self._fetch(sql, values, read, key, connection)
        if records and connection is None:
            chosen = random.choice(records)
            self._sample(tuple(chosen[name] for name in self._checked.key))
        return [self._model.row(record) for record in records]

    # ------------------------------------------------------------------ how

    async def _write(
        self,
        sql: str,
        values: Sequence[object],
        given: Mapping[str, object] | None,
        connection: "Connection | None",
        *,
        may_be_none: bool = False,
    ) -> asyncpg.Record | None:
        if connection is not None:
            record: asyncpg.Record | None = await connection.fetchrow(sql, *values)
            return record
        try:
            return await self._pool.fetchrow(sql, *values, table=self._table, write=True, level=self._level)
        except AnswerLost:
            # what was written is read back, where its key is known; whether a delete met a row is not
            if given is None or any(given.get(name) is None for name in self._checked.key):
                raise
            key = [given[name] for name in self._checked.key]
            found = await self._pool.fetchrow(self._checked.by_key(), *key, table=self._table)
            if found is None and not may_be_none:
                raise  # somebody has deleted it since
            return found

    async def _fetch(
        self,
        sql: str,
        values: Sequence[object],
        read: ReadClass | None,
        key: object,
        connection: "Connection | None",
    ) -> list[asyncpg.Record]:
        if connection is not None:
            found: list[asyncpg.Record] = await connection.fetch(sql, *values)
            return found
        return await self._pool.fetch(sql, *values, read=read or self._read, key=key, write=False, table=self._table)

    def _insertable(self, row: T) -> dict[str, object]:
        rows = self._checked
        return {
            name: value
            for name, value in self._model.values(row, rows.columns).items()
            if name in rows.written and not (value is None and name in rows.required)
        }

    def _key_in(self, values: Mapping[str, object]) -> list[object]:
        if missing := [name for name in self._checked.key if values.get(name) is None]:
            raise ConfigError(f"{self._table}: the row has no value for {missing[0]!r}, a part of its key")
        return [values[name] for name in self._checked.key]

    def _given(self, key: tuple[object, ...]) -> tuple[object, ...]:
        if len(key) != len(self._checked.key):
            raise ConfigError(f"{self._table}: its key is ({', '.join(self._checked.key)}), and {len(key)} values came")
        return key

    def _sample(self, key: Sequence[object]) -> None:
        verifier = self._pool.verifier
        if self._share and verifier is not None and verifier.possible and random.random() < self._share:
            # a key whose text PostgreSQL does not read is not compared
            with suppress(UnicodeDecodeError):
                verifier.offer(self._name, tuple(_text(value) for value in key))


def _text(value: object) -> str:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


def _share(value: float | str) -> float:
    """0.05 of 0.05 and of "5%". Raises ConfigError."""
    try:
        share = float(value.removesuffix("%")) / 100 if isinstance(value, str) and value.endswith("%") else float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"verify_consistency is {value!r}: write a share such as 0.05 or '5%'")
    return share
