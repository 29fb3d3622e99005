"""One service's side of a RoutedPool: asyncpg's calls, sent where the service reads and writes just now."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import asyncpg

from cutover.dualwrite import outcome
from cutover.dualwrite.blocks import lent_block
from cutover.dualwrite.connections import gone
from cutover.dualwrite.epochs import Moved
from cutover.dualwrite.errors import Fenced, HeldTooLong, PartlyDone, SecondaryAway, WriteInRead
from cutover.dualwrite.following import Outbox
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.lending import Lender, Surroundings
from cutover.dualwrite.measure import Recorder, Trial, verb_of
from cutover.dualwrite.reads import OnlyAtPrimary, read_mirror, read_primary, still_mirrored
from cutover.dualwrite.routing import WRITE, Access, ReadClass, reading
from cutover.dualwrite.statements import may_commit, writes
from cutover.dualwrite.strong import Strong
from cutover.dualwrite.transactions import lent_transaction
from cutover.dualwrite.two_sides import TwoSides
from cutover.dualwrite.verifying import Verifier
from cutover.dualwrite.writes import ALONE, Call, answerable, ending_of, require_level, write_once
from cutover.errors import Unreachable
from cutover.plan.models import Consistency

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

T = TypeVar("T")
Isolation = Literal["read_committed", "repeatable_read", "serializable"]

#: Tries of one transaction before `run_in_transaction` gives up.
ATTEMPTS = 20
_AGAIN = (HeldTooLong, Fenced, SecondaryAway, Unreachable)


class ServicePool(Lender):
    """asyncpg's pool interface for the tables of one service; see docs/routed-pool.md."""

    def __init__(
        self,
        gate: Gate,
        around: Surroundings,
        recorder: Recorder,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(gate, around)
        self._recorder = recorder
        self._outbox = outbox or Outbox()

    @property
    def _sides(self) -> TwoSides | None:
        return self._outbox.sides

    @property
    def verifier(self) -> Verifier | None:
        """Compares samples of what was read with the other side; None where the plan has no outbox."""
        return self._outbox.verifier

    def beside(self, init: Callable[[asyncpg.Connection], Awaitable[None]]) -> "ServicePool":
        """The same service over connections of its own, which `init` prepares when they are opened."""
        around = replace(self._around, pools=self._around.pools.beside(init))
        return ServicePool(self.gate, around, self._recorder, self._outbox)

    def level_in_force(self, level: Consistency | None = None) -> Consistency:
        """What that level (None: the service's own) comes to just now: eventual where there is no stream."""
        if self._sides is None:
            return "eventual"
        return self._sides.in_force(level or self._sides.level, self.gate.route.primary_side)

    async def require_level(self, level: Consistency) -> None:
        """Raises ConfigError for a level that the service cannot have, for whoever will ask for it call by call."""
        require_level(self.service, self._sides, level)
        if self._sides is not None and level != "eventual":
            await self._sides.require_prepared()

    # ------------------------------------------------------------------ single statements

    async def fetch(
        self,
        sql: str,
        *args: object,
        read: ReadClass = "read_your_writes",
        key: object = None,
        write: bool | None = None,
        level: Consistency | None = None,
        table: str | None = None,
        timeout: float | None = None,
    ) -> list[asyncpg.Record]:
        """All rows. A statement that writes (INSERT … RETURNING) is treated as a write; `write=True` says so.

        `key` is whose rows are read (a user, an account): a share of the `stale_ok` reads moves key by key.
        """
        call = Call(lambda c, text, values: c.fetch(text, *values, timeout=timeout), sql, args)
        return await self._statement(call, read, write, table, key, level)

    async def fetchrow(
        self,
        sql: str,
        *args: object,
        read: ReadClass = "read_your_writes",
        key: object = None,
        write: bool | None = None,
        level: Consistency | None = None,
        table: str | None = None,
        timeout: float | None = None,
    ) -> asyncpg.Record | None:
        """The first row, or None."""
        call: Call[asyncpg.Record | None] = Call(
            lambda c, text, values: c.fetchrow(text, *values, timeout=timeout), sql, args
        )
        return await self._statement(call, read, write, table, key, level)

    async def fetchval(
        self,
        sql: str,
        *args: object,
        column: int = 0,
        read: ReadClass = "read_your_writes",
        key: object = None,
        write: bool | None = None,
        level: Consistency | None = None,
        table: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """One value of the first row, or None."""
        call: Call[Any] = Call(
            lambda c, text, values: c.fetchval(text, *values, column=column, timeout=timeout), sql, args
        )
        return await self._statement(call, read, write, table, key, level)

    async def execute(
        self,
        sql: str,
        *args: object,
        level: Consistency | None = None,
        table: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """A statement that writes, committed by itself; PostgreSQL's command tag."""
        call = Call(lambda c, text, values: c.execute(text, *values, timeout=timeout), sql, args)
        return await self._statement(call, "read_your_writes", True, table, level=level)

    async def executemany(
        self,
        sql: str,
        args: Iterable[Sequence[object]],
        *,
        level: Consistency | None = None,
        table: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """The statement once for each row of arguments, all of them or none."""
        rows = list(args)  # a second try needs them again
        call: Call[None] = Call(lambda c, text, _: c.executemany(text, rows, timeout=timeout), sql, many=True)
        await self._statement(call, "read_your_writes", True, table, level=level)

    async def copy_records_to_table(
        self,
        table_name: str,
        *,
        records: Iterable[Sequence[object]],
        columns: Sequence[str] | None = None,
        schema_name: str | None = None,
        level: Consistency | None = None,
        timeout: float | None = None,
    ) -> str:
        """COPY of the records, all of them or none."""
        rows = list(records)

        async def copy(connection: "Connection", _text: str, _values: Sequence[object]) -> str:
            done: str = await connection.copy_records_to_table(
                table_name, records=rows, columns=columns, schema_name=schema_name, timeout=timeout
            )
            return done

        return await self._statement(Call(copy, "COPY", many=True), "read_your_writes", True, table_name, level=level)

    async def _statement(
        self,
        call: Call[T],
        read: ReadClass,
        write: bool | None,
        table: str | None,
        key: object = None,
        level: Consistency | None = None,
    ) -> T:
        write = writes(call.sql) if write is None else write
        if write and read == "stale_ok":
            raise WriteInRead(f"{self.service}: a statement that writes cannot be a stale_ok read; leave `read` out")
        self._same_service(table, writing=write)
        access = WRITE if write else reading(self.service, read, key)
        verb = verb_of(call.sql)
        parts = may_commit(call.sql)
        with self._recorder.operation(access, table, verb) as trial:
            try:
                return await self._until_answered(lambda: self._once(call, access, verb, trial, level), trial, parts)
            except OnlyAtPrimary:
                self._same_service(table, writing=True)
                return await self._until_answered(lambda: self._once(call, WRITE, verb, trial, level), trial, parts)

    async def _once(self, call: Call[T], access: Access, verb: str, trial: Trial, level: Consistency | None) -> T:
        async with self._lend(access, trial) as lent:
            if gone(lent.connection):
                raise Unreachable(f"{self.service}: {lent.database.name!r} closed the connection before it was used")
            if access.operation == "write":
                return await write_once(self.gate, self._sides, call, lent, verb, level)
            try:
                if lent.slot is None:
                    return await call.on(lent.connection)
                if not lent.slot.at_primary:
                    return await read_mirror(self.gate, call, lent)
                return await read_primary(self.gate, call, lent)
            except BaseException as error:
                if gone(lent.connection) and outcome.is_lost(error):
                    raise Unreachable(
                        f"{self.service}: the connection to {lent.database.name!r} was lost in a read "
                        f"({type(error).__name__})"
                    ) from None
                raise

    async def _until_answered(self, once: Callable[[], Awaitable[T]], trial: Trial, parts: bool) -> T:
        """Tries again for as long as nothing was done and the pool's patience lasts.

        `parts`: the statement may have committed something before it failed, so what it met itself is final.
        """
        clock = self.gate.lease.clock
        deadline: float | None = None
        while True:
            try:
                return await once()
            except (asyncpg.PostgresError, Unreachable, Moved, Fenced, SecondaryAway) as error:
                met = outcome.is_fenced(error)
                fenced = met or isinstance(error, Fenced)
                # a statement of its own is a transaction of its own: chosen as a deadlock's victim, it did nothing
                passing = isinstance(error, Unreachable | SecondaryAway) or (
                    outcome.is_serialization(error) and not parts
                )
                if not (fenced or passing or isinstance(error, Moved)):
                    raise
                self.gate.counters.fenced += met
                if met and parts:
                    raise self._partly_done(trial) from None
                deadline = deadline or clock() + self._around.patience
                if trial.gave_up or clock() >= deadline:
                    if passing:
                        raise
                    raise self._fenced(trial) from None
                await self._look_again(trial, moved=not passing)

    def _fenced(self, trial: Trial) -> Fenced:
        return Fenced(
            f"{self.service}: {trial.side} is not the writable side, and no other was found in {trial.retries} tries; "
            "nothing was done, try again later (`cutover status` tells what the switch waits for)"
        )

    def _partly_done(self, trial: Trial) -> PartlyDone:
        return PartlyDone(
            f"{self.service}: {trial.side} is not the writable side, and the statement that it refused may have "
            "committed some of its work before (CALL, DO, a COMMIT in its text): look before you do any of it again"
        )

    # ------------------------------------------------------------------ connections and transactions

    @asynccontextmanager
    async def acquire(
        self,
        *,
        write: bool = True,
        read: ReadClass = "read_your_writes",
        key: object = None,
        table: str | None = None,
    ) -> AsyncIterator["Connection"]:
        """A connection for the block. A switch waits for the block's end, so keep it short.

        With `write=False` the block is one read-only transaction.
        Raises what `transaction` raises; a write whose answer was lost is UnknownOutcome. Statements are committed one
        by one: PartlyDone where a switch came between them.
        """
        if not write:
            async with self.transaction(readonly=True, read=read, key=key, table=table) as connection:
                yield connection
            return
        self._same_service(table, writing=True)
        with self._recorder.operation(WRITE, table, "SESSION") as trial:
            async with self._lend(WRITE, trial, transaction=True) as lent:
                self.gate.falls_behind(lent.slot)
                async with lent_block(self.gate, lent, lambda: self._fenced(trial)) as connection:
                    yield connection

    @asynccontextmanager
    async def transaction(
        self,
        *,
        table: str | None = None,
        isolation: Isolation | None = None,
        readonly: bool = False,
        read: ReadClass = "read_your_writes",
        key: object = None,
        level: Consistency | None = None,
    ) -> AsyncIterator["Connection"]:
        """A transaction on the side where it began; committed at the block's end, rolled back on any error.

        Raises Fenced, HeldTooLong, SecondaryAway and Unreachable where nothing was done, SecondaryRefused where the
        other side takes the rows for wrong, TransactionAborted where COMMIT was answered with ROLLBACK, UnknownOutcome
        where the connection died in COMMIT and nobody can say what became of it, SpansServices.
        """
        access = self._block_access(readonly, read, key)
        with self._recorder.operation(access, table, "TRANSACTION") as trial:
            async with self._transaction(trial, table, isolation, access, level) as connection:
                yield connection

    def _block_access(self, readonly: bool, read: ReadClass, key: object) -> Access:
        if read == "stale_ok" and not readonly:
            raise WriteInRead(f"{self.service}: a stale_ok transaction has to be read-only")
        return reading(self.service, read, key) if readonly else WRITE

    @asynccontextmanager
    async def _transaction(
        self,
        trial: Trial,
        table: str | None,
        isolation: Isolation | None,
        access: Access,
        level: Consistency | None,
    ) -> AsyncIterator["Connection"]:
        self._same_service(table, writing=access.operation == "write")
        async with self._lend(access, trial, transaction=True) as lent:
            ending = ALONE if access.operation == "read" else await ending_of(self.gate, self._sides, lent.side, level)
            if access.operation == "write" and not isinstance(ending, Strong):
                self.gate.falls_behind(lent.slot)
            async with lent_transaction(
                self.gate, lent.connection, lent.side, lent.database, access, isolation, ending
            ) as connection:
                yield connection
                if lent.slot is not None and not lent.slot.at_primary:
                    await still_mirrored(self.gate, lent)
            if access.operation == "write":
                await answerable(self.gate, self._sides, lent, level)

    async def run_in_transaction(
        self,
        fn: Callable[["Connection"], Awaitable[T]],
        *,
        table: str | None = None,
        attempts: int = ATTEMPTS,
        read_only: bool = False,
        isolation: Isolation | None = None,
        read: ReadClass = "read_your_writes",
        key: object = None,
        level: Consistency | None = None,
    ) -> T:
        """Runs `fn(connection)` in a transaction, again where nothing was done: at most `attempts` times.

        Again: refused by the fence, held too long, serialization failure, deadlock, connection lost before COMMIT, the
        other side of a strong write away or busy.
        Never again: UnknownOutcome, and whatever `fn` raises of its own. `fn` may run several times: effects
        outside the database do not belong in it.
        """
        access = self._block_access(read_only, read, key)
        with self._recorder.operation(access, table, "TRANSACTION") as trial:
            for left in range(max(attempts, 1) - 1, -1, -1):
                try:
                    async with self._transaction(trial, table, isolation, access, level) as connection:
                        result = await fn(connection)
                except (*_AGAIN, asyncpg.PostgresError) as error:
                    again = isinstance(error, _AGAIN) or outcome.is_serialization(error)
                    if trial.gave_up or not (again and left):
                        raise
                    if isinstance(error, HeldTooLong):
                        trial.held_since = None
                    await self._look_again(trial, moved=isinstance(error, Fenced))
                else:
                    return result
        raise AssertionError("the last attempt returns or raises")
