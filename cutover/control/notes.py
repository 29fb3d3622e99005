"""Counters that may only rise, as the permanent monitor saw them last; shared by all processes that look.

A `life` names what is counted and since when: under another one nothing is compared, and the count begins anew.
"""

from dataclasses import dataclass

from cutover.control.database import Control

_NOTE = """
INSERT INTO control.monitor_note AS n (migration, service, name, life, value) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (migration, service, name) DO UPDATE SET
    changed_at = CASE WHEN n.life <> excluded.life THEN NULL
                      WHEN excluded.value > n.value THEN clock_timestamp() ELSE n.changed_at END,
    lost_at = CASE WHEN n.life <> excluded.life THEN NULL
                   WHEN excluded.value < n.value THEN coalesce(n.lost_at, clock_timestamp()) ELSE n.lost_at END,
    life = excluded.life, value = excluded.value
RETURNING extract(epoch FROM clock_timestamp() - changed_at)::float8 AS rose,
          extract(epoch FROM clock_timestamp() - lost_at)::float8 AS lost
"""


@dataclass(frozen=True)
class Noted:
    """Seconds since the value last rose, and since it fell or the thing was missing; None: not in this life."""

    rose: float | None
    lost: float | None


async def note(control: Control, migration: str, service: str, name: str, life: str, value: int) -> Noted:
    """Keeps this look; what the looks of this life have seen so far."""
    row = await control.fetchrow(_NOTE, migration, service, name, life, value)
    assert row is not None
    return Noted(row["rose"], row["lost"])


async def forget(control: Control, migration: str, service: str, name: str) -> None:
    """What was counted has been made anew on purpose: counting begins with the next look."""
    await control.execute(
        "DELETE FROM control.monitor_note WHERE migration = $1 AND service = $2 AND name = $3", migration, service, name
    )


@dataclass(frozen=True)
class Awaited:
    """What is waited for, and for how many seconds."""

    what: str
    seconds: float


async def await_from_now(control: Control, migration: str, service: str, name: str, what: str) -> None:
    """Notes what is waited for from now on. What is waited for already under that name stays."""
    await control.execute(
        "INSERT INTO control.monitor_note (migration, service, name, life, value, lost_at)"
        " VALUES ($1, $2, $3, $4, 0, clock_timestamp()) ON CONFLICT (migration, service, name) DO NOTHING",
        migration,
        service,
        name,
        what,
    )


async def awaited(control: Control, migration: str, service: str, name: str) -> Awaited | None:
    """What is waited for under that name, until `forget`."""
    row = await control.fetchrow(
        "SELECT life, extract(epoch FROM clock_timestamp() - lost_at)::float8 AS seconds FROM control.monitor_note"
        " WHERE migration = $1 AND service = $2 AND name = $3",
        migration,
        service,
        name,
    )
    return Awaited(row["life"], row["seconds"]) if row else None


def of_marker(direction: str) -> str:
    """The name of the note of a marker that the stream of a direction has not carried yet."""
    return f"marker {direction}"


def of_slot(name: str) -> str:
    """The name of a slot's note."""
    return f"slot {name}"


async def note_missing(control: Control, migration: str, service: str, name: str) -> bool:
    """What was counted is gone. False where it was never seen."""
    status = await control.execute(
        "UPDATE control.monitor_note SET lost_at = coalesce(lost_at, clock_timestamp())"
        " WHERE migration = $1 AND service = $2 AND name = $3",
        migration,
        service,
        name,
    )
    return status != "UPDATE 0"
