"""Versions of changed keys: `epoch * 2^40 + n`, from one sequence a service in each database.

Drawn with CACHE 1 under the row's lock, so that they rise with each change of a key; the epoch makes them comparable
across switches and rollbacks. The sequence outlives the stream, so that a version never comes twice in a database. They
are no order of commits, and nothing takes them for one.
"""

import asyncpg

from cutover.postgres.identifiers import TableName, quote_literal

#: Versions of one epoch.
EPOCH_VERSIONS = 2**40
#: More than are drawn by a side in use between a look at its sequence and the setting of it.
AHEAD = 2**20


def version_sequence(service: str) -> TableName:
    return TableName("cutover", f"version_{service}")


async def last_version(connection: asyncpg.Connection, service: str) -> int:
    """The last version that was drawn here."""
    return int(await connection.fetchval(f"SELECT last_value FROM {version_sequence(service).sql}"))


async def raise_versions(connection: asyncpg.Connection, service: str, least: int, *, ahead: int = 0) -> None:
    """Later versions drawn here are above `least`, by `ahead` where they were not; never lowered.

    For a transaction that has locked the service's epoch row, so that two raises do not cross: the sequence is looked
    at first and set afterwards. Where the side is in use and not above already, as many may be drawn in between as
    `ahead` says: a version never comes twice.
    """
    sequence = version_sequence(service).sql
    await connection.execute(
        f"SELECT pg_catalog.setval({quote_literal(sequence)}, $1::bigint + $2::bigint) FROM {sequence} "
        "WHERE last_value < $1",
        least,
        ahead,
    )
