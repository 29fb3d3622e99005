"""Rows at an outbox stream's sink give way to what it brings, while the sink lacks changes of before (a *gap*).

What changed in the gap has no intent. A row whose unique value another one took then stands in the way of that one, and
nothing comes that would take it along. The source is the truth, so for that time such a row is taken away; what is
missing then a pass brings back.

A row that this stream has brought stays: what it has given up since is captured, and on its way. Which those are its
version rows tell: all of before went with the stream that was dropped, and one is pruned only long after its change.
"""

from collections.abc import Mapping, Sequence

import asyncpg

from cutover.postgres import outbox_sink
from cutover.postgres.databases import Direction
from cutover.postgres.keys import Key
from cutover.postgres.outbox_tables import Flow

_LACKS_CHANGES = """
SELECT true FROM cutover.outbox_stream s
WHERE service = $1 AND direction = $2 AND to_jsonb(s) ->> 'whole' = 'false' FOR SHARE
"""


async def give_way(
    connection: asyncpg.Connection,
    service: str,
    direction: Direction,
    flow: Flow,
    tokens: Mapping[int, int],
    keys: Sequence[Key],
    images: Sequence[str],
) -> int:
    """Deletes rows that hold a unique value which an image has: of these keys, those not brought by the stream.

    How many; none where the sink lacks no changes. No intent of the keys waited when the images were read. Until the
    transaction ends nothing else can bring them: their version rows are taken, and given back.
    Raises StaleAttempt as `outbox_sink.hold`.
    """
    arrays = ", ".join(f"${n + 3}::text[]" for n in range(flow.width))
    names = ", ".join(f"k{n}" for n in range(flow.width))
    columns = outbox_sink.key_columns(flow, keys)
    async with connection.transaction():
        await outbox_sink.hold(connection, service, direction, tokens)
        if not await connection.fetchval(_LACKS_CHANGES, service, direction):
            return 0
        taken = await connection.fetch(
            "INSERT INTO cutover.row_version (service, tbl, key, version, shard, deleted) "
            f"SELECT $1::text, $2::text, ARRAY[{names}], 0, 0, false FROM unnest({arrays}) AS v({names}) "
            "ORDER BY 3 ON CONFLICT DO NOTHING RETURNING key",
            service,
            flow.name,
            *columns,
        )
        # in a statement of its own: its snapshot shows what the insert waited for
        blocking = await outbox_sink.in_the_way(connection, flow, images) & {tuple(row[0]) for row in taken}
        status = await connection.execute(flow.delete_sql, *outbox_sink.key_columns(flow, sorted(blocking)))
        await connection.execute(
            f"DELETE FROM cutover.row_version r USING unnest({arrays}) AS v({names}) "
            f"WHERE r.service = $1 AND r.tbl = $2 AND r.key = ARRAY[{names}] AND r.version = 0",
            service,
            flow.name,
            *columns,
        )
    return int(status.rpartition(" ")[2])
