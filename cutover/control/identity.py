"""Which server and timeline a migration's evidence was taken from; a person may accept another one."""

from collections.abc import Mapping, Sequence

import asyncpg

from cutover.control import audit
from cutover.control.audit import Entry
from cutover.control.database import Control
from cutover.errors import AnotherServer
from cutover.postgres import catalog
from cutover.postgres.databases import SIDES, Pair, Side

#: System identifier and timeline of a server.
Identity = tuple[str, int]


async def noted(control: Control, migration: str, database: str) -> Identity | None:
    """The server that the evidence is from; None where none was ever seen."""
    row = await control.fetchrow(
        "SELECT system_identifier, timeline FROM control.server_identity WHERE migration = $1 AND database = $2",
        migration,
        database,
    )
    return (row["system_identifier"], row["timeline"]) if row else None


async def noted_of(control: Control, pair: Pair) -> dict[Side, Identity]:
    """The servers that the pair's evidence is from; a side that was never seen is left out."""
    found = {side: await noted(control, pair.migration, pair.at(side).name) for side in SIDES}
    return {side: known for side, known in found.items() if known is not None}


async def require(pair: Pair, known: Mapping[Side, Identity], side: Side, session: asyncpg.Connection) -> None:
    """Raises AnotherServer where the session at that side is not on the server that is noted of it.

    A session never changes its server; but that may be promoted under it, so ask right before what rests on it.
    """
    if side in known and (problem := unlike(pair, side, known[side], await catalog.server_identity(session))):
        raise AnotherServer(problem)


def unlike(pair: Pair, side: Side, noted: Identity, now: Identity) -> str:
    """What is wrong with that side's server of now, with the remedy; "" where it is the one that is noted."""
    if noted == now:
        return ""
    what = f"timeline {noted[1]} → {now[1]}" if noted[0] == now[0] else "another system identifier"
    return (
        f"database {pair.at(side).name!r} is on another server or timeline than the evidence ({what}): the evidence is "
        "void, no row is repaired, and neither a switch nor a rollback begins. Look whether it has lost commits, then: "
        f"{remedy(pair)}; what is to be done next the doctor says"
    )


def remedy(pair: Pair) -> str:
    """The command by which a person accepts the servers of now."""
    return f"cutover doctor {pair.migration} --service {pair.service} --accept-server --by YOU --reason WHY"


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
