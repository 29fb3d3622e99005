"""Times one operation as its caller sees it, for the control database's statistics and for OpenTelemetry."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import asyncpg

from cutover.dualwrite import outcome
from cutover.dualwrite.errors import SpansServices, WriteInRead
from cutover.dualwrite.gate import Counters
from cutover.dualwrite.routing import Access
from cutover.errors import CutoverError
from cutover.monitor.statistics import Collector
from cutover.postgres.databases import Database, Side
from cutover.telemetry.meters import Instruments

#: Names of operations that reach a label; anything else in a statement's first word is left out.
_VERBS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "CALL", "TRUNCATE", "WITH", "VALUES"})


#: What is measured as one operation, though it is a block of the caller's.
BLOCKS = frozenset({"TRANSACTION", "SESSION"})


@dataclass
class Trial:
    """One operation under way: where it goes, when it was let through, how often it was tried."""

    side: Side = "monolith"
    database: Database | None = None
    #: Since when the request has been held, if it was; and for how long all in all.
    held_since: float | None = None
    held_seconds: float = 0.0
    retries: int = 0
    #: No connection came within the pool's patience: trying again would double it.
    gave_up: bool = False
    called: float = field(default_factory=time.monotonic)
    started: float | None = None

    def begin(self, side: Side, database: Database) -> None:
        """A try begins now, at that side; the duration is that of the last one."""
        self.side, self.database, self.started = side, database, time.monotonic()


@dataclass(frozen=True)
class Recorder:
    """Where a service's measurements go."""

    service: str
    collector: Collector
    instruments: Instruments
    counters: Counters

    @contextmanager
    def operation(self, access: Access, table: str | None, verb: str) -> Iterator[Trial]:
        """Counts the block as one operation. A failure is what database or pool raised, not the caller's own."""
        trial = Trial()
        failure: BaseException | None = None
        refused = False
        try:
            yield trial
        except (SpansServices, WriteInRead):
            refused = True  # a mistake in the calling code; nothing was tried
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, CutoverError) as error:
            failure = None if outcome.is_own_mistake(error) else error
            raise
        except (TimeoutError, ConnectionError) as error:
            # inside a block of the caller's they may be the caller's own; around one statement they are not
            failure = error if verb not in BLOCKS else None
            raise
        finally:
            if not refused:
                self._record(trial, access, table, verb, failure)

    def _record(
        self, trial: Trial, access: Access, table: str | None, verb: str, failure: BaseException | None
    ) -> None:
        now = time.monotonic()
        seconds = now - (now if trial.started is None else trial.started)
        self.counters.requests += 1
        self.counters.failed += failure is not None
        if trial.retries or trial.held_since is not None:
            # what a switch cost its caller, beside what the operation would have taken anyway
            self.counters.waited(now - trial.called - seconds)
        self.collector.record(
            self.service,
            trial.side,
            table,
            access.measured,
            seconds,
            failed=failure is not None,
            retried=trial.retries,
            held_seconds=trial.held_seconds,
        )
        attributes: dict[str, str] = {"db.system.name": "postgresql", "cutover.service": self.service}
        if trial.database is not None:
            attributes["db.namespace"] = trial.database.name
        if table is not None:
            attributes["db.collection.name"] = table
        if verb in _VERBS or verb in BLOCKS:
            attributes["db.operation.name"] = verb
        if failure is not None:
            attributes["error.type"] = type(failure).__name__
            if isinstance(failure, asyncpg.PostgresError) and failure.sqlstate:
                attributes["db.response.status_code"] = failure.sqlstate
        self.instruments.db_client_operation_duration.record(seconds, attributes)


def verb_of(sql: str) -> str:
    """The statement's first word in capitals; only a few known ones ever reach a label."""
    words = sql.split(None, 1)
    return words[0].upper() if words else ""
