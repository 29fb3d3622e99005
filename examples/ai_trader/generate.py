"""Rows for the monolith: many of them, skewed as a trading platform's are, the same for the same seed.

The server makes the rows itself (generate_series), so nothing travels; each value is a hash of the row's number
and the seed, so neither the plan of a query nor the number of connections changes what comes out.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres.databases import Database
from cutover.settings import Settings
from examples.ai_trader.rows import ANALYZE, FUNCTIONS, STATEMENTS, Statements

CHUNK = 25_000

#: Shares of the total; trades get the rest (about 40 %).
_SHARES = {
    "users": 0.02,
    "strategies": 0.01,
    "positions": 0.05,
    "ai_decisions": 0.15,
    "ai_decision_features": 0.25,
    "ai_trade_outcomes": 0.10,
    "ai_calibration_log": 0.02,
}
_AGENTS = 50

#: Called as (table, rows of it so far, rows it will have).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Filled:
    """What was made: rows by table (those that were there before are not in it), and how long it took."""

    rows: dict[str, int]
    seconds: float

    @property
    def per_second(self) -> float:
        return sum(self.rows.values()) / max(self.seconds, 1e-9)


def spread(rows: int) -> dict[str, int]:
    """Rows by table, in an order in which foreign keys hold; the sum is `rows`.

    Raises ConfigError below 100 rows: then a table would stay empty.
    """
    if rows < 100:
        raise ConfigError(f"the example needs at least 100 rows to fill its nine tables, not {rows}")
    counts = {name: max(1, int(rows * share)) for name, share in _SHARES.items()}
    counts["agent_status"] = max(1, min(_AGENTS, rows // 200))
    counts["trades"] = rows - sum(counts.values())
    return {name: counts[name] for name in STATEMENTS}


async def fill(database: Database, rows: int, seed: int, progress: Progress) -> Filled:
    """Fill the nine tables of `create_monolith` with `rows` rows in all, then ANALYZE.

    Each table is one transaction; one that holds rows already is left alone, so a run that was killed is finished by
    the next one. A superuser fills over two connections without checking foreign keys, which hold by construction;
    the owner of the tables over one.
    """
    counts = spread(rows)
    begun = time.monotonic()
    made: dict[str, int] = {}
    async with database.session("ai-trader generate") as probe:
        superuser = await probe.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    # The largest first: with two connections the other tables fit beside it. One connection keeps the keys' order.
    waiting = sorted(counts, key=lambda name: -counts[name]) if superuser else list(counts)

    async def work() -> None:
        async with database.session("ai-trader generate") as connection:
            if superuser:
                await connection.execute("SET session_replication_role = replica")
            await connection.execute(FUNCTIONS)
            while waiting:
                name = waiting.pop(0)
                if done := await _fill_table(connection, name, counts, seed, progress):
                    made[name] = done

    async with asyncio.TaskGroup() as group:
        for _ in range(2 if superuser else 1):
            group.create_task(work())
    async with database.session("ai-trader generate") as connection:
        await connection.execute(ANALYZE)
    return Filled({name: made[name] for name in counts if name in made}, time.monotonic() - begun)


async def _fill_table(
    connection: asyncpg.Connection, name: str, counts: dict[str, int], seed: int, progress: Progress
) -> int:
    """Rows made: all of the table's, or none where it holds some already."""
    statements: Statements = STATEMENTS[name]
    total = counts[name]
    if await connection.fetchval(statements.filled):
        progress(name, total, total)
        return 0
    arguments = [counts[other] for other in statements.counts]
    async with connection.transaction():
        for low in range(1, total + 1, CHUNK):
            high = min(low + CHUNK - 1, total)
            await connection.execute(statements.insert, low, high, seed * 1000, *arguments)
            progress(name, high, total)
        if statements.sequence:
            await connection.execute(statements.sequence)
    return total


def _say(table: str, done: int, total: int) -> None:
    if done == total:
        print(f"  {table}: {total} rows", flush=True)


def main() -> None:
    """`python -m examples.ai_trader.generate --rows N`: fill the database named `monolith`."""
    parser = argparse.ArgumentParser(description="Fill the example's monolith.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", default="monolith")
    options = parser.parse_args()
    database = Settings.from_environment().database(options.database)
    filled = asyncio.run(fill(database, options.rows, options.seed, _say))
    print(f"{sum(filled.rows.values())} rows in {filled.seconds:.1f} s: {filled.per_second:.0f} rows/s")


if __name__ == "__main__":
    main()
