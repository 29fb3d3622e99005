"""Unique indexes as SQL: which rows of a table hold a unique value that another row has as well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from cutover.postgres import catalog
from cutover.postgres.identifiers import TableName, quote

#: Unique indexes: their columns as SQL over the table's own column names, each with its equality, and their predicate.
_UNIQUE = """
SELECT i.indexrelid::regclass::text AS name, i.indexprs IS NULL AS plain,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
       coalesce((pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_alike,
       ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, k.n::int, false)
             FROM generate_series(1, i.indnkeyatts) AS k(n) ORDER BY k.n) AS expressions,
       ARRAY(SELECT pg_catalog.format('OPERATOR(%I.=)', n.nspname) FROM generate_series(1, i.indnkeyatts) AS k(n)
             JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.n - 1]
             JOIN pg_catalog.pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 3
                  AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
             JOIN pg_catalog.pg_operator q ON q.oid = o.amopopr
             JOIN pg_catalog.pg_namespace n ON n.oid = q.oprnamespace ORDER BY k.n) AS equals
FROM pg_catalog.pg_index i WHERE i.indrelid = $1::text::regclass AND i.indisunique AND i.indisvalid ORDER BY 1
"""
#: Partitions may have constraints of their own.
_CHECKED_LATE = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE (i.indisunique OR i.indisexclusion) AND NOT i.indimmediate
    AND (i.indrelid = $1::text::regclass
         OR i.indrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::text::regclass))))
"""


@dataclass(frozen=True)
class Unique:
    """A unique index: its columns as SQL over the table's own column names, each with its equality."""

    expressions: tuple[str, ...]
    equals: tuple[str, ...]
    predicate: str
    nulls_alike: bool

    def same(self, values: Sequence[str]) -> str:
        """SQL: whether a row of the table has these values, one for each expression."""
        return " AND ".join(
            f"({e}) {equals} {v}"
            if not self.nulls_alike
            else f"(({e}) {equals} {v} OR (({e}) IS NULL AND {v} IS NULL))"
            for e, equals, v in zip(self.expressions, self.equals, values, strict=True)
        )


async def of_table(connection: asyncpg.Connection, table: TableName) -> tuple[Unique, ...]:
    """The valid unique indexes of a table, the primary key's among them; their SQL holds under any search path."""
    async with catalog.qualified_names(connection):
        rows = await connection.fetch(_UNIQUE, table.sql)
    return tuple(
        Unique(tuple(r["expressions"]), tuple(r["equals"]), r["predicate"] or "", r["nulls_alike"]) for r in rows
    )


async def checked_late(connection: asyncpg.Connection, table: TableName) -> bool:
    """Whether the table has a DEFERRABLE unique or exclusion constraint.

    Then ON CONFLICT needs to be told another index, and a session in replica mode writes a value twice without an
    error: the check is a trigger's. So what is there has to be looked for (`free`).
    """
    return bool(await connection.fetchval(_CHECKED_LATE, table.sql))


def free(table: TableName, indexes: Sequence[Unique], row: Mapping[str, str]) -> str:
    """SQL: whether no row of the table has a unique value of the row whose columns are these expressions."""
    columns = ", ".join(f"{value} AS {quote(name)}" for name, value in row.items())
    taken = []
    for unique in indexes:
        values = ", ".join(f"({e}) AS e{n}" for n, e in enumerate(unique.expressions))
        where = unique.predicate or "true"
        same = unique.same([f"i.e{n}" for n in range(len(unique.expressions))])
        taken.append(
            f"NOT EXISTS (SELECT FROM (SELECT {values} FROM (SELECT {columns}) AS x WHERE {where}) AS i "
            f"CROSS JOIN LATERAL (SELECT FROM {table.sql} AS t WHERE ({same}) AND ({where})) AS b)"
        )
    return " AND ".join(taken) or "true"
