"""What a database's own catalog says of tables, keys, sequences and triggers: typed, in one place.

Everything here only reads `pg_catalog`. A table's *descendants* are its partitions and its children by
inheritance, at every depth: a fence, a grant or a size that passes one over is wrong.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres import catalog_sql as sql
from cutover.postgres.identifiers import TableName
from cutover.postgres.suggestions import did_you_mean

OnDelete = Literal["no action", "restrict", "cascade", "set null", "set default"]

#: Schema and name prefix of our own objects; never part of what a user's schema is.
OWN_SCHEMA = "cutover"
OWN_PREFIX = sql.OWN_PREFIX


@dataclass(frozen=True)
class Column:
    """One column; `identity` is '' (none), 'a' (GENERATED ALWAYS) or 'd' (BY DEFAULT)."""

    name: str
    type_sql: str
    type_oid: int
    not_null: bool
    identity: str
    generated: bool
    collation: str
    ordinal: int


@dataclass(frozen=True)
class TableInfo:
    """A table as the catalog has it; `estimated_rows` and `bytes` (heap and TOAST) count its descendants in."""

    name: TableName
    oid: int
    kind: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    replica_identity: str
    partitions: tuple[TableName, ...]
    estimated_rows: int
    bytes: int

    @property
    def written_columns(self) -> tuple[str, ...]:
        """The columns that an INSERT or COPY may name: all but the generated ones."""
        return tuple(c.name for c in self.columns if not c.generated)

    @property
    def everywhere(self) -> tuple[TableName, ...]:
        """The table and all its descendants, the table first."""
        return (self.name, *self.partitions)


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key `table.columns → references.referenced_columns`; `definition` is what ADD CONSTRAINT takes."""

    name: str
    table: TableName
    columns: tuple[str, ...]
    references: TableName
    referenced_columns: tuple[str, ...]
    definition: str
    on_delete: OnDelete
    #: The columns that ON DELETE SET NULL/DEFAULT changes (15+ may name a part of them); all unless said.
    set_columns: tuple[str, ...] = ()
    validated: bool = True


@dataclass(frozen=True)
class SequenceInfo:
    """A sequence that a table draws from; `shared` are the other tables that draw from it as well."""

    name: TableName
    table: TableName
    column: str
    start: int
    increment: int
    min: int
    max: int
    cycle: bool
    cache: int
    last_value: int | None
    is_called: bool
    type: str
    identity: bool
    shared: tuple[TableName, ...]


@dataclass(frozen=True)
class Trigger:
    """A user's trigger; `enabled` is 'O' (origin), 'D' (disabled), 'R' (replica) or 'A' (always)."""

    name: str
    table: TableName
    function: str
    definition: str
    enabled: str


@dataclass(frozen=True)
class ServerFacts:
    """Which server this is. A new `timeline` or `system_identifier` voids all evidence taken before."""

    version: int
    version_text: str
    system_identifier: int
    timeline: int
    in_recovery: bool
    settings: dict[str, str]

    @property
    def major(self) -> int:
        return self.version // 10000


SERVER_SETTINGS = (
    "wal_level", "max_replication_slots", "max_wal_senders", "max_logical_replication_workers",
    "max_worker_processes", "max_sync_workers_per_subscription", "max_prepared_transactions",
    "max_slot_wal_keep_size", "max_connections", "idle_in_transaction_session_timeout",
    "max_active_replication_origins", "wal_retrieve_retry_interval", "synchronous_commit",
    "track_commit_timestamp", "deadlock_timeout",
)  # fmt: skip

_ON_DELETE: dict[str, OnDelete] = {
    "a": "no action", "r": "restrict", "c": "cascade", "n": "set null", "d": "set default",
}  # fmt: skip

_SEQUENCE_FIELDS = ("column", "start", "increment", "min", "max", "cycle", "cache", "type", "identity")


@asynccontextmanager
async def qualified_names(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A block in which the server writes every name with its schema in what it deparses.

    Types, keys and defaults read on one side are used on the other, whose search path may differ. A SET LOCAL
    outlives the release of a savepoint, so the former value is put back for a caller's own transaction.
    """
    async with connection.transaction():
        before = await connection.fetchval("SELECT pg_catalog.current_setting('search_path')")
        await connection.execute("SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)")
        yield
        await connection.execute("SELECT pg_catalog.set_config('search_path', $1, true)", before)


async def find_tables(connection: asyncpg.Connection, names: Iterable[TableName]) -> list[TableInfo]:
    """Those of the tables that exist, in the order asked for; the others are passed over."""
    wanted = list(dict.fromkeys(names))
    async with qualified_names(connection):
        rows = await connection.fetch(sql.TABLES, [t.schema for t in wanted], [t.name for t in wanted])
        columns: dict[int, list[Column]] = {row["oid"]: [] for row in rows}
        column_rows = await connection.fetch(sql.COLUMNS, list(columns))
    for row in column_rows:
        values = dict(row)
        columns[values.pop("oid")].append(Column(**values))
    return [
        TableInfo(
            name=TableName(row["schema"], row["name"]),
            oid=row["oid"],
            kind=row["kind"],
            columns=tuple(columns[row["oid"]]),
            primary_key=tuple(row["primary_key"]),
            replica_identity=row["replica_identity"],
            partitions=tuple(map(TableName, row["child_schemas"], row["child_names"])),
            estimated_rows=row["rows"],
            bytes=row["bytes"],
        )
        for row in rows
    ]


async def missing_tables(connection: asyncpg.Connection, names: Iterable[TableName]) -> dict[TableName, str]:
    """Those of the tables that do not exist, each with a hint: a near name, or what stands under that name."""
    wanted = list(dict.fromkeys(names))
    found = {info.name for info in await find_tables(connection, wanted)}
    absent = [name for name in wanted if name not in found]
    if not absent:
        return {}
    rows = await connection.fetch(sql.RELATIONS)
    others = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
    kinds = {TableName(row["schema"], row["name"]): row["kind"] for row in rows}
    near = [str(name) for name, kind in kinds.items() if kind not in others]
    return {
        name: f"it is {others[kinds[name]]}, not a table" if name in kinds else did_you_mean(str(name), near)
        for name in absent
    }


async def tables(connection: asyncpg.Connection, names: Iterable[TableName]) -> list[TableInfo]:
    """All of the tables, in the order asked for. Raises ConfigError that lists every missing one with a hint."""
    wanted = list(dict.fromkeys(names))
    found = await find_tables(connection, wanted)
    if len(found) < len(wanted):
        absent = await missing_tables(connection, wanted)
        database = await connection.fetchval("SELECT current_database()")
        lines = "; ".join(f"{str(name)!r}" + (f" ({hint})" if hint else "") for name, hint in absent.items())
        raise ConfigError(
            f"database {database!r} has no table {lines}. "
            "Names are taken as written, capitals included: correct the plan, or create the table"
        )
    return found


async def table(connection: asyncpg.Connection, name: TableName) -> TableInfo:
    """One table. Raises ConfigError with a hint where it does not exist."""
    return (await tables(connection, [name]))[0]


async def with_rows(connection: asyncpg.Connection, names: Iterable[TableName]) -> list[TableName]:
    """Those of the (existing) tables that hold at least one row."""
    return [name for name in names if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name.sql})")]


async def foreign_keys(connection: asyncpg.Connection) -> list[ForeignKey]:
    """Every foreign key of the database, in order of table and name; a partition's copy of its parent's is left out."""
    async with qualified_names(connection):
        rows = await connection.fetch(sql.FOREIGN_KEYS)
    return [
        ForeignKey(
            name=row["name"],
            table=TableName(row["schema"], row["table"]),
            columns=tuple(row["columns"]),
            references=TableName(row["referenced_schema"], row["referenced_table"]),
            referenced_columns=tuple(row["referenced_columns"]),
            definition=row["definition"],
            on_delete=_ON_DELETE[row["on_delete"]],
            set_columns=tuple(row["set_columns"]) or tuple(row["columns"]),
            validated=row["validated"],
        )
        for row in rows
    ]


def sequence_values_sql(names: Sequence[TableName]) -> str:
    """One statement that reads `(position, last_value, is_called)` of all these sequences; needs SELECT on each.

    `pg_sequences` would not do: it shows nothing for a sequence set with `setval(…, false)`.
    """
    return " UNION ALL ".join(
        f"SELECT {position} AS position, last_value, is_called FROM {name.sql}" for position, name in enumerate(names)
    )


async def sequences_of(connection: asyncpg.Connection, infos: Iterable[TableInfo]) -> list[SequenceInfo]:
    """The sequences that these tables and their descendants own or draw their defaults from, by name.

    `last_value` is None where the role may not read the sequence.
    """
    infos = list(infos)
    names = [name for info in infos for name in info.everywhere]
    oids = [info.oid for info in infos] + [info.oid for info in await find_tables(connection, names)]
    rows = sorted(await connection.fetch(sql.SEQUENCES, oids), key=lambda row: (row["schema"], row["name"]))
    readable = [TableName(row["schema"], row["name"]) for row in rows if row["readable"]]
    values: dict[TableName, tuple[int, bool]] = {}
    if readable:
        for row in await connection.fetch(sequence_values_sql(readable)):
            values[readable[row["position"]]] = (row["last_value"], row["is_called"])
    found = []
    for row in rows:
        name = TableName(row["schema"], row["name"])
        last_value, is_called = values.get(name, (None, False))
        found.append(
            SequenceInfo(
                name=name,
                table=TableName(row["table_schema"], row["table_name"]),
                last_value=last_value,
                is_called=is_called,
                shared=tuple(TableName(schema, table) for schema, table in row["shared"]),
                **{key: row[key] for key in _SEQUENCE_FIELDS},
            )
        )
    return found


async def user_triggers(connection: asyncpg.Connection, infos: Iterable[TableInfo]) -> list[Trigger]:
    """The triggers of these tables that are not ours and not the server's own."""
    names = [name for info in infos for name in info.everywhere]
    oids = [info.oid for info in await find_tables(connection, names)]
    async with qualified_names(connection):
        rows = await connection.fetch(sql.TRIGGERS, oids)
    return [
        Trigger(row["name"], TableName(row["schema"], row["table"]), row["function"], row["definition"], row["enabled"])
        for row in rows
    ]


async def database_identity(connection: asyncpg.Connection) -> tuple[int, str]:
    """The server's system identifier, and the database's name on it."""
    [row] = await connection.fetch(sql.IDENTITY)
    return row["system_identifier"], row["name"]


async def server_identity(connection: asyncpg.Connection) -> tuple[str, int]:
    """System identifier and timeline of the server that this session is on: a promoted standby has another timeline."""
    [row] = await connection.fetch(sql.SERVER_IDENTITY)
    return row["system_identifier"], row["timeline"]


async def server_facts(connection: asyncpg.Connection) -> ServerFacts:
    """Version, identity, timeline and the settings (as text) that a migration depends on."""
    [row] = await connection.fetch(sql.SERVER, list(SERVER_SETTINGS))
    return ServerFacts(
        version=row["version"],
        version_text=row["version_text"],
        system_identifier=row["system_identifier"],
        timeline=row["timeline"],
        in_recovery=row["in_recovery"],
        settings=dict(row["settings"]),
    )
