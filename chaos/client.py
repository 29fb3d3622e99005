"""How a client's loop reaches its database: through RoutedPool, each operation in the log before and after."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from chaos.oplog import Log, Outcome, Seen, Write
from chaos.tables import Statements, events, items, value_of
from cutover.dualwrite.errors import AnswerLost, UnknownOutcome
from cutover.dualwrite.routed_pool import RoutedPool
from cutover.dualwrite.routing import ReadClass
from cutover.errors import CutoverError
from cutover.postgres.databases import CONNECTION_ERRORS, Side
from examples.ai_trader.client import reason_of

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

#: What a write of each kind is sent with, by the name of its statement.
Arguments = tuple[object, ...]


class Missed(Exception):
    """A row was not as its only writer had been told; its transaction is rolled back."""

    def __init__(self, key: int) -> None:
        super().__init__("a row was not as its only writer had been told")
        self.key = key


@dataclass
class Answer:
    """What the database gave back: `answers` for each write, and the side that it said it was."""

    answers: list[int | None] = field(default_factory=list)
    side: Side | None = None

    def take(self, write: Write, record: asyncpg.Record | None) -> None:
        """The answer to one write. Raises Missed."""
        if record is None:
            raise Missed(write.key)
        self.answers.append(record["id" if write.table == "events" else "version"])
        self.side = record["side"] or None


def sql_of(statements: Statements, op: str, write: Write) -> tuple[str, Arguments]:
    """The statement of one write."""
    if write.table == "events":
        return statements.event, (write.key, write.token)
    value = value_of(op, write.key)
    match write.kind:
        case "insert":
            return statements.insert, (write.key, write.version, op, value)
        case "update":
            return statements.update, (write.key, write.version, op, value)
        case "delete":
            return statements.delete, (write.key, write.version)
        case "increment":
            return statements.increment, (write.key, op, value)


def reason(error: BaseException) -> str:
    """A word for the log: the error, and the constraint that it names; never its text, which may hold values."""
    constraint = getattr(error, "constraint_name", None)
    return f"{reason_of(error)} {constraint}" if constraint else reason_of(error)


@dataclass
class Client:
    """What the loops of one process share for one service."""

    pool: RoutedPool
    log: Log
    service: str
    #: Why operations did not go well, counted.
    reasons: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._statements = Statements.of(self.service)

    async def perform(self, op: str, writes: Sequence[Write]) -> Outcome:
        """The writes, in one transaction; returns once the outcome is in the log.

        A loop that is cancelled leaves an unknown one.
        """
        pool = self.pool.service(self.service)
        route = pool.gate.route
        await self.log.invoke(op, self.service, writes, epoch=route.epoch)
        outcome, why, answer, missed = await self._attempt(op, writes)
        if why:
            self.reasons[why] = self.reasons.get(why, 0) + 1
        await self.log.outcome(
            outcome,
            op,
            self.service,
            answers=answer.answers if outcome == "ok" and answer.answers else None,
            side=answer.side if outcome == "ok" else None,
            epoch=route.epoch if pool.gate.route.epoch == route.epoch else None,
            reason=why,
            missed=missed,
        )
        return outcome

    async def _attempt(self, op: str, writes: Sequence[Write]) -> tuple[Outcome, str, Answer, int | None]:
        answer = Answer()
        try:
            return "ok", "", await self._send(op, writes), None
        except Missed as error:
            return "fail", reason(error), answer, error.key
        except AnswerLost as error:
            return "ok", reason(error), answer, None
        except UnknownOutcome as error:
            return "unknown", reason(error), answer, None
        except CutoverError as error:
            return "fail", reason(error), answer, None
        except CONNECTION_ERRORS as error:  # RoutedPool should have told which of the two it is
            return "unknown", reason(error), answer, None
        except asyncpg.PostgresError as error:
            return "fail", reason(error), answer, None
        except asyncio.CancelledError as error:
            self.log.note("unknown", op, self.service, reason=reason(error))
            raise

    async def _send(self, op: str, writes: Sequence[Write]) -> Answer:
        pool = self.pool.service(self.service)
        table = events(self.service) if writes[0].table == "events" else items(self.service)
        if len(writes) == 1:
            answer = Answer()
            sql, arguments = sql_of(self._statements, op, writes[0])
            answer.take(writes[0], await pool.fetchrow(sql, *arguments, table=table))
            return answer

        async def transaction(connection: "Connection") -> Answer:
            answer = Answer()  # the last run's
            for write in writes:
                sql, arguments = sql_of(self._statements, op, write)
                answer.take(write, await connection.fetchrow(sql, *arguments))
            return answer

        return await pool.run_in_transaction(transaction, table=table)

    async def look(self, keys: Sequence[int], read: ReadClass = "read_your_writes") -> list[Seen] | None:
        """Reads rows of anybody's; None where that failed."""
        op = self.log.next_name()
        self.log.look(op, self.service, read, keys)
        try:
            pool = self.pool.service(self.service)
            found = await pool.fetch(self._statements.read, list(keys), read=read, table=items(self.service))
        except (CutoverError, asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
            self.reasons[f"read: {reason(error)}"] = self.reasons.get(f"read: {reason(error)}", 0) + 1
            self.log.note("fail", op, self.service, reason=reason(error))
            return None
        seen: list[Seen] = [(row["key"], row["version"], row["origin"]) for row in found]
        self.log.seen(op, self.service, seen)
        return seen
