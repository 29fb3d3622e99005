"""One row per service and hour while a switch is open: what a person reads in the morning."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from cutover.control import documents
from cutover.control.database import Control

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Summary:
    """The facts of one service in one bucket of time."""

    migration: str
    service: str
    bucket_start: datetime
    facts: dict[str, Any]
    recorded_at: datetime


async def record(
    control: Control, migration: str, service: str, facts: Mapping[str, Any], *, every: timedelta = HOUR
) -> Summary:
    """Write the row of the present bucket, by the control database's clock; again in the same one: it is replaced.

    `every` is the bucket's length: an hour, or what is left of it in a rehearsal with compressed time.
    """
    row = await control.fetchrow(
        "INSERT INTO control.summary (migration, service, bucket_start, facts) VALUES"
        " ($1, $2, date_bin($3::interval, clock_timestamp(), timestamptz '2000-01-01 00:00+00'), $4::text::jsonb)"
        " ON CONFLICT (migration, service, bucket_start) DO UPDATE"
        " SET facts = excluded.facts, recorded_at = clock_timestamp()"
        " RETURNING migration, service, bucket_start, facts::text AS facts, recorded_at",
        migration,
        service,
        max(every, timedelta(seconds=1)),
        documents.dumps(facts),
    )
    assert row is not None
    return _summary(row)


async def latest(control: Control, migration: str, service: str, *, limit: int = 1) -> list[Summary]:
    """The newest rows of a service, newest first."""
    rows = await control.fetch(
        "SELECT migration, service, bucket_start, facts::text AS facts, recorded_at FROM control.summary"
        " WHERE migration = $1 AND service = $2 ORDER BY bucket_start DESC LIMIT $3",
        migration,
        service,
        limit,
    )
    return [_summary(row) for row in rows]


def _summary(row: asyncpg.Record) -> Summary:
    return Summary(
        row["migration"], row["service"], row["bucket_start"], documents.loads(row["facts"]), row["recorded_at"]
    )
