"""Which server and timeline a migration's evidence was taken from; a person may accept another one."""

from collections.abc import Sequence

from cutover.control import audit
from cutover.control.audit import Entry
from cutover.control.database import Control


async def noted(control: Control, migration: str, database: str) -> tuple[str, int] | None:
    """System identifier and timeline of the server that the evidence is from; None where none was ever seen."""
    row = await control.fetchrow(
        "SELECT system_identifier, timeline FROM control.server_identity WHERE migration = $1 AND database = $2",
        migration,
        database,
    )
    return (row["system_identifier"], row["timeline"]) if row else None


async def accept(
    control: Control,
    migration: str,
    services: Sequence[str],
    database: str,
    system_identifier: str,
    timeline: int,
    *,
    by: str,
    reason: str,
) -> bool:
    """Notes the server of now in place of the earlier one; False where it is the one that is noted already.

    In the same transaction the evidence of the services that have tables there loses its word: their reports count
    as incomplete, so that every gate asks for new passes, and so do their changed keys.
    """
    async with control.transaction() as connection:
        changed = await connection.fetchval(
            "UPDATE control.server_identity SET system_identifier = $3, timeline = $4, noted_at = clock_timestamp() "
            "WHERE migration = $1 AND database = $2 AND (system_identifier, timeline) IS DISTINCT FROM ($3, $4) "
            "RETURNING true",
            migration,
            database,
            system_identifier,
            timeline,
        )
        if not changed:
            return False
        await connection.execute(
            "UPDATE control.report SET complete = false WHERE migration = $1 AND service = ANY ($2)",
            migration,
            list(services),
        )
        await connection.execute(
            "UPDATE control.changed_table SET whole_number = nextval('control.change_number'), verified_at = NULL "
            "WHERE migration = $1 AND service = ANY ($2)",
            migration,
            list(services),
        )
        detail = {"database": database, "timeline": timeline, "reason": reason, "evidence_void_of": list(services)}
        await audit.append(connection, Entry(by, "server.accepted", migration, None, detail))
    return True
