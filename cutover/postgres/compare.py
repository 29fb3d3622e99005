"""SQL that compares one table in two databases: key ranges, row hashes, rows by key.

A row is taken as the text that a client would see (`ROW(…)::text` under fixed session settings), so that what a type's
own equality passes over still shows: `1.50` and `1.500`, `-0` and `0`, `'A'` and `'a'` in citext, NULL and `''`.
The text of a row value quotes its fields (manual, 8.16.6), so no two different rows have the same one; columns stand
in the order of their names and the key is among them, so swapped columns and swapped rows show as well.

Keys travel as text. Ranges follow an order that is the same on every server: the type's own where that depends on
nothing, else the bytes of the text (`COLLATE "C"`).
"""

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from cutover.errors import GateClosed
from cutover.postgres import catalog
from cutover.postgres.catalog import Column
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName, quote

#: A primary key's values as text, in the key's column order.
Key = tuple[str, ...]

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
    "lock_timeout": "10s",
    "statement_timeout": "120s",
}

#: Types whose btree order depends on no collation, enum definition or extension (OIDs of pg_type.dat):
#: bool, bytea, int8, int2, int4, oid, float4, float8, inet, date, time, timestamp(tz), interval, numeric, uuid.
_ORDERED_ALIKE = frozenset({16, 17, 20, 21, 23, 26, 700, 701, 869, 1082, 1083, 1114, 1184, 1186, 1700, 2950})
_TEXT, _VARCHAR = 25, 1043

_KEY = """
SELECT a.attname::text AS name, a.attcollation <> 0 AS collatable, n.nspname::text AS operators,
       coalesce(nullif(y.typbasetype, 0), y.oid) AS base_oid,
       CASE WHEN l.collprovider = 'd' THEN coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'b'
                OR (coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' AND d.datcollate IN ('C', 'POSIX'))
            ELSE coalesce(l.collprovider = 'b' OR (l.collprovider = 'c' AND l.collcollate IN ('C', 'POSIX')), false)
       END AS bytewise
FROM pg_index i
CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_type y ON y.oid = a.atttypid
JOIN pg_opclass c ON c.oid = i.indclass[k.position - 1]
JOIN pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 3
              AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
JOIN pg_operator p ON p.oid = o.amopopr
JOIN pg_namespace n ON n.oid = p.oprnamespace
JOIN pg_database d ON d.datname = current_database()
LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE i.indrelid = $1 AND i.indisprimary AND k.position <= i.indnkeyatts
ORDER BY k.position
"""


@dataclass(frozen=True)
class KeyColumn:
    """A column of the key: `type_sql` to cast to, `equals` the index's own operator, `order` and `bound` for ranges."""

    name: str
    type_sql: str
    equals: str
    order: str
    bound: str


@dataclass(frozen=True)
class Shape:
    """A table as it is compared on one side. `indexed`: the key's index serves the order of ranges."""

    table: TableName
    columns: tuple[Column, ...]
    key: tuple[KeyColumn, ...]
    indexed: bool
    estimated_rows: int
    encoding: str

    @property
    def order(self) -> str:
        return ", ".join(k.order for k in self.key)

    @property
    def key_text(self) -> str:
        return ", ".join(f"t.{quote(k.name)}::text AS key{n}" for n, k in enumerate(self.key))

    @property
    def row_text(self) -> str:
        return "ROW(" + ", ".join(f"t.{quote(c.name)}" for c in self.columns) + ')::text COLLATE "C"'

    @property
    def look(self) -> str:
        """What makes a `Look`: digest and xmin, then the key."""
        return f"{self.digest} AS digest, t.xmin::text::int8 AS xmin, {self.key_text}"

    @property
    def digest(self) -> str:
        """64 bits of a cryptographic hash of the row, the same in every pass and on every server."""
        return f"('x' || left(encode(sha256(convert_to({self.row_text}, 'UTF8')), 'hex'), 16))::bit(64)::int8"

    def by_key(self, first: int = 1) -> str:
        """`unnest` of one text array per key column, from parameter `first` on, joined to the table `t`."""
        arrays = ", ".join(f"${first + n}::text[]" for n in range(len(self.key)))
        names = ", ".join(f"k{n}" for n in range(len(self.key)))
        return f"unnest({arrays}) WITH ORDINALITY AS v({names}, n) JOIN {self.table.sql} AS t ON {self.same_key()}"

    def same_key(self) -> str:
        return " AND ".join(
            f"t.{quote(k.name)} {k.equals} CAST(v.k{n} AS {k.type_sql})" for n, k in enumerate(self.key)
        )

    def within(self, low: Key | None, high: Key | None, first: int = 1) -> tuple[str, list[str]]:
        """The condition `low < key <= high` and its parameters, numbered from `first` on."""
        conditions: list[str] = []
        values: list[str] = []
        for bound, sign in ((low, ">"), (high, "<=")):
            if bound is not None:
                start = first + len(values)
                casts = ", ".join(f"CAST(${start + n}::text AS {k.bound})" for n, k in enumerate(self.key))
                conditions.append(f"({self.order}) {sign} ({casts})")
                values.extend(bound)
        return " AND ".join(conditions) or "true", values


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


def key_json(key: Key) -> str:
    """The key as the control database holds it: a JSON array of texts."""
    return json.dumps(key, ensure_ascii=False, separators=(",", ":"))


def key_from_json(text: str) -> Key:
    return tuple(json.loads(text))


def key_id(text: str) -> str:
    """A short name for a key's JSON, which itself may be too long for an index."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@asynccontextmanager
async def compare_session(database: Database, purpose: str) -> AsyncIterator[asyncpg.Connection]:
    """A read-only session in which values read alike on both sides. Raises Unreachable."""
    async with database.session(f"cutover-{purpose}", **READ_SETTINGS) as connection:
        yield connection


async def read_alike(connection: asyncpg.Connection) -> None:
    """Gives an open session the settings under which values read alike on both sides."""
    await connection.execute(
        "SELECT pg_catalog.set_config(s.name, s.value, false) FROM unnest($1::text[], $2::text[]) AS s(name, value)",
        list(TEXT_SETTINGS),
        list(TEXT_SETTINGS.values()),
    )


async def shape_of(connection: asyncpg.Connection, table: TableName) -> Shape:
    """How the table is compared; `connection` is a compare session, for type names are read qualified there.

    Raises ConfigError where the table does not exist, GateClosed where it has no primary key.
    """
    info = await catalog.table(connection, table)
    if not info.primary_key:
        raise GateClosed(
            f"table {table} has no primary key, so its rows cannot be told apart: add one "
            "(ALTER TABLE … ADD PRIMARY KEY; an existing unique index on NOT NULL columns can be used with USING INDEX)"
        )
    types = {c.name: c.type_sql for c in info.columns}
    key: list[KeyColumn] = []
    indexed = True
    for row in await connection.fetch(_KEY, info.oid):
        column, type_sql = f"t.{quote(row['name'])}", types[row["name"]]
        if row["base_oid"] in _ORDERED_ALIKE:
            order, bound = column, type_sql
        elif row["bytewise"] and row["base_oid"] in (_TEXT, _VARCHAR):
            order, bound = column, "text"
        else:
            order, bound, indexed = f'({column}::text) COLLATE "C"', "text", False
        key.append(KeyColumn(row["name"], type_sql, f"OPERATOR({quote(row['operators'])}.=)", order, bound))
    compared = [c for c in info.columns if not c.generated or c.name in info.primary_key]
    return Shape(
        table=table,
        columns=tuple(sorted(compared, key=lambda c: c.name)),
        key=tuple(key),
        indexed=indexed,
        estimated_rows=info.estimated_rows,
        encoding=str(await connection.fetchval("SELECT current_setting('server_encoding')")),
    )


def require_alike(source: Shape, sink: Shape) -> None:
    """Raises GateClosed that names what differs in columns, types, key or encoding of the two sides."""
    problems: list[str] = []
    left, right = ({c.name: c.type_sql for c in s.columns} for s in (source, sink))
    for name in sorted(left.keys() | right.keys()):
        if name not in right:
            problems.append(f"column {name!r} is only at the source")
        elif name not in left:
            problems.append(f"column {name!r} is only at the target")
        elif left[name] != right[name]:
            problems.append(f"column {name!r} is {left[name]} at the source and {right[name]} at the target")
    if [k.name for k in source.key] != [k.name for k in sink.key]:
        problems.append("the primary keys have different columns")
    if source.encoding != sink.encoding:
        problems.append(f"the databases' encodings are {source.encoding} and {sink.encoding}")
    if problems:
        raise GateClosed(
            f"table {source.table} is not the same on both sides: {'; '.join(problems)}. "
            "Make the definitions alike (the target first), then compare again"
        )


async def probe(connection: asyncpg.Connection, seed: int) -> int:
    """The server's fast hash of a fixed text: two servers that disagree here cannot compare by it."""
    return int(await connection.fetchval('SELECT hashtextextended(\'(1,"",,"ä ½")\' COLLATE "C", $1)', seed))


async def position(connection: asyncpg.Connection) -> str:
    """The server's place in its write-ahead log, as text."""
    return str(
        await connection.fetchval(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() "
            "ELSE pg_current_wal_insert_lsn() END::text"
        )
    )


async def bounds(
    connection: asyncpg.Connection, shape: Shape, low: Key | None, high: Key | None, step: int, count: int
) -> list[Key]:
    """Up to `count` keys of this side, each `step` rows after the one before, within the range."""
    condition, values = shape.within(low, high)
    names = ", ".join(f"x.key{n}" for n in range(len(shape.key)))
    rows = await connection.fetch(
        f"SELECT {names} FROM (SELECT {shape.key_text}, row_number() OVER (ORDER BY {shape.order}) AS n "
        f"FROM {shape.table.sql} AS t WHERE {condition} ORDER BY {shape.order} LIMIT {step * count}) AS x "
        f"WHERE x.n % {step} = 0 ORDER BY x.n",
        *values,
    )
    return [tuple(row.values()) for row in rows]


async def hash_range(
    connection: asyncpg.Connection,
    shape: Shape,
    low: Key | None,
    high: Key | None,
    *,
    seed: int,
    limit: int,
    fast: bool,
) -> Hashed:
    """Rows and hash of a range, at most `limit` rows of it: a dense range must not become a long statement."""
    condition, values = shape.within(low, high, first=2)
    row_hash = f"hashtextextended({shape.row_text}, $1::int8)" if fast else f"{shape.digest} # $1::int8"
    row = await connection.fetchrow(
        f"SELECT count(*), coalesce(sum(x.h), 0)::text FROM (SELECT {row_hash} AS h FROM {shape.table.sql} AS t "
        f"WHERE {condition} ORDER BY {shape.order} LIMIT {limit}) AS x",
        seed,
        *values,
    )
    assert row is not None
    return Hashed(row[0], int(row[1]))


async def digests_in(
    connection: asyncpg.Connection, shape: Shape, low: Key | None, high: Key | None
) -> dict[Key, Look]:
    """Every key of the range with its row's look; for small ranges only."""
    condition, values = shape.within(low, high)
    rows = await connection.fetch(f"SELECT {shape.look} FROM {shape.table.sql} AS t WHERE {condition}", *values)
    return {tuple(row.values())[2:]: Look(row["digest"], row["xmin"]) for row in rows}


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
