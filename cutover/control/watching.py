"""When thresholds were sampled: the proof that nobody looked away. Ages by the control database's clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from cutover.control.database import Control


@dataclass(frozen=True)
class Watched:
    """Samples of the soak that began with the last read switch, and of everything since; times in seconds.

    `longest_hole`: between the read switch and the first sample of the soak, or two of them. None: no read switch.
    """

    soak_samples: int
    longest_hole: float | None
    newest_age: float | None


async def note(control: Control, migration: str, service: str, *, soak: bool, breached: Sequence[str]) -> None:
    """A sample was taken."""
    await control.execute(
        "INSERT INTO control.threshold_sample (migration, service, soak, breached) VALUES ($1, $2, $3, $4)",
        migration,
        service,
        soak,
        list(breached),
    )


async def watched(control: Control, migration: str, service: str) -> Watched:
    """How the thresholds have been watched since the last time that the reads went to the new side."""
    row = await control.fetchrow(
        """
        WITH began AS (
            SELECT max(at) AS at FROM control.audit
            WHERE migration = $1 AND service = $2 AND action = 'route.read_from_new' AND detail ->> 'value' = 'true'
        ), seen AS (
            SELECT s.at, lag(s.at, 1, began.at) OVER (ORDER BY s.at) AS before
            FROM control.threshold_sample s, began
            WHERE s.migration = $1 AND s.service = $2 AND s.soak AND s.at >= began.at
        )
        SELECT (SELECT count(*) FROM seen) AS soak_samples,
               (SELECT extract(epoch FROM max(at - before))::float8 FROM seen) AS longest_hole,
               (SELECT extract(epoch FROM clock_timestamp() - max(at))::float8 FROM control.threshold_sample
                WHERE migration = $1 AND service = $2) AS newest_age
        """,
        migration,
        service,
    )
    assert row is not None
    return Watched(row["soak_samples"], row["longest_hole"], row["newest_age"])


async def follows_changes(control: Control, migration: str, service: str, direction: str) -> bool:
    """Whether a record of changed keys is kept in that direction."""
    return bool(
        await control.fetchval(
            "SELECT EXISTS (SELECT FROM control.changed_table"
            " WHERE migration = $1 AND service = $2 AND direction = $3)",
            migration,
            service,
            direction,
        )
    )


@dataclass(frozen=True)
class Summaries:
    """The hourly rows since the last switch to the service's side; times in seconds. None: no such switch."""

    rows: int
    since_switch: float | None
    newest_age: float | None


async def summaries_since_switch(control: Control, migration: str, service: str) -> Summaries:
    """How many summary rows a service has since its writes moved, and how old the newest one is."""
    row = await control.fetchrow(
        """
        WITH switched AS (
            SELECT max(at) AS at FROM control.audit
            WHERE migration = $1 AND service = $2 AND action = 'route.flipped' AND detail ->> 'to_side' = 'service'
        )
        SELECT count(s.*) AS rows, extract(epoch FROM clock_timestamp() - w.at)::float8 AS since_switch,
               extract(epoch FROM clock_timestamp() - max(s.recorded_at))::float8 AS newest_age
        FROM switched w
        LEFT JOIN control.summary s ON s.migration = $1 AND s.service = $2 AND s.recorded_at >= w.at
        GROUP BY w.at
        """,
        migration,
        service,
    )
    assert row is not None
    return Summaries(row["rows"], row["since_switch"], row["newest_age"])
