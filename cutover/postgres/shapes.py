"""How one table is compared in two databases: its columns, the key that names a row, and how it is divided.

The key is the primary key, or else a unique index over NOT NULL columns. A table without either is compared as a
multiset: equal rows are counted, and the hash of a row is its key.

Ranges follow the order of the key's index where both sides sort alike. A row's key does not change, so each side's own
order divides its own rows completely; that both orders are the same only spares work.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

import asyncpg

from cutover.errors import GateClosed
from cutover.plan.models import Compare
from cutover.postgres import catalog
from cutover.postgres.catalog import Column, TableInfo
from cutover.postgres.columns import FACTS, Compared, compared
from cutover.postgres.identifiers import TableName, quote
from cutover.postgres.keys import Key
from cutover.postgres.suggestions import did_you_mean

#: Types whose btree order depends on no collation, enum definition or extension (OIDs of pg_type.dat):
#: bool, bytea, int8, int2, int4, oid, float4, float8, inet, date, time, timestamp(tz), interval, numeric, uuid.
_ORDERED_ALIKE = "16, 17, 20, 21, 23, 26, 700, 701, 869, 1082, 1083, 1114, 1184, 1186, 1700, 2950"
#: FirstNormalObjectId of PostgreSQL: types that a database has been given.
_FIRST_OWN_OID = 16384
_INTEGERS = frozenset({20, 21, 23})

#: The indexes that can name a row, the primary key first; `sorting` says what each column's order depends on ('':
#: on something that cannot be told, so that no range of it is used).
_KEYS = f"""
WITH RECURSIVE candidate AS (
    SELECT i.*, i.indexrelid::regclass::text AS index_name FROM pg_catalog.pg_index i
    WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid
      AND (i.indisprimary OR (i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL))),
part AS (
    SELECT c.index_name, c.indisprimary, k.position, a.attnum, a.attname::text AS name, a.attnotnull, a.atttypid,
           a.attcollation, c.indclass[k.position - 1] AS opclass,
           c.indoption[k.position - 1] & 1 = c.indoption[0] & 1 AS one_way
    FROM candidate c CROSS JOIN unnest(c.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = k.attnum WHERE k.position <= c.indnkeyatts),
base AS (
    SELECT DISTINCT atttypid AS type_oid, atttypid AS oid FROM part
    UNION ALL
    SELECT b.type_oid, y.typbasetype FROM base b JOIN pg_catalog.pg_type y ON y.oid = b.oid AND y.typtype = 'd')
SELECT p.index_name, p.indisprimary AS primary, p.name, n.nspname::text AS operators, y.oid AS base_oid,
       p.attnotnull AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint x WHERE x.conrelid = $1
           AND x.contype = 'n' AND x.conkey = ARRAY[p.attnum] AND NOT x.convalidated) AS not_null,
       CASE WHEN NOT c.opcdefault OR NOT p.one_way THEN ''
            WHEN y.oid IN ({_ORDERED_ALIKE}) THEN 'alike'
            WHEN y.typtype = 'e' THEN (SELECT pg_catalog.string_agg(quote_literal(e.enumlabel), ' '
                 ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = y.oid)
            WHEN y.oid NOT IN (25, 1042, 1043) THEN ''
            WHEN l.collprovider = 'd' AND coalesce(d.j ->> 'datlocprovider', 'c') = 'c' THEN
                 CASE WHEN d.j ->> 'datcollate' IN ('C', 'POSIX') THEN 'bytes' ELSE pg_catalog.concat_ws(' ', 'libc',
                      d.j ->> 'datcollate', d.version) END
            WHEN l.collprovider = 'd' AND d.j ->> 'datlocprovider' = 'b' THEN 'bytes'
            WHEN l.collprovider = 'd' THEN pg_catalog.concat_ws(' ', 'icu', d.j ->> 'daticulocale',
                 d.j ->> 'datlocale', d.j ->> 'daticurules', d.version)
            WHEN l.collprovider = 'b' OR (l.collprovider = 'c' AND l.collcollate IN ('C', 'POSIX')) THEN 'bytes'
            WHEN l.collprovider = 'c' THEN pg_catalog.concat_ws(' ', 'libc', l.collcollate,
                 pg_catalog.pg_collation_actual_version(l.oid))
            ELSE pg_catalog.concat_ws(' ', 'icu', to_jsonb(l) ->> 'colliculocale', to_jsonb(l) ->> 'colllocale',
                 to_jsonb(l) ->> 'collicurules', l.collisdeterministic, pg_catalog.pg_collation_actual_version(l.oid))
       END AS sorting
FROM part p JOIN base b ON b.type_oid = p.atttypid JOIN pg_catalog.pg_type y ON y.oid = b.oid AND y.typtype <> 'd'
JOIN pg_catalog.pg_opclass c ON c.oid = p.opclass
JOIN pg_catalog.pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 3
     AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
JOIN pg_catalog.pg_operator q ON q.oid = o.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = q.oprnamespace
LEFT JOIN pg_catalog.pg_collation l ON l.oid = p.attcollation
CROSS JOIN (SELECT to_jsonb(x) AS j, to_jsonb(x) ->> 'datcollversion' AS version
            FROM pg_catalog.pg_database x WHERE x.datname = current_database()) AS d
ORDER BY p.indisprimary DESC, p.index_name, p.position
"""


@dataclass(frozen=True)
class KeyColumn:
    """A column of the key: `type_sql` to cast to, `equals` the index's own operator."""

    name: str
    type_sql: str
    equals: str
    base_oid: int

    @property
    def bound(self) -> str:
        """The type of a bound; one below the least value of an integer must be a bound too."""
        return "bigint" if self.base_oid in _INTEGERS else self.type_sql


@dataclass(frozen=True)
class Shape:
    """A table as it is compared on one side. `relation` stands in FROM, under the alias `t`."""

    table: TableName
    relation: str
    #: All columns in the order of their names, those that are left out too.
    columns: tuple[Compared, ...]
    key: tuple[KeyColumn, ...]
    #: The index that names a row: 'the primary key', or a unique index's name; '' where rows are only counted.
    keyed_by: str
    #: Ranges of the key follow its index, in the same order on both sides.
    ordered: bool
    #: Columns that both sides have and a repair writes.
    stored: tuple[str, ...]
    estimated_rows: int
    encoding: str

    @property
    def compared(self) -> tuple[Compared, ...]:
        return tuple(c for c in self.columns if not c.left_out)

    @property
    def left_out(self) -> list[str]:
        """Columns that are not compared, each with the reason, for the report."""
        return [f"{c.name} ({c.left_out})" for c in self.columns if c.left_out]

    @property
    def integer(self) -> bool:
        """Whether the key is one integer, so that ranges can be divided without looking."""
        return self.ordered and len(self.key) == 1 and self.key[0].base_oid in _INTEGERS

    @property
    def order(self) -> str:
        return ", ".join(f"t.{quote(k.name)}" for k in self.key)

    @property
    def key_text(self) -> str:
        shown = {c.name: c.shown for c in self.columns}
        return ", ".join(f"{shown[k.name]} AS key{n}" for n, k in enumerate(self.key))

    @property
    def row_text(self) -> str:
        return "ROW(" + ", ".join(c.value for c in self.compared) + ')::text COLLATE "C"'

    @property
    def look(self) -> str:
        """What makes a `Look`: digest and xmin, then the key."""
        xmin = "t.xmin::text::int8" if self.keyed_by else "0::int8"
        return f"{self.digest} AS digest, {xmin} AS xmin, {self.key_text}"

    @property
    def digest(self) -> str:
        """64 bits of a cryptographic hash of the row, the same in every pass and on every server."""
        return digest_of(self.row_text)

    @property
    def column_digests(self) -> str:
        """An array of one digest for each compared column."""
        return f"ARRAY[{', '.join(digest_of(c.text) for c in self.compared)}]::int8[]"

    def by_key(self, first: int = 1) -> str:
        """`unnest` of one text array per key column, from parameter `first` on, joined to the table `t`."""
        arrays = ", ".join(f"${first + n}::text[]" for n in range(len(self.key)))
        names = ", ".join(f"k{n}" for n in range(len(self.key)))
        return f"unnest({arrays}) WITH ORDINALITY AS v({names}, n) JOIN {self.relation} AS t ON {self.same_key()}"

    def same_key(self) -> str:
        return " AND ".join(
            f"t.{quote(k.name)} {k.equals} CAST(v.k{n} AS {k.type_sql})" for n, k in enumerate(self.key)
        )

    def bound(self, first: int) -> str:
        """The parameters from `first` on as a value of the key."""
        return ", ".join(f"CAST(${first + n}::text AS {k.bound})" for n, k in enumerate(self.key))

    def within(self, low: Key | None, high: Key | None, first: int = 1) -> tuple[str, list[str]]:
        """The condition `low < key <= high` and its parameters, numbered from `first` on."""
        conditions: list[str] = []
        values: list[str] = []
        for bound, sign in ((low, ">"), (high, "<=")):
            if bound is not None:
                conditions.append(f"({self.order}) {sign} ({self.bound(first + len(values))})")
                values.extend(bound)
        return " AND ".join(conditions) or "true", values


def digest_of(text: str) -> str:
    """SQL of 64 bits of a cryptographic hash of a text."""
    return f"('x' || left(encode(sha256(convert_to({text}, 'UTF8')), 'hex'), 16))::bit(64)::int8"


@dataclass(frozen=True)
class _Index:
    name: str
    primary: bool
    columns: tuple[asyncpg.Record, ...]

    @property
    def sorting(self) -> list[str]:
        return [c["sorting"] for c in self.columns]


@dataclass(frozen=True)
class _Side:
    """What one side's catalog says of the table."""

    info: TableInfo
    columns: tuple[Compared, ...]
    #: By the names of their columns, the primary key first.
    indexes: dict[tuple[str, ...], _Index]
    encoding: str

    @property
    def compared(self) -> dict[str, str]:
        return {c.name: c.type_sql for c in self.columns if not c.left_out}


async def shapes(
    source: asyncpg.Connection, sink: asyncpg.Connection, table: TableName, rules: Compare
) -> tuple[Shape, Shape]:
    """How the table is compared at source and sink; both are compare sessions, for types are read qualified there.

    Raises ConfigError where the table does not exist, GateClosed where the two sides (or the plan's rules) do not fit.
    """
    left, right = await asyncio.gather(_read(source, table, rules), _read(sink, table, rules))
    index = next((i for names, i in left.indexes.items() if names in right.indexes), None)
    _check_rules(table, rules, {c.name for c in (*left.columns, *right.columns)}, index)
    _require_alike(table, left, right)
    stored = _stored(left, right)
    if index is None:
        return _multiset(table, left, stored), _multiset(table, right, stored)
    names = tuple(c["name"] for c in index.columns)
    other = right.indexes[names]
    ordered = index.sorting == other.sorting and all(index.sorting)
    return _shape(table, left, index, ordered, stored), _shape(table, right, other, ordered, stored)


async def check_rules(connection: asyncpg.Connection, table: TableName, rules: Compare) -> None:
    """Raises GateClosed where the plan's rules do not fit this one side of the table."""
    side = await _read(connection, table, rules)
    # an excluded column may be one that only the other side has
    known = {*rules.exclude, *(c.name for c in side.columns)}
    _check_rules(table, rules, known, next(iter(side.indexes.values()), None))


async def mute(connection: asyncpg.Connection, table: TableName, rules: Compare) -> list[str]:
    """As `without_text`, of a table that has only this side as yet."""
    columns = (await _read(connection, table, rules)).columns
    return await _mute(connection, table.sql, [c for c in columns if not c.left_out])


async def without_text(connection: asyncpg.Connection, shape: Shape) -> list[str]:
    """Compared columns of which no value can be shown, because their type's own output function refuses."""
    return await _mute(connection, shape.relation, shape.compared)


async def _mute(connection: asyncpg.Connection, relation: str, columns: Iterable[Compared]) -> list[str]:
    names: list[str] = []
    for column in columns:
        if column.base_oid < _FIRST_OWN_OID:
            continue
        try:
            await connection.fetchval(
                f"SELECT {column.text} FROM {relation} AS t WHERE {column.value} IS NOT NULL LIMIT 1"
            )
        except asyncpg.FeatureNotSupportedError:
            names.append(f"{column.name!r} ({column.type_sql})")
    return names


def _check_rules(table: TableName, rules: Compare, known: set[str], index: _Index | None) -> None:
    if unknown := sorted({*rules.exclude, *rules.equal} - known):
        hint = did_you_mean(unknown[0], known) or f"its columns: {', '.join(sorted(known))}"
        raise GateClosed(f"table {table} has no column {unknown[0]!r}, which the plan's `compare` names; {hint}")
    key = [c["name"] for c in index.columns] if index else []
    if wrong := [name for name in key if name in rules.equal or name in rules.exclude]:
        raise GateClosed(
            f"table {table}: column {wrong[0]!r} is part of the key, which names a row and is compared exactly: "
            "take it out of the plan's `compare`"
        )


async def _read(connection: asyncpg.Connection, table: TableName, rules: Compare) -> _Side:
    info = await catalog.table(connection, table)
    facts = {row["name"]: row for row in await connection.fetch(FACTS, info.oid)}
    columns = tuple(compared(c, facts[c.name], rules) for c in sorted(info.columns, key=lambda c: c.name))
    indexes: dict[str, list[asyncpg.Record]] = {}
    for row in await connection.fetch(_KEYS, info.oid):
        indexes.setdefault(row["index_name"], []).append(row)
    usable = [_Index(name, rows[0]["primary"], tuple(rows)) for name, rows in indexes.items()
              if rows[0]["primary"] or all(r["not_null"] for r in rows)]  # fmt: skip
    named: dict[tuple[str, ...], _Index] = {}
    for index in usable:
        # of several over the same columns the first stays, in its place
        named.setdefault(tuple(c["name"] for c in index.columns), index)
    encoding = str(await connection.fetchval("SELECT current_setting('server_encoding')"))
    return _Side(info, columns, named, encoding)


def _require_alike(table: TableName, source: _Side, sink: _Side) -> None:
    """Raises GateClosed that names what differs in columns, types, key or encoding of the two sides."""
    problems: list[str] = []
    left, right = source.compared, sink.compared
    for name in sorted(left.keys() | right.keys()):
        if name not in right:
            problems.append(f"column {name!r} is only at the source")
        elif name not in left:
            problems.append(f"column {name!r} is only at the target")
        elif left[name] != right[name]:
            problems.append(f"column {name!r} is {left[name]} at the source and {right[name]} at the target")
    if source.info.primary_key != sink.info.primary_key:
        problems.append("the primary keys have different columns")
    if source.encoding != sink.encoding:
        problems.append(f"the databases' encodings are {source.encoding} and {sink.encoding}")
    if problems:
        raise GateClosed(
            f"table {table} is not the same on both sides: {'; '.join(problems)}. "
            "Make the definitions alike (the target first), then compare again"
        )


def _stored(left: _Side, right: _Side) -> tuple[str, ...]:
    types = {c.name: c.type_sql for c in right.columns if not c.generated}
    return tuple(c.name for c in left.columns if not c.generated and types.get(c.name) == c.type_sql)


def _shape(table: TableName, side: _Side, index: _Index, ordered: bool, stored: tuple[str, ...]) -> Shape:
    types = {c.name: c.type_sql for c in side.columns}
    key = tuple(
        KeyColumn(c["name"], types[c["name"]], f"OPERATOR({quote(c['operators'])}.=)", c["base_oid"])
        for c in index.columns
    )
    by = "the primary key" if index.primary else f"unique index {index.name}"
    names = {k.name for k in key}
    # a key may hold a generated column: then it is compared all the same
    columns = tuple(replace(c, left_out="") if c.name in names else c for c in side.columns)
    return Shape(table, table.sql, columns, key, by, ordered, stored, _rows(side.info), side.encoding)


def _multiset(table: TableName, side: _Side, stored: tuple[str, ...]) -> Shape:
    """Rows by their digest, each with the number of its copies."""
    text = "ROW(" + ", ".join(c.value for c in side.columns if not c.left_out) + ')::text COLLATE "C"'
    inner = f"(SELECT {digest_of(text)} AS row, count(*) AS copies FROM {table.sql} AS t GROUP BY 1)"
    columns = tuple(
        Compared(Column(name, "bigint", 20, True, "", False, "", n), 20, f't."{name}"::text', f't."{name}"',
                 f't."{name}"::text', "int8", True)
        for n, name in enumerate(("copies", "row"))
    )  # fmt: skip
    left_out = tuple(c for c in side.columns if c.left_out)
    key = (KeyColumn("row", "bigint", "OPERATOR(pg_catalog.=)", 20),)
    return Shape(table, inner, (*left_out, *columns), key, "", False, stored, _rows(side.info), side.encoding)


def _rows(info: TableInfo) -> int:
    """An estimate even for a table that was never analysed."""
    return info.estimated_rows or info.bytes // 200
