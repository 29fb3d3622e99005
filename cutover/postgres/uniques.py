"""Unique indexes as SQL: which rows of a table hold a unique value that another row has as well."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from cutover.postgres import catalog
from cutover.postgres.identifiers import TableName

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
