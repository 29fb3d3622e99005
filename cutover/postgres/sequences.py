"""Sequences and identities of the side that becomes writable: raised past the other side's, never lowered.

Logical replication does not carry sequences (PostgreSQL manual, 29.8 "Restrictions"). `last_value` of the
source is a safe upper bound of what was given out: sessions that cache (CREATE SEQUENCE … CACHE) reserve their
whole range in it. The target goes to `last_value + increment * margin`; the gap left is harmless, as sequences
promise no gaplessness. A CYCLE sequence promises no uniqueness either, and "never lower" has no meaning for it:
the target gets exactly the source's position.

What is slow (finding sequences, checking rights and bounds) is `plan_sequences`, before the write pause; inside
it `raise_planned` is one statement a side. `setval` is not transactional: a rollback does not take it back, and
running it again changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres import catalog
from cutover.postgres.catalog import SequenceInfo
from cutover.postgres.identifiers import TableName, quote, quote_literal

_MAY_SET = "SELECT has_sequence_privilege($1, 'SELECT') AND has_sequence_privilege($1, 'UPDATE')"


@dataclass(frozen=True)
class PlannedSequence:
    """One sequence: its name on each side, how it steps, and the last value the target's bounds allow."""

    source: TableName
    target: TableName
    column: str
    increment: int
    cycle: bool
    bound: int

    def wanted(self, last_value: int, margin: int) -> int:
        """The target's new `last_value`. Raises ConfigError rather than run into the sequence's bound."""
        if self.cycle:
            return last_value
        value = last_value + self.increment * margin
        if (value > self.bound) if self.increment > 0 else (value < self.bound):
            raise ConfigError(
                f"sequence {str(self.target)!r} ({self.column}) cannot be raised by {margin} steps of "
                f"{self.increment}: it would pass its bound {self.bound}. Make its type or bound larger on both sides "
                "(ALTER SEQUENCE … AS bigint; NO MAXVALUE), or lower switchover.sequence_margin in the plan"
            )
        return value


@dataclass(frozen=True)
class SequencePlan:
    """What `raise_planned` needs, worked out before the write pause."""

    sequences: tuple[PlannedSequence, ...]
    margin: int
    read_sql: str
    raise_sql: str


@dataclass(frozen=True)
class Raised:
    """What became of one sequence at the target: `last_value` before and after."""

    sequence: TableName
    source_value: int
    before: int
    after: int

    @property
    def changed(self) -> bool:
        return self.before != self.after


def _raise_sql(planned: Iterable[PlannedSequence]) -> str:
    """One statement over all target sequences: `$2n+1` is the wanted value, `$2n+2` is_called for cycled ones.

    The comparison and setval stand in one statement; at that moment the fence keeps everybody else away.
    """
    parts = []
    for position, item in enumerate(planned):
        value, called = f"${2 * position + 1}::bigint", f"${2 * position + 2}::boolean"
        regclass = f"{quote_literal(item.target.sql)}::regclass"
        if item.cycle:
            needed = f"last_value <> {value} OR is_called <> {called}"
        else:
            beyond = ">" if item.increment > 0 else "<"
            needed = f"{value} {beyond} last_value OR ({value} = last_value AND NOT is_called)"
            called = f"({called} OR true)"  # the wanted value itself counts as given out
        parts.append(
            f"SELECT {position} AS position, last_value AS before, CASE WHEN {needed} "
            f"THEN pg_catalog.setval({regclass}, {value}, {called}) ELSE last_value END AS after FROM {item.target.sql}"
        )
    return " UNION ALL ".join(parts)


def _match(source: SequenceInfo, targets: list[SequenceInfo], side: str) -> SequenceInfo:
    """The target's sequence for the same column, or of the same name."""
    for candidate in targets:
        if (candidate.table, candidate.column) == (source.table, source.column):
            return candidate
    for candidate in targets:
        if candidate.name == source.name:
            return candidate
    raise ConfigError(
        f"database {side!r} has no sequence for {source.table}.{source.column} (the other side draws from "
        f"{str(source.name)!r}): the schemas differ, run the schema step of Preparation again"
    )


async def plan_sequences(
    source: asyncpg.Connection, target: asyncpg.Connection, tables: Iterable[TableName], margin: int
) -> SequencePlan:
    """Finds the sequences of these tables on both sides and checks rights and bounds.

    Raises ConfigError where one is missing, may not be read or set, or has no room for `margin` steps.
    """
    tables = list(tables)
    here = await catalog.sequences_of(source, await catalog.tables(source, tables))
    there = await catalog.sequences_of(target, await catalog.tables(target, tables))
    database = str(await target.fetchval("SELECT current_database()"))
    planned = []
    for info in here:
        match = _match(info, there, database)
        if info.last_value is None:
            raise ConfigError(
                f"sequence {str(info.name)!r} cannot be read: GRANT SELECT, USAGE, UPDATE on it to cutover's role"
            )
        if not await target.fetchval(_MAY_SET, match.name.sql):
            raise ConfigError(
                f"sequence {str(match.name)!r} of database {database!r} cannot be set: "
                "GRANT SELECT, USAGE, UPDATE on it to cutover's role"
            )
        if info.increment != match.increment:
            raise ConfigError(
                f"sequence {str(info.name)!r} steps by {info.increment} on one side and by {match.increment} on the "
                f"other: ALTER SEQUENCE {match.name.sql} INCREMENT {info.increment}"
            )
        item = PlannedSequence(
            info.name, match.name, f"{info.table}.{info.column}", info.increment, info.cycle,
            match.max if info.increment > 0 else match.min,
        )  # fmt: skip
        item.wanted(info.last_value, margin)
        planned.append(item)
    plan = tuple(planned)
    return SequencePlan(plan, margin, catalog.sequence_values_sql([p.source for p in plan]), _raise_sql(plan))


async def raise_planned(source: asyncpg.Connection, target: asyncpg.Connection, plan: SequencePlan) -> list[Raised]:
    """Reads the source's sequences in one statement and raises the target's in another.

    Raises ConfigError, before anything is changed, where one of them would pass its bound.
    """
    if not plan.sequences:
        return []
    rows = sorted(await source.fetch(plan.read_sql), key=lambda row: int(row["position"]))
    parameters: list[int | bool] = []
    for item, row in zip(plan.sequences, rows, strict=True):
        parameters += [item.wanted(row["last_value"], plan.margin), row["is_called"]]
    results = {row["position"]: row for row in await target.fetch(plan.raise_sql, *parameters)}
    return [
        Raised(item.target, row["last_value"], results[position]["before"], results[position]["after"])
        for position, (item, row) in enumerate(zip(plan.sequences, rows, strict=True))
    ]


@dataclass(frozen=True)
class Behind:
    """A sequence that will give out a value which a row has already; `cure` is a statement that raises it."""

    sequence: TableName
    table: TableName
    column: str
    cure: str


async def behind(connection: asyncpg.Connection, tables: Iterable[TableName]) -> list[Behind]:
    """The sequences of these tables that are behind the highest value in use, looked at in one statement.

    Only columns that begin an index are looked at, where that value costs nothing; sequences that cycle or that this
    role may not read are passed over. The sequence is read after the rows: what is drawn meanwhile does not count.
    """
    infos = await catalog.find_tables(connection, tables)
    found = [
        one
        for one in await catalog.sequences_of(connection, infos)
        if not one.cycle and one.last_value is not None and not one.shared
    ]
    rows = await connection.fetch(
        """
        SELECT DISTINCT i.indrelid::bigint AS oid, a.attname::text AS column FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = c.relam
        WHERE i.indrelid = ANY ($1::oid[]) AND i.indisvalid AND i.indpred IS NULL AND m.amname IN ('btree')
        """,
        [info.oid for info in infos],
    )
    oids = {info.name: info.oid for info in infos}
    indexed = {(row["oid"], row["column"]) for row in rows}
    looked = [one for one in found if (oids.get(one.table), one.column) in indexed]
    if not looked:
        return []
    parts = [_behind_sql(position, one) for position, one in enumerate(looked)]
    late = await connection.fetch(" UNION ALL ".join(parts))
    return [_told(looked[row["position"]]) for row in late if row["behind"]]


def _behind_sql(position: int, one: SequenceInfo) -> str:
    return (
        f"({_used_sql(one)} SELECT {position} AS position, "
        f"(SELECT coalesce({_beyond_sql(one)}, false) FROM {one.name.sql} s) AS behind FROM used)"
    )


def _used_sql(one: SequenceInfo) -> str:
    extreme = "max" if one.increment > 0 else "min"
    return f"WITH used AS MATERIALIZED (SELECT {extreme}({quote(one.column)})::numeric AS value FROM {one.table.sql})"


def _beyond_sql(one: SequenceInfo) -> str:
    beyond = ">" if one.increment > 0 else "<"
    return f"used.value {beyond} s.last_value OR (used.value = s.last_value AND NOT s.is_called)"


def _told(one: SequenceInfo) -> Behind:
    # executed once more, when later values may have been drawn and be in no row yet, it does nothing
    cure = (
        f"{_used_sql(one)} SELECT setval({quote_literal(one.name.sql)}::regclass, used.value::bigint) "
        f"FROM used, {one.name.sql} s WHERE {_beyond_sql(one)}"
    )
    return Behind(one.name, one.table, one.column, cure)


async def raise_sequences(
    source: asyncpg.Connection, target: asyncpg.Connection, tables: Iterable[TableName], margin: int
) -> list[Raised]:
    """`plan_sequences` and `raise_planned` in one go, for where time does not press."""
    return await raise_planned(source, target, await plan_sequences(source, target, tables, margin))
