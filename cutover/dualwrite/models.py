"""Rows as an application has them: pydantic models, dataclasses, and mappings with named columns."""

import dataclasses
import datetime
import decimal
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import asyncpg
from pydantic import BaseModel

from cutover.errors import ConfigError
from cutover.postgres.catalog import Column, TableInfo
from cutover.postgres.suggestions import did_you_mean

T = TypeVar("T")

#: PostgreSQL's types that a Python type can be the key of.
_KEY_TYPES: Mapping[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("smallint", "integer", "bigint", "oid", "numeric"),
    str: ("text", "character", "citext", "public.citext", "name", '"char"'),
    uuid.UUID: ("uuid",),
    decimal.Decimal: ("numeric",),
    bytes: ("bytea",),
    datetime.datetime: ("timestamp",),
    datetime.date: ("date",),
}
#: How the types begin that are looked at; of others (domains, enums) nothing is concluded.
_KNOWN = tuple(name for names in _KEY_TYPES.values() for name in names)


class RowModel(Generic[T]):
    """What is known of a model: its columns, and both ways between it and a row."""

    def __init__(self, model: type[T], columns: Sequence[str] | None = None) -> None:
        origin: Any = typing.get_origin(model) or model
        self._model: Any = model
        self._mapping = False
        fields: Mapping[str, Any] | None
        if isinstance(origin, type) and issubclass(origin, BaseModel):
            fields = {name: field.annotation for name, field in origin.model_fields.items()}
        elif dataclasses.is_dataclass(origin):
            hints = typing.get_type_hints(origin)
            fields = {field.name: hints[field.name] for field in dataclasses.fields(origin) if field.init}
        elif typing.is_typeddict(origin) or (isinstance(origin, type) and issubclass(origin, Mapping)):
            self._mapping = True
            fields = typing.get_type_hints(origin) if typing.is_typeddict(origin) else None
        else:
            raise ConfigError(
                f"{getattr(model, '__name__', model)!r} is no model of a row: use a pydantic model, a dataclass, a "
                "TypedDict, or dict with columns=…"
            )
        self.name = str(getattr(model, "__name__", model))
        self._fields = fields
        #: None: all that the table has.
        self.columns: tuple[str, ...] | None = (
            tuple(columns) if columns is not None else tuple(fields) if fields is not None else None
        )

    def check(self, info: TableInfo, without: Sequence[str]) -> tuple[str, ...]:
        """The columns to read. Raises ConfigError that lists all in which model and table do not fit."""
        table = {column.name: column for column in info.columns}
        if not info.primary_key:
            raise ConfigError(
                f"table {info.name} has no primary key, so no row of it can be named: add one on both sides"
            )
        names = self.columns if self.columns is not None else tuple(n for n in table if n not in without)
        problems = []
        for name in names:
            if name not in table:
                hint = did_you_mean(name, [n for n in table if n not in names])
                problems.append(f"it has {name!r}, which the table has not" + (f" ({hint})" if hint else ""))
        for name in [n for n in without if n not in table]:
            problems.append(f"`without` names {name!r}, which the table has not")
        for name, column in table.items():
            if name not in names and name in info.primary_key:
                problems.append(f"it lacks {name!r}, a part of the key")
            elif name not in names and name not in without and not column.generated:
                problems.append(f"it lacks {name!r} (add it, or say without=[{name!r}])")
        problems += [text for key in info.primary_key if (text := self._unlike(table[key]))]
        if problems:
            raise ConfigError(f"{self.name} does not fit table {info.name}: {'; '.join(problems)}")
        return tuple(names)

    def _unlike(self, column: Column) -> str:
        """What is wrong with the type of a column of the key; '' where nothing can be said."""
        annotation = (self._fields or {}).get(column.name)
        kinds = _kinds(annotation)
        if not kinds or not column.type_sql.startswith(_KNOWN):
            return ""
        if any(column.type_sql.startswith(_KEY_TYPES[kind]) for kind in kinds):
            return ""
        return (
            f"its key {column.name!r} is {' or '.join(k.__name__ for k in kinds)}, and {column.type_sql} in the table"
        )

    def values(self, row: T, columns: Sequence[str]) -> dict[str, object]:
        """The row's values by column; a mapping may have a part of them. Raises ConfigError for what is no such row."""
        if self._mapping:
            if not isinstance(row, Mapping):
                raise ConfigError(f"a {type(row).__name__} was given where {self.name} is wanted")
            if unknown := [name for name in row if name not in columns]:
                hint = did_you_mean(str(unknown[0]), columns) or f"there are {', '.join(columns)}"
                raise ConfigError(f"{self.name}: no column {unknown[0]!r}; {hint}")
            return {name: row[name] for name in columns if name in row}
        if not isinstance(row, self._model):
            raise ConfigError(f"a {type(row).__name__} was given where a {self.name} is wanted")
        return {name: getattr(row, name) for name in columns}

    def row(self, record: asyncpg.Record) -> T:
        """The model of a record; pydantic checks it."""
        values = dict(record)
        if self._mapping:
            return typing.cast(T, values)
        if issubclass(self._model, BaseModel):
            return typing.cast(T, self._model.model_validate(values))
        return typing.cast(T, self._model(**values))


def _kinds(annotation: Any) -> list[type]:
    """The known types in an annotation, None left out; nothing where another one is among them."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    parts = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    found = [part for part in parts if part is not type(None)]
    return found if all(part in _KEY_TYPES for part in found) else []
