"""How a table flows through the outbox: the key that names a row, a row's image, and how the image is written.

An image is one text: the row's values under fixed session settings, as a composite in the order of the *sink's*
columns (matched by name; what is generated there stays NULL and is not written). The sink reads it with the input
function of its own row type, so every type travels as a client would see it.

A key is the texts of its values. Where a type calls unlike texts equal (`1.0` and `1.00`, `a` and `A` in citext), a
row is taken by its text too: otherwise the delete of the old spelling would meet the row of the new one.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import asyncpg

from cutover.errors import ConfigError, NotYet
from cutover.plan.models import Compare
from cutover.postgres import uniques
from cutover.postgres.identifiers import TableName, quote
from cutover.postgres.shapes import Shape, shapes
from cutover.postgres.uniques import Unique

#: Base types whose equal values have one text under the fixed settings: bool, bytea, int8, int2, int4, oid, date,
#: timestamp, timestamptz, uuid (OIDs of pg_type.dat).
_ONE_TEXT = frozenset({16, 17, 20, 21, 23, 26, 1082, 1114, 1184, 2950})

#: A unique index whose check waits for the commit lets two transactions write one key at once.
_DEFERRABLE = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1::text::regclass AND i.indisunique
AND NOT i.indimmediate AND (SELECT array_agg(a.attname::text ORDER BY k.position)
    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.position <= i.indnkeyatts) = $2::text[])
"""
_INHERITED = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class c ON c.oid = h.inhparent
               WHERE c.oid = $1::text::regclass AND c.relkind = 'r')
"""
#: Changes whenever a column of one of the tables is added, dropped, renamed or given another type.
_DEFINITION = (
    "SELECT md5(string_agg(concat_ws(' ', attrelid, attnum, xmin), ',' ORDER BY attrelid, attnum)) "
    "FROM pg_catalog.pg_attribute WHERE attnum > 0 AND attrelid = ANY ({}::text[]::regclass[]::oid[])"
)


class Redefined(NotYet):
    """A table has other columns than when they were read: images made for the old ones would lose the new ones.

    Or other unique indexes, so that rows in the way of others were not found.
    """


@dataclass(frozen=True)
class Flow:
    """One table between source and sink. `name` is what intents and version rows call it."""

    table: TableName
    source: Shape
    sink: Shape
    #: Of the sink.
    uniques: tuple[Unique, ...]

    @property
    def name(self) -> str:
        return str(self.table)

    @property
    def width(self) -> int:
        """Columns of the key."""
        return len(self.source.key)

    @cached_property
    def image(self) -> str:
        """SQL, over the source's alias `t`, of a row's image."""
        shown = {c.name: c.shown for c in self.source.columns}
        ordered = sorted(self.sink.columns, key=lambda c: c.column.ordinal)
        parts = [shown[c.name] if c.name in self.source.stored else "NULL::text" for c in ordered]
        return f"ROW({', '.join(parts)})::text"

    def spelled(self, shape: Shape) -> str:
        """SQL that adds to `shape.same_key()` what its types' equality passes over."""
        shown = {c.name: c.shown for c in shape.columns}
        return "".join(
            f' AND {shown[k.name]} COLLATE "C" = v.k{n}' for n, k in enumerate(shape.key) if k.base_oid not in _ONE_TEXT
        )

    @cached_property
    def sink_key(self) -> str:
        """SQL of the key's texts of a row of the sink."""
        shown = {c.name: c.shown for c in self.sink.columns}
        return "ARRAY[" + ", ".join(shown[k.name] for k in self.sink.key) + "]"

    def key_of(self, row: str) -> list[str]:
        """SQL of the texts of the source's key in a trigger, where `row` is OLD or NEW."""
        shown = {c.name: c.shown for c in self.source.columns}
        return [shown[k.name].replace(f"t.{quote(k.name)}", f"{row}.{quote(k.name)}") for k in self.source.key]

    @cached_property
    def images(self) -> str:
        """SQL of a relation `v(r)` of the images in parameter 1, each read once as a row of the sink's table."""
        return f"(SELECT CAST(u.r AS {self.table.sql}) AS r FROM unnest($1::text[]) AS u(r) OFFSET 0) AS v"

    @cached_property
    def insert_sql(self) -> str:
        """Inserts images (parameter 1) in the order of their key, so that two writers do not cross."""
        columns = self.source.stored
        values = ", ".join(f"(v.r).{quote(name)}" for name in columns)
        order = ", ".join(f"(v.r).{quote(k.name)}" for k in self.sink.key)
        return (
            f"INSERT INTO {self.table.sql} ({', '.join(map(quote, columns))}) OVERRIDING SYSTEM VALUE "
            f"SELECT {values} FROM {self.images} ORDER BY {order}"
        )

    @cached_property
    def upsert_sql(self) -> str | None:
        """The same, writing over the rows that are there; None where a column can only be written by an insert."""
        key = {k.name: k.base_oid for k in self.sink.key}
        identity = {c.name for c in self.sink.columns if c.column.identity == "a"}
        written = [name for name in self.source.stored if name not in key or key[name] not in _ONE_TEXT]
        if identity & set(written):
            return None
        sets = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in written)
        action = f"DO UPDATE SET {sets}" if sets else "DO NOTHING"
        return f"{self.insert_sql} ON CONFLICT ({', '.join(map(quote, key))}) {action}"

    @cached_property
    def delete_sql(self) -> str:
        """Deletes rows by their key, one text array a column of it."""
        arrays = ", ".join(f"${n + 1}::text[]" for n in range(self.width))
        names = ", ".join(f"k{n}" for n in range(self.width))
        return (
            f"DELETE FROM {self.table.sql} AS t USING unnest({arrays}) AS v({names}) "
            f"WHERE {self.sink.same_key()}{self.spelled(self.sink)}"
        )

    @cached_property
    def in_the_way_sql(self) -> str:
        """The keys of rows that hold a unique value of an image (parameter 1)."""
        parts = []
        columns = ", ".join(f"(v.r).{quote(c.name)} AS {quote(c.name)}" for c in self.sink.columns)
        for unique in self.uniques:
            where = unique.predicate or "true"
            values = ", ".join(f"({e}) AS e{n}" for n, e in enumerate(unique.expressions))
            same = unique.same([f"i.e{n}" for n in range(len(unique.expressions))])
            parts.append(
                f"SELECT b.key FROM {self.images} CROSS JOIN LATERAL (SELECT {values} FROM (SELECT {columns}) AS x "
                f"WHERE {where}) AS i CROSS JOIN LATERAL (SELECT {self.sink_key} AS key FROM {self.table.sql} AS t "
                f"WHERE ({same}) AND ({where})) AS b"
            )
        return " UNION ".join(parts)


async def flows(
    source: asyncpg.Connection,
    sink: asyncpg.Connection,
    tables: Sequence[TableName],
    rules: Mapping[TableName, Compare],
) -> dict[str, Flow]:
    """The tables by name. Both sessions read alike (`compare.read_alike`).

    Raises ConfigError for a table that this stream cannot carry, GateClosed where the two sides do not fit.
    """
    found = {}
    for table in tables:
        left, right = await shapes(source, sink, table, rules.get(table, Compare()))
        await asyncio.gather(_require_key(source, left), _require_key(sink, right))
        found[str(table)] = Flow(table, left, right, await uniques.of_table(sink, table))
    return found


def definition_sql(parameter: int) -> str:
    """SQL of what `definition` says of the tables whose names are in that parameter."""
    return _DEFINITION.format(f"${parameter}")


async def definition(connection: asyncpg.Connection, tables: Sequence[TableName]) -> str:
    """Stands for the columns of these tables as this transaction sees them."""
    return str(await connection.fetchval(definition_sql(1), [table.sql for table in tables]))


async def require_definition(connection: asyncpg.Connection, tables: Sequence[TableName], known: str) -> None:
    """Raises Redefined where the columns are not those of `known` any more."""
    require_same(await definition(connection, tables), known)


def require_same(found: str, known: str) -> None:
    """Raises Redefined where the two definitions are not the same."""
    if found != known:
        raise Redefined("a table has got other columns; they are read anew")


async def require_uniques(sink: asyncpg.Connection, flows: Iterable[Flow]) -> None:
    """Raises Redefined where a table of the sink has other unique indexes by now than `in_the_way_sql` looks at.

    For where a row is refused and nothing was found in its way: they are no part of the definition, which is looked at
    with every batch.
    """
    for flow in flows:
        if await uniques.of_table(sink, flow.table) != flow.uniques:
            raise Redefined(f"table {flow.table} has got other unique indexes; they are read anew")


async def _require_key(connection: asyncpg.Connection, shape: Shape) -> None:
    if not shape.keyed_by:
        raise ConfigError(
            f"table {shape.table} has neither a primary key nor a unique index over NOT NULL columns: "
            "`stream: outbox` names rows by their key; add one on both sides"
        )
    if await connection.fetchval(_DEFERRABLE, shape.table.sql, [k.name for k in shape.key]):
        raise ConfigError(
            f"the key of table {shape.table} is DEFERRABLE: two transactions may write one key at once, so that no "
            "version orders its changes; make it NOT DEFERRABLE, or use `stream: logical`"
        )
    if await connection.fetchval(_INHERITED, shape.table.sql):
        raise ConfigError(
            f"table {shape.table} has children by inheritance, whose rows `stream: outbox` cannot tell from its own; "
            "use `stream: logical`, or make it a partitioned table"
        )
