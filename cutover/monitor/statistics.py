"""What the applications' instances measured: collected in memory, written to `control.client_stat` each second.

Durations leave out the time for which a request was held by a switch: that is counted apart (`held_ms`).
Seconds are those of the control database's clock at the time of writing, so that instances need no common one.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from cutover.control.database import Control
from cutover.errors import ConfigError
from cutover.monitor.histogram import BUCKETS, add, bucket_of, quantile
from cutover.postgres.databases import Side

#: `stale_read`: a read that may be answered by the side that only follows; it is what a soak moves and looks at.
Operation = Literal["read", "stale_read", "write"]

#: Statistics are kept for that long.
KEEP = timedelta(days=1)
#: Table names that one instance reports; what comes after goes to OTHER, so that a careless caller costs no memory.
MAX_TABLES = 200
OTHER = "(other)"
UNNAMED = "(unnamed)"


@dataclass(frozen=True)
class Key:
    """What one row of statistics is about."""

    service: str
    side: Side
    table: str
    operation: Operation


@dataclass
class Tally:
    """Counts of one key."""

    attempts: int = 0
    failures: int = 0
    retried: int = 0
    seconds: float = 0.0
    held_ms: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    @property
    def p95(self) -> float | None:
        """Seconds below which 95 of 100 operations took, those that failed included."""
        return quantile(self.buckets, 0.95)

    @property
    def mean(self) -> float | None:
        return self.seconds / self.attempts if self.attempts else None

    @property
    def failure_rate(self) -> float | None:
        return self.failures / self.attempts if self.attempts else None

    def __iadd__(self, other: "Tally") -> "Tally":
        self.attempts += other.attempts
        self.failures += other.failures
        self.retried += other.retried
        self.seconds += other.seconds
        self.held_ms = max(self.held_ms, other.held_ms)
        self.buckets = add(self.buckets, other.buckets)
        return self


@dataclass
class Collector:
    """One instance's counts since the last flush."""

    migration: str
    instance: str
    _tallies: dict[Key, Tally] = field(default_factory=dict)
    _tables: set[str] = field(default_factory=set)

    def record(
        self,
        service: str,
        side: Side,
        table: str | None,
        operation: Operation,
        seconds: float,
        *,
        failed: bool = False,
        retried: int = 0,
        held_seconds: float = 0.0,
    ) -> None:
        """Counts one operation as its caller saw it: however often it was tried, it is one attempt."""
        tally = self._tallies.setdefault(Key(service, side, self._named(table), operation), Tally())
        tally.attempts += 1
        tally.failures += failed
        tally.retried += retried
        tally.seconds += seconds
        tally.held_ms = max(tally.held_ms, held_seconds * 1000)
        tally.buckets[bucket_of(seconds)] += 1

    def _named(self, table: str | None) -> str:
        if table is None:
            return UNNAMED
        if table not in self._tables:
            if len(self._tables) >= MAX_TABLES:
                return OTHER
            self._tables.add(table)
        return table

    async def flush(self, control: Control) -> int:
        """Writes what was collected, in one statement; rows written. On any error the counts are kept for later.

        An answer lost on the way may count one second twice: these are measurements, not the books.
        """
        taken, self._tallies = self._tallies, {}
        if not taken:
            return 0
        try:
            await self._write(control, taken)
        except BaseException:
            for key, tally in taken.items():
                if key in self._tallies:
                    self._tallies[key] += tally
                else:
                    self._tallies[key] = tally
            raise
        return len(taken)

    async def _write(self, control: Control, taken: dict[Key, Tally]) -> None:
        keys, tallies = list(taken), list(taken.values())
        await control.execute(
            """
            INSERT INTO control.client_stat AS held (migration, service, side, table_name, operation, instance,
                bucket_start, attempts, failures, retried, seconds, held_ms, buckets)
            SELECT $1, new.service, new.side, new.table_name, new.operation, $2,
                date_trunc('second', clock_timestamp()), new.attempts,
                new.failures, new.retried, new.seconds, new.held_ms, new.buckets::integer[]
            FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[],
                $10::float8[], $11::float8[], $12::text[])
                AS new(service, side, table_name, operation, attempts, failures, retried, seconds, held_ms, buckets)
            ON CONFLICT (migration, service, bucket_start, side, table_name, operation, instance) DO UPDATE SET
                attempts = held.attempts + excluded.attempts,
                failures = held.failures + excluded.failures,
                retried = held.retried + excluded.retried,
                seconds = held.seconds + excluded.seconds,
                held_ms = greatest(held.held_ms, excluded.held_ms),
                buckets = ARRAY(SELECT a + b FROM unnest(held.buckets, excluded.buckets)
                    WITH ORDINALITY AS pair(a, b, place) ORDER BY place)
            """,
            self.migration,
            self.instance,
            [key.service for key in keys],
            [key.side for key in keys],
            [key.table for key in keys],
            [key.operation for key in keys],
            [tally.attempts for tally in tallies],
            [tally.failures for tally in tallies],
            [tally.retried for tally in tallies],
            [tally.seconds for tally in tallies],
            [tally.held_ms for tally in tallies],
            # an array of arrays would be unnested whole, so each histogram travels as text
            ["{" + ",".join(map(str, tally.buckets)) + "}" for tally in tallies],
        )


#: Summed by the server: a minute of a small fleet is thousands of rows, of which a sample needs a dozen sums.
_WINDOW = f"""
SELECT side, table_name, operation, sum(attempts)::bigint AS attempts, sum(failures)::bigint AS failures,
       sum(retried)::bigint AS retried, sum(seconds)::float8 AS seconds, max(held_ms) AS held_ms,
       min(cardinality(buckets)) AS fewest, max(cardinality(buckets)) AS most,
       ARRAY[{", ".join(f"coalesce(sum(buckets[{n}]), 0)::bigint" for n in range(1, BUCKETS + 1))}] AS buckets
FROM control.client_stat
WHERE migration = $1 AND service = $2 AND bucket_start > clock_timestamp() - $3::interval
GROUP BY side, table_name, operation
"""  # noqa: S608 (the text is made of numbers)


async def window(control: Control, migration: str, service: str, length: timedelta) -> dict[Key, Tally]:
    """What all instances together reported within the last `length`, by key.

    Raises Unreachable, and ConfigError where rows were counted with other bounds than these.
    """
    rows = await control.fetch(_WINDOW, migration, service, length)
    found: dict[Key, Tally] = {}
    for row in rows:
        if (row["fewest"], row["most"]) != (BUCKETS, BUCKETS):
            raise ConfigError(
                f"{service}: an instance reports {row['fewest']} to {row['most']} buckets of durations, not {BUCKETS}; "
                "run the same version of cutover in the application and the worker"
            )
        found[Key(service, row["side"], row["table_name"], row["operation"])] = Tally(
            row["attempts"], row["failures"], row["retried"], row["seconds"], row["held_ms"], list(row["buckets"])
        )
    return found


async def prune(control: Control, keep: timedelta = KEEP) -> None:
    """Deletes what is older than `keep`; called by every instance now and then, and by the monitor."""
    await control.execute("DELETE FROM control.client_stat WHERE bucket_start < clock_timestamp() - $1::interval", keep)
