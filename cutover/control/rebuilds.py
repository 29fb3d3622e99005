"""Streams that are being built anew: what was cut off in the middle is known as such, whatever is left of it."""

from cutover.control.database import Control
from cutover.postgres.databases import Direction


async def begin(control: Control, migration: str, service: str, direction: Direction) -> None:
    """Before anything of the old stream is dropped; again: it stays as it is."""
    await control.execute(
        "INSERT INTO control.rebuild (migration, service, direction) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        migration,
        service,
        direction,
    )


async def end(control: Control, migration: str, service: str, direction: Direction) -> None:
    """Nothing is missing any more. Idempotent."""
    await control.execute(
        "DELETE FROM control.rebuild WHERE migration = $1 AND service = $2 AND direction = $3",
        migration,
        service,
        direction,
    )


async def unfinished(control: Control, migration: str, service: str, direction: Direction) -> str:
    """In words what has not come to its end; "" where nothing has begun."""
    found: str | None = await control.fetchval(
        "SELECT to_char(begun_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM control.rebuild"
        " WHERE migration = $1 AND service = $2 AND direction = $3",
        migration,
        service,
        direction,
    )
    return f"a rebuild of the {direction} stream, begun {found} UTC, has not come to its end" if found else ""
