"""How far a pass is that somebody waits for, from where it keeps its own place."""

from dataclasses import dataclass

from cutover.control.database import Control


@dataclass(frozen=True)
class PassProgress:
    """Rows of the source that were walked, of about how many, in how many seconds since the pass began."""

    rows: int
    rows_estimated: int
    seconds: float
    #: How often its candidates were looked at again; above zero the walk is over.
    round: int

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None where nobody can tell yet."""
        if not self.rows or not self.rows_estimated:
            return None
        return max(0, self.rows_estimated - self.rows) / self.rows_per_second


#: The pass's own estimate of its rows; before it has one, what the last report counted.
_PROGRESS = """
SELECT p.rows_source AS rows, p.round, extract(epoch FROM clock_timestamp() - p.started_at)::float8 AS seconds,
       coalesce(nullif(p.rows_estimated, 0),
                (SELECT r.rows_source FROM control.report r WHERE r.migration = p.migration AND r.service = p.service
                 AND r.table_name = p.table_name AND r.complete ORDER BY r.id DESC LIMIT 1), 0) AS rows_estimated
FROM control.pass p WHERE p.migration = $1 AND p.service = $2 AND p.table_name = $3 AND starts_with(p.id, $4)
ORDER BY p.started_at DESC LIMIT 1
"""


async def progress(control: Control, migration: str, service: str, table: str, run_id: str) -> PassProgress | None:
    """The newest pass that this run of a workflow has made over the table; None before it has begun."""
    row = await control.fetchrow(_PROGRESS, migration, service, table, f"{run_id}/")
    return PassProgress(**row) if row else None
