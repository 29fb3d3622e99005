"""Sessions in which cutover itself writes to the side that is not the primary (repair, backfill, apply).

They run in replica mode, so that user triggers and foreign keys do not act a second time, carry a
replication origin of ours, so that no stream with `origin = none` sends the rows back, and are let
through by the fence (design 5.2). An origin belongs to one session at a time: one per parallel writer.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import asyncpg

from cutover.errors import NotYet
from cutover.postgres.databases import Database

#: A process that is stopped in the middle of a write, or a network that says nothing, must not keep rows for long.
LIMITS = {"idle_in_transaction_session_timeout": "30s", "statement_timeout": "60s"}


def origin_name(service: str, purpose: str) -> str:
    """The replication origin of one of our writers. A purpose is one word, so that cleanup can tell services apart."""
    return f"cutover_{service}_{purpose}"


@asynccontextmanager
async def applier_session(database: Database, service: str, purpose: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may write behind the fence, under LIMITS. Raises NotYet while another holds the origin."""
    # never a kept session: its replication origin would outlive the reset
    async with replace(database, reuse=False).session(f"cutover-{purpose}/{service}", **LIMITS) as connection:
        await connection.execute("SET session_replication_role = replica; SET cutover.applier = 'on'")
        name = origin_name(service, purpose)
        # made by another session since the look: it is there, which is all that is needed
        with suppress(asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError):
            await connection.execute(
                "SELECT pg_replication_origin_create($1) WHERE pg_replication_origin_oid($1) IS NULL", name
            )
        try:
            await connection.execute("SELECT pg_replication_origin_session_setup($1)", name)
        except asyncpg.ObjectInUseError:
            raise NotYet(f"{service}: another {purpose} is writing to {database.name!r} just now") from None
        yield connection


async def origins(connection: asyncpg.Connection, service: str) -> list[str]:
    """The names of the replication origins of this service's writers on the server."""
    rows = await connection.fetch(
        "SELECT roname AS name FROM pg_replication_origin"
        " WHERE starts_with(roname, $1) AND strpos(substr(roname, length($1) + 1), '_') = 0 ORDER BY 1",
        origin_name(service, ""),
    )
    return [row["name"] for row in rows]


async def drop_origins(connection: asyncpg.Connection, service: str) -> int:
    """Removes the origins of all our writers of this service from the server (cleanup); how many there were.

    Raises NotYet while one of them is still at work.
    """
    names = await origins(connection, service)
    for name in names:
        try:
            # another run may have been here since the look
            await connection.execute(
                "SELECT pg_replication_origin_drop($1) WHERE pg_replication_origin_oid($1) IS NOT NULL", name
            )
        except asyncpg.ObjectInUseError:
            raise NotYet(f"{service}: a writer of cutover is still at work under origin {name!r}") from None
    return len(names)
