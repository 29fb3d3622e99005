"""Writers that know nothing of the migration, as a job or a person with psql: plain connections, past the library.

    python -m chaos.bypass --service strong --service logical --log bypass.jsonl --rate 10

Of each service one writer goes to the monolith and one to the service's own database, all the time and whatever the
route says. So each side is tried while it is the writable one, where what it accepts must not be lost, and while it
is not, where it must be refused with the fence's SQLSTATE. The log is the clients' (chaos/oplog.py), with the side of
each attempt in its invoke. Each writer has rows of its own, and an id that the server gives to each event.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from chaos.client import Answer, Missed, reason, sql_of
from chaos.oplog import Log, Outcome, Write
from chaos.tables import BYPASS_KEYS, SERVICES, Statements, at_side, require_services
from cutover.errors import ConfigError, CutoverError, Unreachable
from cutover.postgres.databases import CONNECTION_ERRORS, SIDES, Database, Side
from cutover.postgres.epoch import FENCED_SQLSTATE
from cutover.settings import Settings
from examples.ai_trader.roles import as_role
from examples.ai_trader.traffic import stop_after

#: Seconds after which a statement counts as lost, longer than any switch holds a lock.
PATIENCE = 15.0
#: Seconds between two tries to connect.
_AGAIN = 0.2
#: Keys that one life of one writer may use.
_KEYS_OF_A_LIFE = 10**5


@dataclass
class Bypass:
    """One writer of one service at one side."""

    service: str
    side: Side
    database: Database
    log: Log
    seed: int
    #: The first key of this life.
    first_key: int
    #: Longest time in seconds for which it keeps a transaction open between two statements.
    linger: float = 0.02
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.seed}/{self.log.run}/{self.service}/{self.side}")
        self._statements = Statements.of(self.service)
        self._versions: dict[int, int] = {}
        self._next = self.first_key
        self._connection: asyncpg.Connection | None = None

    async def run(self, every: float, stop: asyncio.Event) -> None:
        """An attempt each `every` seconds until `stop` is set."""
        try:
            while not stop.is_set():
                if await self._connected():
                    await self._act()
                    await _pause(stop, every * self._rng.uniform(0.7, 1.3))
                else:
                    await _pause(stop, _AGAIN)
        finally:
            if self._connection is not None:
                self._connection.terminate()

    async def _connected(self) -> bool:
        if self._connection is None or self._connection.is_closed():
            try:
                self._connection = await at_side(self.database, self.side).connect(
                    "chaos-bypass", timeout=5.0, command_timeout=PATIENCE
                )
            except Unreachable:
                return False
        return True

    async def _act(self) -> None:
        op = self.log.next_name()
        writes = [Write("events", "insert", self._next, token=op)]
        if self._rng.random() < 0.4:
            writes = [self._change(), *(writes if self._rng.random() < 0.5 else ())]
        await self.log.invoke(op, self.service, writes, side=self.side)
        outcome, why, answer, missed = await self._attempt(op, writes)
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        answers = answer.answers if outcome == "ok" else None
        await self.log.outcome(outcome, op, self.service, answers=answers, side=self.side, reason=why, missed=missed)
        for write in writes:
            if write.version is not None and outcome == "ok":
                self._versions[write.key] = write.version
            elif write.version is not None and outcome == "unknown":
                self._versions.pop(write.key, None)  # it may still be under way: never touched again

    def _change(self) -> Write:
        if not self._versions or (len(self._versions) < 20 and self._rng.random() < 0.3):
            self._next += 1
            return Write("items", "insert", self._next, 1)
        key = self._rng.choice(list(self._versions))
        return Write("items", "update", key, self._versions[key] + 1)

    async def _attempt(self, op: str, writes: Sequence[Write]) -> tuple[Outcome, str, Answer, int | None]:
        committing = False
        assert self._connection is not None
        answer = Answer()
        try:
            if len(writes) == 1:
                committing = True
                await self._send(op, writes[0], answer)
                return "ok", "", answer, None
            transaction = self._connection.transaction()
            await transaction.start()
            try:
                for write in writes:
                    await self._send(op, write, answer)
                    await asyncio.sleep(self._rng.uniform(0, self.linger))
            except BaseException:
                await transaction.rollback()
                raise
            committing = True
            await transaction.commit()
        except Missed as error:
            return "fail", reason(error), answer, error.key
        except CONNECTION_ERRORS as error:
            self._connection.terminate()
            return ("unknown" if committing else "fail"), reason(error), answer, None
        except asyncpg.PostgresError as error:
            return ("fenced" if error.sqlstate == FENCED_SQLSTATE else "fail"), reason(error), answer, None
        except asyncio.CancelledError as error:
            self.log.note("unknown", op, self.service, side=self.side, reason=reason(error))
            raise
        return "ok", "", answer, None

    async def _send(self, op: str, write: Write, answer: Answer) -> None:
        assert self._connection is not None
        sql, arguments = sql_of(self._statements, op, write)
        answer.take(write, await self._connection.fetchrow(sql, *arguments))


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


@dataclass(frozen=True)
class Options:
    """What one process is asked to do. `rate`: attempts a second of each writer; 0 seconds: until SIGTERM."""

    log: Path
    service: list[str]
    rate: float = 10.0
    seconds: float = 0.0
    seed: int = 0
    role: str = ""

    def check(self) -> None:
        """Raises ConfigError."""
        require_services(self.service)
        if self.rate <= 0:
            raise ConfigError("--rate is above 0")


async def run(options: Options, settings: Settings, stop: asyncio.Event) -> dict[str, Any]:
    """Writers at both sides of each service until `stop` is set; gives counts by service, side and outcome."""
    options.check()
    life = time.time_ns() // 1_000_000
    log = Log(options.log, run=f"b.{os.getpid()}.{life:x}", by="bypass")
    writers: list[Bypass] = []
    for service in options.service:
        for side in SIDES:
            database = settings.database("monolith" if side == "monolith" else SERVICES[service])
            # a life of its own for the keys: no two writers and no two lives share one
            first = BYPASS_KEYS + (life % 10**10 * len(SIDES) + SIDES.index(side)) * _KEYS_OF_A_LIFE
            writers.append(Bypass(service, side, as_role(database, options.role), log, options.seed, first))
    try:
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(1 / options.rate, stop))
            if options.seconds:
                group.create_task(stop_after(stop, options.seconds))
    finally:
        await log.close()
    counts: dict[str, Any] = {service: {side: {} for side in SIDES} for service in options.service}
    for writer in writers:
        counts[writer.service][writer.side] = writer.counts
    return {"run": log.run, "services": counts}


async def _main(options: Options) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(json.dumps(await run(options, Settings.from_environment(), stop)), flush=True)


def main() -> int:
    """The command; ends on SIGTERM, or after --seconds, once what is under way has an outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--log", type=Path, required=True, help="JSONL file that its attempts are appended to")
    parser.add_argument("--service", action="append", required=True, help="may be given several times")
    parser.add_argument("--rate", type=float, default=10.0, help="attempts a second, of each writer")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: until SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", default="", help="role to connect as; '' for the one in the DSN")
    try:
        asyncio.run(_main(Options(**vars(parser.parse_args()))))
    except CutoverError as error:
        print(f"bypass: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
