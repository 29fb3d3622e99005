"""An application to be killed in a write: `python -m tests.dualwrite.write_process FORM`, DSNs in its environment.

FORM is `transaction` (a row in each of two tables) or `statement` (one statement that does both). It ends itself, as
kill -9 would, where BOTH_KILL_AT says: `before` the first statement, `inside` the transaction after it, `answered`; or
it is killed from outside.
"""

import asyncio
import os
import signal
import sys

from cutover.dualwrite import RoutedPool
from cutover.postgres.databases import Database
from tests.dualwrite.both_sides import MIGRATION, SERVICE

TRADE = "INSERT INTO trades (id, name) VALUES (1, 'one')"
POSITION = "UPDATE positions SET amount = amount + 1 WHERE account = 'a'"


def die_at(place: str) -> None:
    if place == os.environ["BOTH_KILL_AT"]:
        os.kill(os.getpid(), signal.SIGKILL)


async def main(form: str) -> None:
    databases = {
        "monolith": Database("monolith", os.environ["BOTH_MONOLITH"]),
        "service": Database("service_db", os.environ["BOTH_SERVICE"]),
    }
    async with await RoutedPool.open(
        migration=MIGRATION,
        services=[SERVICE],
        control=Database("control", os.environ["BOTH_CONTROL"]),
        database={SERVICE: databases},  # type: ignore[dict-item]  # the keys are the two sides
        application="killed",
    ) as pool:
        trading = pool.service(SERVICE)
        if form == "statement":
            die_at("before")
            await trading.execute(f"WITH moved AS ({POSITION}) {TRADE}", table="trades")
        else:
            async with trading.transaction() as connection:
                die_at("before")
                await connection.execute(TRADE)
                await connection.execute(POSITION)
                die_at("inside")
        print("answered", flush=True)
        die_at("answered")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
