"""The floor: what two servers need at least to hash all rows of a table, both at once."""

import asyncio
import time

import asyncpg

from bench.ground import DATABASE, Ground

#: Few ranges, a xor, one process a side, no compilation: of the forms that were tried the fastest.
_SETTINGS = {"max_parallel_workers_per_gather": "0", "jit": "off"}
_SQL = "SELECT id / 50000 AS range, count(*), bit_xor(hash_record_extended(t, 42)) FROM {table} AS t GROUP BY 1"


async def floor(ground: Ground, table: str) -> float:
    """Seconds of one SELECT per side at once; both sides' hashes are the same, or RuntimeError."""
    source, target = [
        await asyncpg.connect(cluster.dsn(DATABASE), server_settings=_SETTINGS) for cluster in ground.both
    ]
    try:
        sql = _SQL.format(table=table)
        started = time.monotonic()
        left, right = await asyncio.gather(source.fetch(sql), target.fetch(sql))
        seconds = time.monotonic() - started
    finally:
        await source.close()
        await target.close()
    if sorted(map(tuple, left)) != sorted(map(tuple, right)):
        raise RuntimeError("the two sides are not equal: the ground of this benchmark is broken")
    return seconds
