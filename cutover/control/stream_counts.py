"""A stream's counters at each look, kept for all workers: what happened between two looks is their difference.

The server only counts upwards. A worker that kept the last count in its memory would miss what another one has seen,
and see it twice after a restart; differences of kept counts are the same for everybody.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cutover.control.database import Control
from cutover.postgres.databases import Direction

#: Longer than any window that is looked back to but a soak of days, which then looks back that far.
KEEP = timedelta(days=2)


@dataclass(frozen=True)
class Count:
    """One look; see `cutover.streams.base.Work`."""

    stream: str
    since: str
    read_at: datetime
    failures: int
    applied: int


@dataclass(frozen=True)
class Span:
    """What happened between the first and the last look of a window.

    `seconds` is how long that is: 0 where this is the stream's first look. `reset_age`: how long ago the counters began
    anew, where they did within the window; what was counted before that is not known any more.
    """

    failures: int
    applied: int
    seconds: float
    reset_age: timedelta | None = None


async def note(
    control: Control, migration: str, service: str, direction: Direction, count: Count, window: timedelta
) -> Span:
    """Keeps this look; what happened since the last one that is older than the window, or since the first one.

    Looks are ordered by the sink's clock, whichever worker writes first.
    """
    async with control.transaction() as connection:
        await connection.execute(
            "INSERT INTO control.stream_count"
            " (migration, service, direction, stream, since, read_at, failures, applied)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            migration,
            service,
            direction,
            count.stream,
            count.since,
            count.read_at,
            count.failures,
            count.applied,
        )
        await connection.execute(
            "DELETE FROM control.stream_count WHERE migration = $1 AND service = $2 AND direction = $3"
            " AND read_at < $4::timestamptz - $5::interval",
            migration,
            service,
            direction,
            count.read_at,
            KEEP,
        )
        rows = await connection.fetch(
            "SELECT since, read_at, failures, applied FROM control.stream_count"
            " WHERE migration = $1 AND service = $2 AND direction = $3 AND stream = $4 AND read_at <= $5"
            " AND read_at >= coalesce((SELECT max(read_at) FROM control.stream_count"
            "  WHERE migration = $1 AND service = $2 AND direction = $3 AND stream = $4"
            "  AND read_at <= $5::timestamptz - $6::interval), '-infinity')"
            " ORDER BY read_at, id",
            migration,
            service,
            direction,
            count.stream,
            count.read_at,
            window,
        )
    first = before = rows[0]
    reset_age = None
    for row in rows[1:]:
        lower = row["failures"] < before["failures"] or row["applied"] < before["applied"]
        if lower or row["since"] != before["since"]:
            first, reset_age = row, count.read_at - row["read_at"]
        before = row
    return Span(
        failures=count.failures - first["failures"],
        applied=count.applied - first["applied"],
        seconds=(count.read_at - rows[0]["read_at"]).total_seconds(),
        reset_age=reset_age,
    )
