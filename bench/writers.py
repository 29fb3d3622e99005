"""Writers in a process of their own: `python -m bench.writers DSN TABLE ROWS SECONDS`.

Closed loops, each on a session of its own and at a steady pace: together RATE single-row updates of random keys a
second, as long as the server keeps up. Prints one JSON object: writes, seconds, and the latencies' percentiles in ms.
"""

import asyncio
import json
import random
import statistics
import sys
import time

import asyncpg

RATE = 2000
SESSIONS = 16


async def _write(dsn: str, table: str, rows: int, until: float, latencies: list[float]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        update = await connection.prepare(f"UPDATE {table} SET price = $2, note = note WHERE id = $1")
        pause = SESSIONS / RATE
        due = time.monotonic() + random.random() * pause
        while (now := time.monotonic()) < until:
            if due > now:
                await asyncio.sleep(due - now)
            # a writer that is late goes on at its pace, and does not catch up in a burst
            due = max(due, time.monotonic() - pause) + pause
            started = time.monotonic()
            await update.fetch(random.randint(1, rows), random.randint(1, 10**9) / 10**4)
            latencies.append((time.monotonic() - started) * 1000)
    finally:
        await connection.close()


async def write(dsn: str, table: str, rows: int, seconds: float) -> dict[str, float]:
    latencies: list[float] = []
    started = time.monotonic()
    await asyncio.gather(*(_write(dsn, table, rows, started + seconds, latencies) for _ in range(SESSIONS)))
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "writes": len(latencies),
        "per_second": round(len(latencies) / (time.monotonic() - started)),
        "p50_ms": round(cuts[49], 3),
        "p99_ms": round(cuts[98], 3),
    }


def main() -> None:
    dsn, table, rows, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(write(dsn, table, int(rows), float(seconds)))))


if __name__ == "__main__":
    main()
