"""When the monolith's renamed tables were last seen to be used."""

from dataclasses import dataclass

from cutover.control.database import Control
from cutover.postgres.retire import Usage


@dataclass(frozen=True)
class Quiet:
    """A renamed table with the seconds since its counters were last seen to move."""

    table: str
    retired_name: str
    quiet_seconds: float


async def note(control: Control, migration: str, service: str, table: str, retired_name: str, usage: Usage) -> Quiet:
    """Compares the counters with those noted before; any change (a reset too) counts as a use now."""
    row = await control.fetchrow(
        "INSERT INTO control.retired_table AS t (migration, service, table_name, retired_name, reads, writes) "
        "VALUES ($1, $2, $3, $4, $5, $6) "
        "ON CONFLICT (migration, service, table_name) DO UPDATE SET retired_name = excluded.retired_name, "
        "used_at = CASE WHEN (t.reads, t.writes) = (excluded.reads, excluded.writes) THEN t.used_at "
        "ELSE clock_timestamp() END, reads = excluded.reads, writes = excluded.writes "
        "RETURNING extract(epoch FROM clock_timestamp() - used_at)::float8 AS quiet",
        migration,
        service,
        table,
        retired_name,
        usage.reads,
        usage.writes,
    )
    assert row is not None
    return Quiet(table, retired_name, float(row["quiet"]))
