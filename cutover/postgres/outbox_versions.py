"""Versions of changed keys: `epoch * 2^40 + n`, from one sequence a service in each database.

Drawn with CACHE 1 under the row's lock, so that they rise with each change of a key; the epoch makes them comparable
across switches and rollbacks. The sequence outlives the stream, so that a version never comes twice in a database. They
are no order of commits, and nothing takes them for one.
"""

import asyncpg

from cutover.postgres.identifiers import TableName, quote_literal

#: Versions of one epoch.
EPOCH_VERSIONS = 2**40


def version_sequence(service: str) -> TableName:
    return TableName("cutover", f"version_{service}")


async def raise_versions(connection: asyncpg.Connection, service: str, least: int) -> None:
    """Later versions drawn here are above `least`; never lowered.

    For a transaction that has locked the service's epoch row, so that two raises do not cross: the sequence is looked
    at first and set afterwards. What is drawn in between is lost to nobody, for a side in use is above already.
    """
    sequence = version_sequence(service).sql
    await connection.execute(
        f"SELECT pg_catalog.setval({quote_literal(sequence)}, $1) FROM {sequence} WHERE last_value < $1", least
    )
