"""A process to be killed in a strong write: `python -m tests.dualwrite.strong_process ID`, DSNs in its environment.

It writes two rows of two tables in one transaction, and prints `done` after the answer. It ends itself at the fault
point that BOTH_KILL_AT names. With BOTH_LEVEL=eventual nothing of it is strong, and it ends itself when it is answered.
"""

import asyncio
import os
import signal
import sys

from cutover import faults
from cutover.dualwrite import RoutedPool
from cutover.postgres.databases import Database
from tests.dualwrite.both_sides import MIGRATION, SERVICE


async def die_there(point: str) -> None:
    if point == os.environ["BOTH_KILL_AT"]:
        os.kill(os.getpid(), signal.SIGKILL)


async def main(number: int) -> None:
    databases = {
        "monolith": Database("monolith", os.environ["BOTH_MONOLITH"]),
        "service": Database("service_db", os.environ["BOTH_SERVICE"]),
    }
    level = os.environ.get("BOTH_LEVEL", "strong")
    async with await RoutedPool.open(
        migration=MIGRATION,
        services=[SERVICE],
        control=Database("control", os.environ["BOTH_CONTROL"]),
        database={SERVICE: databases},  # type: ignore[dict-item]  # the keys are the two sides
        application="killed",
        levels={SERVICE: level},  # type: ignore[dict-item]
    ) as pool:
        async with pool.service(SERVICE).transaction() as connection:
            await connection.execute("INSERT INTO trades (id, name) VALUES ($1, $2)", number, f"n{number}")
            await connection.execute("UPDATE positions SET amount = amount + 1 WHERE account = 'a'")
        print("done", flush=True)
        if level == "eventual":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with faults.armed(die_there):
        asyncio.run(main(int(sys.argv[1])))
