"""Keys that cut a table into parts of about the same size, found without reading the table."""

import asyncpg

from cutover.postgres.identifiers import quote
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape

#: Pages read for each key wanted: a page holds neighbours, so a few of them are needed.
_PAGES = 30


#: `low < key <= high`; None on the side where a part is open.
Bounds = tuple[Key | None, Key | None]


async def parts(connection: asyncpg.Connection, shape: Shape, count: int) -> list[Bounds]:
    """About `count` parts of the table in the order of its key, which hold every key there can be, each once."""
    keys = await _dividing_keys(connection, shape, count) if count > 1 else []
    return list(zip([None, *keys], [*keys, None], strict=True))


async def highest(connection: asyncpg.Connection, shape: Shape) -> Key | None:
    """The last key in the order of the shape's index; None for an empty table."""
    backwards = ", ".join(f"t.{quote(k.name)} DESC" for k in shape.key)
    row = await connection.fetchrow(f"SELECT {shape.key_text} FROM {shape.relation} AS t ORDER BY {backwards} LIMIT 1")
    return None if row is None else tuple(row.values())


async def _dividing_keys(connection: asyncpg.Connection, shape: Shape, parts: int) -> list[Key]:
    """At most `parts - 1` keys in the order of the shape's index, between which about as many rows lie each time.

    Fewer where the sample turns out small; which rows are sampled never decides what is compared.
    """
    pages = await connection.fetchval(
        "SELECT sum(pg_catalog.pg_relation_size(c.relid)) / current_setting('block_size')::int8 "
        "FROM pg_catalog.pg_partition_tree($1::text::regclass) AS c",
        shape.relation,
    ) or await connection.fetchval(
        "SELECT pg_catalog.pg_relation_size($1::text::regclass) / current_setting('block_size')::int8", shape.relation
    )
    share = min(100.0, 100.0 * parts * _PAGES / max(int(pages), 1))
    rows = await connection.fetch(
        f"SELECT {', '.join(f'key{n}' for n in range(len(shape.key)))} FROM ("
        f"SELECT {shape.key_text}, row_number() OVER (ORDER BY {shape.order}) AS place, count(*) OVER () AS sampled "
        f"FROM {shape.relation} AS t TABLESAMPLE SYSTEM ({share:.6f})) AS s "
        f"WHERE place > 1 AND (place - 1) * {parts} / sampled <> (place - 2) * {parts} / sampled ORDER BY place"
    )
    return [tuple(row.values()) for row in rows]
