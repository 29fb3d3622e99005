"""`make bench-final-compare`: the switch's final compare by changed keys, over a small and over a large table.

ROWS_SMALL (1000000), ROWS_LARGE (20000000), KEYS (500), ROUNDS (5). The stream is the product's logical one. In each
round KEYS rows change at the source and arrive at the target; then the two steps of the switch are timed:
`require_short_tail` as before the fence, and `verify(tidy=False)` as inside it. Prints a table, and as the last line
one JSON object.
"""

import asyncio
import json
import os
import random
import statistics
import time

import asyncpg

from bench.ground import DATABASE, Ground, copy_over, ground
from bench.reconcile import say
from cutover.control.database import Control
from cutover.plan.models import Table
from cutover.postgres import epoch
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName
from cutover.reconcile.changed import ChangedKeys
from cutover.reconcile.passes import Job, run_pass
from cutover.streams.base import settling
from cutover.streams.logical import LogicalStream

#: As the switch has it.
TAIL_LIMIT = 20_000


async def fill(both: Ground, table: str, rows: int) -> None:
    """Narrow rows, the same on both sides."""
    for cluster in both.both:
        connection = await asyncpg.connect(cluster.dsn(DATABASE))
        await connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, v bigint NOT NULL, at timestamptz)")
        if cluster is both.source:
            await connection.execute(
                f"INSERT INTO {table} SELECT n, n * 7, timestamptz '2024-01-01Z' + n * interval '1 ms' "
                "FROM generate_series(1, $1::bigint) AS n",
                rows,
            )
        else:
            copy_over(both.source, both.target, table)
        await connection.execute(f"VACUUM (ANALYZE) {table}")
        await connection.close()


async def measure(both: Ground, control: Control, rows: int, keys: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the two steps, medians; the first round is not counted."""
    service, table = f"svc{rows}", f"narrow_{rows}"
    await fill(both, table, rows)
    source, target = (Database(c.name, c.dsn(DATABASE)) for c in both.both)
    pair = Pair("bench", service, source, target, (TableName("public", table),))
    for database, side in ((source, "monolith"), (target, "service")):
        async with database.session() as connection:
            await epoch.install(connection, service, "monolith" if side == "monolith" else "service")
    stream = LogicalStream(pair, "forward")
    await stream.start(copy=False)
    while not await stream.ready():
        await asyncio.sleep(0.1)
    settle = settling(stream, 60.0)
    tails: list[float] = []
    verdicts: list[float] = []
    async with ChangedKeys(pair, "forward", control) as changed, source.session() as writer:
        await changed.prepare()
        report = await run_pass(Job(pair, "forward", pair.tables[0], Table(), control, "bench", settle))
        if report.missing or report.extra or report.mismatched or not await changed.verified(report):
            raise RuntimeError(f"the pass over {table} went wrong: {report}")
        for _ in range(rounds + 1):
            await writer.execute(
                f"UPDATE {table} SET v = v + 1 WHERE id = ANY($1)", random.sample(range(1, rows + 1), keys)
            )
            await settle()
            started = time.monotonic()
            await changed.require_short_tail(TAIL_LIMIT)
            tails.append((time.monotonic() - started) * 1000)
            started = time.monotonic()
            verdict = await changed.verify(tidy=False)
            verdicts.append((time.monotonic() - started) * 1000)
            if not verdict.equal or verdict.keys != keys:
                raise RuntimeError(f"the final compare went wrong: {verdict}")
            await changed.verify()
    await changed.drop()
    await stream.drop()
    return {"tail": statistics.median(tails[1:]), "compare": statistics.median(verdicts[1:])}


async def run(sizes: list[int], keys: int, rounds: int) -> None:
    found: dict[int, dict[str, float]] = {}
    with ground() as both:
        control = await Control.open(Database("control", both.target.dsn("control")))
        await control.migrate()
        for rows in sizes:
            say(f"{rows} narrow rows")
            found[rows] = await measure(both, control, rows, keys, rounds)
        await control.close()
    print(f"{'rows':>12} {'short tail, ms':>16} {'final compare, ms':>18}   ({keys} changed keys)")
    for rows, times in found.items():
        print(f"{rows:>12} {times['tail']:16.1f} {times['compare']:18.1f}")
    small, large = (found[rows]["compare"] for rows in sizes)
    result = {"final_compare_ms_small": small, "final_compare_ms_large": large, "large_to_small": large / small}
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


def main() -> None:
    number = {name: int(os.environ.get(name) or default) for name, default in (
        ("ROWS_SMALL", 1_000_000), ("ROWS_LARGE", 20_000_000), ("KEYS", 500), ("ROUNDS", 5)
    )}  # fmt: skip
    asyncio.run(run([number["ROWS_SMALL"], number["ROWS_LARGE"]], number["KEYS"], number["ROUNDS"]))


if __name__ == "__main__":
    main()
