"""Statements over single rows of one table: identifiers from its catalog, values always as parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from cutover.errors import ConfigError
from cutover.postgres.catalog import TableInfo
from cutover.postgres.identifiers import columns_sql, quote
from cutover.postgres.suggestions import did_you_mean


@dataclass(frozen=True)
class Rows:
    """A table as its rows are read and written: `columns` are those that are read, in that order."""

    info: TableInfo
    columns: tuple[str, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        return self.info.primary_key

    @property
    def written(self) -> frozenset[str]:
        """The columns that may be given a value: not generated, and no identity that is GENERATED ALWAYS."""
        return frozenset(
            c.name for c in self.info.columns if c.name in self.columns and not c.generated and c.identity != "a"
        )

    @property
    def required(self) -> frozenset[str]:
        """The columns in which NULL cannot stand; None for one of them asks for the database's default."""
        return frozenset(c.name for c in self.info.columns if c.not_null)

    def require(self, names: Sequence[str]) -> None:
        """Raises ConfigError, with a hint, for a name that is none of the columns."""
        for name in names:
            if name not in self.columns:
                hint = did_you_mean(name, self.columns) or f"its columns: {', '.join(self.columns)}"
                raise ConfigError(f"table {self.info.name} has no column {name!r} here; {hint}")

    @property
    def _returning(self) -> str:
        return f"RETURNING {columns_sql(self.columns)}"

    def insert(self, names: Sequence[str], *, returning: bool = True) -> str:
        """One row; the parameters are the values of `names`."""
        self.require(names)
        values = ", ".join(f"${n + 1}" for n in range(len(names)))
        row = f"({columns_sql(list(names))}) VALUES ({values})" if names else "DEFAULT VALUES"
        return f"INSERT INTO {self.info.name.sql} {row}" + (f" {self._returning}" if returning else "")

    def upsert(self, names: Sequence[str]) -> str:
        """The same, written over the row that has the key."""
        sets = [f"{quote(name)} = excluded.{quote(name)}" for name in names if name not in self.key]
        # a row that is nothing but its key is written all the same, so that it is returned
        sets = sets or [f"{quote(self.key[0])} = excluded.{quote(self.key[0])}"]
        action = f"ON CONFLICT ({columns_sql(self.key)}) DO UPDATE SET {', '.join(sets)}"
        return f"{self.insert(names, returning=False)} {action} {self._returning}"

    def update(self, names: Sequence[str]) -> str:
        """The row of a key: first the values of `names`, then those of the key."""
        self.require(names)
        sets = ", ".join(f"{quote(name)} = ${n + 1}" for n, name in enumerate(names))
        return f"UPDATE {self.info.name.sql} SET {sets} WHERE {self._is(self.key, len(names) + 1)} {self._returning}"

    def delete(self) -> str:
        """The row of a key."""
        return f"DELETE FROM {self.info.name.sql} WHERE {self._is(self.key, 1)} RETURNING 1"

    def by_key(self) -> str:
        """The row of a key."""
        return f"{self._select} WHERE {self._is(self.key, 1)}"

    def find(self, equal: Sequence[str], null: Sequence[str], order: Sequence[str], *, limited: bool) -> str:
        """Rows whose columns `equal` have the values of the parameters, and whose columns `null` are NULL.

        `order`: names, with `-` in front for descending; the last parameter is the limit where it is `limited`.
        """
        names = [name.removeprefix("-") for name in order]
        self.require([*equal, *null, *names])
        conditions = [f"{quote(name)} = ${n + 1}" for n, name in enumerate(equal)]
        conditions += [f"{quote(name)} IS NULL" for name in null]
        sql = self._select
        if conditions:
            sql += f" WHERE {' AND '.join(conditions)}"
        if order:
            ways = ("DESC" if item.startswith("-") else "ASC" for item in order)
            sql += " ORDER BY " + ", ".join(f"{quote(name)} {way}" for name, way in zip(names, ways, strict=True))
        return sql + (f" LIMIT ${len(equal) + 1}" if limited else "")

    @property
    def _select(self) -> str:
        return f"SELECT {columns_sql(self.columns)} FROM {self.info.name.sql}"

    @staticmethod
    def _is(names: Sequence[str], first: int) -> str:
        return " AND ".join(f"{quote(name)} = ${first + n}" for n, name in enumerate(names))
