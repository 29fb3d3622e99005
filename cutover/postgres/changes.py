"""Which rows changed, from the server's own log: a logical slot read through SQL, and the pgoutput messages in it.

What carries a replication origin was brought by a stream, or written by our own appliers, and is left out: only what
the applications wrote here counts. Servers from 16 on leave it out themselves (`origin = none`); older ones say so in a
message of its own, after the beginning of the transaction. A slot gives whole committed transactions in
commit order; what was rolled back never shows. It is peeked first and advanced once the keys are kept elsewhere, so a
crash in between only brings the same changes again.
Formats: PostgreSQL manual, "Logical Replication Message Formats", protocol version 1.
"""

import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import asyncpg

from cutover.errors import Conflict, GateClosed, NotYet, Refused
from cutover.postgres import replication
from cutover.postgres.databases import Direction
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key

_PEEK = (
    "SELECT data FROM pg_logical_slot_peek_binary_changes("
    "$1::text, $4::text::pg_lsn, $3::int, 'proto_version', '1', 'publication_names', $2::text{})"
)
_OWN_ONLY = ", 'origin', 'none'"
#: Messages fetched from the server at once; the rest waits there.
_PREFETCH = 500
#: Bytes of log that one reading goes through at most, so that it ends in time however far behind the slot is.
REACH = 256 * 1024 * 1024
#: How long a reading outside of a fence may take: a transaction comes whole, and the log is read from where the oldest
#: open one began.
_READ_TIMEOUT = "300s"


@dataclass(frozen=True)
class TableKey:
    """Which table a publication's relation belongs to (a partition is part of its root) and what its key is."""

    table: TableName
    key: tuple[str, ...]


@dataclass
class Changes:
    """Changed keys of committed transactions; `whole` are tables of which no key says what changed (TRUNCATE)."""

    keys: dict[TableName, set[Key]] = field(default_factory=dict)
    whole: set[TableName] = field(default_factory=set)
    #: To where the slot may be advanced, as text: the end of the last commit, or further. None: nowhere.
    end: str | None = None
    messages: int = 0
    #: The reading ended before all that was flushed when it began.
    more: bool = False

    def add(self, table: TableName, key: Key | None) -> None:
        if key is None:
            self.whole.add(table)
        else:
            self.keys.setdefault(table, set()).add(key)

    @property
    def count(self) -> int:
        return sum(map(len, self.keys.values()))


@dataclass(frozen=True)
class _Relation:
    target: TableKey | None
    #: Where each column of the key stands in a tuple, in the key's order.
    places: tuple[int, ...]


#: A column that a tuple does not hold: an unchanged TOASTed value.
_UNCHANGED = object()


class _Reader:
    """Takes a message apart, byte by byte."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, size: str) -> int:
        (value,) = struct.unpack_from(">" + size, self.data, self.at)
        self.at += struct.calcsize(size)
        return int(value)

    def string(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

    def row(self) -> list[object]:
        """Column values: text as bytes, None for NULL, `_UNCHANGED`."""
        values: list[object] = []
        for _ in range(self.number("H")):
            kind = self.data[self.at : self.at + 1]
            self.at += 1
            if kind == b"t":
                size = self.number("I")
                values.append(self.data[self.at : self.at + size])
                self.at += size
            else:
                values.append(None if kind == b"n" else _UNCHANGED)
        return values


class Parser:
    """Turns messages into changed keys. One for each reading of a slot: relations are announced again in each."""

    def __init__(self, tables: Mapping[TableName, TableKey]) -> None:
        self.tables = tables
        self.changes = Changes()
        self._relations: dict[int, _Relation] = {}
        #: Whether the transaction that is being read was brought here from elsewhere.
        self._brought = False

    def take(self, data: bytes) -> None:
        """One message. Raises Refused for one that this version of the protocol does not have."""
        self.changes.messages += 1
        reader = _Reader(data)
        kind = chr(reader.number("B"))
        if kind in "BO":
            self._brought = kind == "O"
        elif kind == "R":
            self._relation(reader)
        elif kind in "IUD":
            self._row(kind, reader)
        elif kind == "T":
            count = reader.number("I")
            reader.number("B")
            for _ in range(count):
                target = self._relations[reader.number("I")].target
                if target and not self._brought:
                    self.changes.whole.add(target.table)
        elif kind == "C":
            reader.at += 1 + 8
            end = reader.number("Q")
            self.changes.end = f"{end >> 32:X}/{end & 0xFFFFFFFF:X}"
        elif kind not in "YM":
            raise Refused(f"a replication message of unknown kind {kind!r}: this server speaks a newer protocol")

    def _relation(self, reader: _Reader) -> None:
        oid = reader.number("I")
        schema, name = reader.string(), reader.string()
        reader.at += 1
        names: list[str] = []
        for _ in range(reader.number("H")):
            reader.at += 1
            names.append(reader.string())
            reader.at += 8
        target = self.tables.get(TableName(schema or "pg_catalog", name))
        places: tuple[int, ...] = ()
        if target and set(target.key) <= set(names):
            places = tuple(names.index(column) for column in target.key)
        self._relations[oid] = _Relation(target, places)

    def _row(self, kind: str, reader: _Reader) -> None:
        relation = self._relations[reader.number("I")]
        if relation.target is None or self._brought:
            return
        table = relation.target.table
        old: Key | None = None
        part = chr(reader.number("B"))
        if part in "KO":
            old = _key(relation, reader.row(), None)
            # after REPLICA IDENTITY by another index an old row has no primary key: then nobody knows which row it was
            if old is not None or kind == "D":
                self.changes.add(table, old)
            if kind == "D":
                return
            part = chr(reader.number("B"))
        new = _key(relation, reader.row(), old)
        self.changes.add(table, new)


def _key(relation: _Relation, row: list[object], old: Key | None) -> Key | None:
    """The key in a row; an unchanged TOASTed part of it is taken from the old key. None: it cannot be told."""
    values: list[str] = []
    for n, place in enumerate(relation.places):
        value = row[place]
        if isinstance(value, bytes):
            values.append(value.decode())
        elif value is _UNCHANGED and old is not None:
            values.append(old[n])
        else:
            return None
    return tuple(values) or None


def slot_name(service: str, direction: Direction) -> str:
    """The slot that a service's changed keys are read from, in that direction."""
    return f"cutover_{service}_changes{'' if direction == 'forward' else '_rev'}"


async def slot_whole(connection: asyncpg.Connection, slot: str) -> bool:
    """Whether the slot is there and has lost nothing; one that is still being made goes again with its session."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database() "
            "AND plugin = 'pgoutput' AND wal_status IS DISTINCT FROM 'lost' AND confirmed_flush_lsn IS NOT NULL)",
            slot,
        )
    )


async def ensure_slot(connection: asyncpg.Connection, slot: str, publication: str) -> bool:
    """Makes the slot where it is missing or lost; True where it was made, so that nothing before now is known.

    Waits for every transaction that is open in the cluster. Raises GateClosed where the publication is not there yet
    (its changes could not be read later), Conflict where the slot belongs to another database, NotYet while another
    session makes it.
    """
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", publication):
        raise GateClosed(f"publication {publication!r} does not exist yet: start the stream first")
    row = await connection.fetchrow(
        "SELECT database = current_database() AS here, plugin, wal_status, confirmed_flush_lsn IS NOT NULL AS made "
        "FROM pg_replication_slots WHERE slot_name = $1",
        slot,
    )
    if row and (not row["here"] or row["plugin"] != "pgoutput"):
        raise Conflict(
            f"replication slot {slot!r} exists for another database or plugin: drop it, or rename the service"
        )
    being_made = NotYet(f"replication slot {slot!r} is being made by another session just now")
    if row and not row["made"] and row["wal_status"] != "lost":
        raise being_made
    if row and row["wal_status"] != "lost":
        return False
    if row:
        await replication.drop_slot(connection, slot)
    try:
        await replication.create_slot(connection, slot)
    except asyncpg.DuplicateObjectError:
        raise being_made from None
    return True


async def _bound(connection: asyncpg.Connection, slot: str) -> tuple[str, bool]:
    """Up to where a reading goes, what is flushed and at most REACH; whether all that is flushed is before it."""
    row = await connection.fetchrow(
        "SELECT least(flushed, reach)::text AS lsn, flushed <= reach AS last FROM (SELECT pg_current_wal_flush_lsn() "
        "AS flushed, confirmed_flush_lsn + $2::numeric AS reach FROM pg_replication_slots WHERE slot_name = $1) AS s",
        slot,
        REACH,
    )
    if row is None or row["lsn"] is None:
        raise _unreadable(slot, "it is gone")
    return row["lsn"], row["last"]


def _unreadable(slot: str, why: str) -> GateClosed:
    return GateClosed(
        f"the changes of slot {slot!r} cannot be read any more ({why}): "
        "prepare it again, and let a full pass verify the tables"
    )


async def peek(
    connection: asyncpg.Connection,
    slot: str,
    publication: str,
    tables: Mapping[TableName, TableKey],
    limit: int | None,
    *,
    bounded: bool = False,
) -> AsyncIterator[Changes]:
    """The next committed changes of the slot, about `limit` messages (None: all); the slot stays.

    `bounded`: at most REACH bytes of log, else all that is flushed. Log without a change of ours brings no message
    (from 15 on), so then the last part's `end` is that bound. A reading goes on behind the record in which the bound
    lies, and a later one takes the commits that begin at the bound or after it: none is passed over.
    They come in parts of bounded size, a transaction never cut. Only the last part has an `end`.
    Raises NotYet while another session reads the slot, GateClosed where the slot is gone or lost.
    """
    upto, last = await _bound(connection, slot) if bounded else (None, True)
    messages = 0
    parser = Parser(tables)
    sql = _PEEK.format(_OWN_ONLY if replication.tells_origins_apart(connection) else "")
    try:
        async with connection.transaction():
            if upto:
                await _take_time(connection)
            async for row in connection.cursor(sql, slot, publication, limit, upto, prefetch=_PREFETCH):
                parser.take(row["data"])
                messages += 1
                if parser.changes.count >= _PREFETCH * 10:
                    part, parser.changes = parser.changes, Changes()
                    yield Changes(part.keys, part.whole, None, part.messages)
                    parser.changes.end = part.end
    except asyncpg.ObjectInUseError:
        raise NotYet(f"replication slot {slot!r} is being read by another session just now") from None
    except asyncpg.QueryCanceledError:
        raise _slow(slot) from None
    except (asyncpg.UndefinedObjectError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
        raise _unreadable(slot, error.sqlstate) from None
    full = limit is not None and messages >= limit
    if upto and not full:
        parser.changes.end = upto
    parser.changes.more = full or not last
    yield parser.changes


async def advance(connection: asyncpg.Connection, slot: str, end: str) -> None:
    """Lets the server forget what is before `end`. Raises NotYet while another session reads the slot."""
    try:
        async with connection.transaction():
            await _take_time(connection)
            await connection.execute(
                "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn) FROM pg_replication_slots "
                "WHERE slot_name = $1 AND confirmed_flush_lsn < $2::text::pg_lsn",
                slot,
                end,
            )
    except asyncpg.ObjectInUseError:
        raise NotYet(f"replication slot {slot!r} is being read by another session just now") from None
    except asyncpg.QueryCanceledError:
        raise _slow(slot) from None


async def _take_time(connection: asyncpg.Connection) -> None:
    await connection.execute(f"SET LOCAL statement_timeout = '{_READ_TIMEOUT}'")


def _slow(slot: str) -> NotYet:
    return NotYet(
        f"reading replication slot {slot!r} took too long and was broken off: look for a transaction that is open for "
        "long at that server (pg_stat_activity), or for a very large one that is just over; it is read again"
    )
