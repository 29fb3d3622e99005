"""Writes that a scenario makes at a moment of its choice, past the library; in the log like those of all clients."""

import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import asyncpg

from chaos.client import Answer, Missed, reason, sql_of
from chaos.ground import Place
from chaos.oplog import Log, Outcome, Write
from chaos.tables import HERE, Statements, at_side, events
from cutover.postgres.databases import CONNECTION_ERRORS, Side
from cutover.postgres.epoch import FENCED_SQLSTATE

#: Its keys, which nobody else has.
KEYS = 10**18


class Hand:
    """One writer at both sides of a place; `told` holds the tokens of events that it was told to be there."""

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        self._log = Log(folder / "hand.jsonl", run=f"h.{time.time_ns() // 1_000_000:x}", by="hand")
        self._statements = Statements.of(place.service)
        self.told: list[str] = []
        #: The id of the last event, as the server gave it.
        self.last_id = 0

    async def close(self) -> None:
        await self._log.close()

    async def add(
        self, side: Side, count: int = 1, *, id: int | None = None, inside: Callable[[], Awaitable[None]] | None = None
    ) -> Outcome:
        """Events in one transaction; with an `id` of its own, that one. `inside` is awaited before the commit."""
        op = self._log.next_name()
        writes = [Write("events", "insert", KEYS, token=f"{op}/{number}") for number in range(count)]
        return await self._perform(side, op, writes, id, inside)

    async def put(self, side: Side, key: int, version: int) -> Outcome:
        """The next version of a row of its own; its first one makes it."""
        write = Write("items", "insert" if version == 1 else "update", KEYS + key, version)
        return await self._perform(side, self._log.next_name(), [write], None, None)

    async def _perform(
        self,
        side: Side,
        op: str,
        writes: Sequence[Write],
        id: int | None,
        inside: Callable[[], Awaitable[None]] | None,
    ) -> Outcome:
        await self._log.invoke(op, self._place.service, writes, side=side)
        outcome, why, answer = await self._attempt(side, op, writes, id, inside)
        answers = answer.answers if outcome == "ok" else None
        await self._log.outcome(outcome, op, self._place.service, answers=answers, side=side, reason=why)
        if outcome == "ok":
            self.told += [write.token for write in writes if write.table == "events"]
        return outcome

    async def _attempt(
        self,
        side: Side,
        op: str,
        writes: Sequence[Write],
        id: int | None,
        inside: Callable[[], Awaitable[None]] | None,
    ) -> tuple[Outcome, str, Answer]:
        answer = Answer()
        connection = await at_side(self._place.database(self._place.service, side), side).connect("chaos-hand")
        committing = False
        try:
            transaction = connection.transaction()
            await transaction.start()
            for write in writes:
                sql, arguments = sql_of(self._statements, op, write)
                if id is not None:
                    table = events(self._place.service)
                    sql = f"INSERT INTO {table} (key, token, id) VALUES ($1, $2, $3) RETURNING id, {HERE}"
                    arguments = (*arguments, id)
                answer.take(write, record := await connection.fetchrow(sql, *arguments))
                if record is not None and write.table == "events":
                    self.last_id = record["id"]
            if inside is not None:
                await inside()
            committing = True
            await transaction.commit()
        except Missed as error:
            return "fail", reason(error), answer
        except CONNECTION_ERRORS as error:
            return "unknown" if committing else "fail", reason(error), answer
        except asyncpg.PostgresError as error:
            return "fenced" if error.sqlstate == FENCED_SQLSTATE else "fail", reason(error), answer
        finally:
            connection.terminate()
        return "ok", "", answer
