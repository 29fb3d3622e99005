"""How a client's task reaches its database: through RoutedPool, with each write in the log before and after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

from cutover.dualwrite.errors import AnswerLost, UnknownOutcome
from cutover.dualwrite.routed_pool import RoutedPool
from cutover.errors import CutoverError
from cutover.postgres.databases import CONNECTION_ERRORS
from examples.ai_trader.oplog import OpLog, Reference, Write
from examples.ai_trader.tables import OWNERS, TABLES, Key

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

Outcome = Literal["ok", "fail", "unknown"]


class LostUpdate(Exception):
    """A row of the task's own was not at the revision that was acknowledged; the transaction is rolled back."""


@dataclass(eq=False)
class Row:
    """A row that a task wrote or took over, as last acknowledged."""

    table: str
    key: Key
    revision: int
    adopted: bool = False
    parent: "Row | None" = None
    children: list["Row"] = field(default_factory=list)
    #: A strategy that a trade names.
    linked: bool = False
    #: An open position's symbol; empty once it is closed.
    symbol: str = ""

    @property
    def reference(self) -> Reference:
        return (self.table, self.key)

    @property
    def first_key(self) -> int | str:
        return self.key[0] if isinstance(self.key, tuple) else self.key

    def family(self) -> list["Row"]:
        """All rows below this one, the deepest first."""
        return [row for child in self.children for row in (*child.family(), child)]


@dataclass
class Step:
    """One statement with the write that it is, and the row that it is about. `loose`: that no row was met is fine."""

    write: Write
    sql: str
    arguments: Sequence[Any]
    row: Row | None = None
    loose: bool = False


@dataclass
class Tally:
    """What a client's tasks did; writes are rows written."""

    writes: int = 0
    transactions: int = 0
    failed: int = 0
    unknown: int = 0
    lost_updates: int = 0
    reads: int = 0
    reads_failed: int = 0
    stale_reads: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)

    def reason(self, name: str) -> None:
        self.reasons[name] = self.reasons.get(name, 0) + 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def reason_of(error: BaseException) -> str:
    """A word for the log; never the error's text, which may hold a row's values."""
    sqlstate = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__


class Client:
    """What the tasks of one process share: the pool, the log, the tally."""

    def __init__(self, pool: RoutedPool, log: OpLog, tally: Tally) -> None:
        self._pool = pool
        self._log = log
        self._tally = tally

    @property
    def run(self) -> str:
        return self._log.run

    async def fetch(self, table: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Rows that must be up to date."""
        return await self._pool.service(OWNERS[table]).fetch(sql, *arguments, table=table)

    async def perform(self, steps: Sequence[Step]) -> Outcome:
        """The steps, all of one service, in one transaction; returns once the outcome is in the log.

        Each insert's `write.key` is set by its answer.
        """
        writes = [step.write for step in steps]
        tx = self._log.invoke(writes)
        outcome, why = await self._attempt(steps)
        await self._log.outcome(outcome, tx, writes, why)
        tally = self._tally
        if outcome == "ok":
            tally.transactions += 1
            tally.writes += len(writes)
            for write in writes:
                name = f"{write.table} {write.action}"
                tally.tables[name] = tally.tables.get(name, 0) + 1
        else:
            tally.reason(why)
            if why == LostUpdate.__name__:
                tally.lost_updates += 1
            elif outcome == "fail":
                tally.failed += 1
            else:
                tally.unknown += 1
        return outcome

    async def _attempt(self, steps: Sequence[Step]) -> tuple[Outcome, str]:
        try:
            await self._send(steps)
        except LostUpdate as error:
            return "fail", reason_of(error)
        except (UnknownOutcome, AnswerLost) as error:  # a lost answer is that of a write that was done
            return "unknown", reason_of(error)
        except CutoverError as error:
            return "fail", reason_of(error)
        except CONNECTION_ERRORS as error:  # RoutedPool should have told which of the two it is
            return "unknown", reason_of(error)
        except asyncpg.PostgresError as error:
            return "fail", reason_of(error)
        return "ok", ""

    async def _send(self, steps: Sequence[Step]) -> None:
        first = steps[0].write.table
        service = self._pool.service(OWNERS[first])
        if len(steps) == 1:
            step = steps[0]
            self._answered(step, await service.fetchrow(step.sql, *step.arguments, table=first))
            return

        async def transaction(connection: "Connection") -> None:
            for step in steps:
                self._answered(step, await connection.fetchrow(step.sql, *step.arguments))

        await service.run_in_transaction(transaction, table=first)

    @staticmethod
    def _answered(step: Step, record: asyncpg.Record | None) -> None:
        if record is not None:
            step.write.key = TABLES[step.write.table].key(record["key"])
        elif not step.loose:
            raise LostUpdate(f"{step.write.table}: the row is not at the revision that was acknowledged")

    async def look_at(self, row: Row) -> None:
        """Reads a row of one's own; an older revision than the acknowledged one goes to the log as a stale read."""
        table = TABLES[row.table]
        found = await self._read(table.name, table.by_key, table.lookup([row.key]), stale=False)
        if found is None:
            return
        seen = next((r["revision"] for r in found if table.key(r["key"]) == row.key), -1)
        if seen < row.revision:
            self._tally.stale_reads += 1
            write = Write(row.table, "update", row.key, seen)
            await self._log.outcome("stale-read", self._log.name([write]), [write], f"acknowledged {row.revision}")

    async def browse(self, table: str, sql: str, *arguments: Any) -> None:
        """Reads a list that may be a little old."""
        await self._read(table, sql, *arguments, stale=True)

    async def _read(self, table: str, sql: str, *arguments: Any, stale: bool) -> list[asyncpg.Record] | None:
        self._tally.reads += 1
        try:
            service = self._pool.service(OWNERS[table])
            if stale:
                return await service.fetch(sql, *arguments, read="stale_ok", table=table)
            return await service.fetch(sql, *arguments, table=table)
        except (CutoverError, asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
            self._tally.reads_failed += 1
            self._tally.reason(f"read: {reason_of(error)}")
            return None
