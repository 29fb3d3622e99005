"""The catalogs as they were taken: what every gate and pass compares with.

Only digests are kept: a default or a check may hold a value that is nobody's business here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cutover.control import audit
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.postgres.databases import Side
from cutover.postgres.fingerprint import Fingerprint

Catalogs = Mapping[Side, Fingerprint]


@dataclass(frozen=True)
class Taken:
    """Both sides' digests by item, and who took them under which plan."""

    digests: Mapping[Side, Mapping[str, str]]
    plan_hash: str
    by: str


async def take(control: Control, migration: str, service: str, catalogs: Catalogs, *, plan_hash: str, by: str) -> Taken:
    """Keeps both catalogs. Those taken under the same plan before stay: a change is accepted by `accept` alone."""
    async with control.transaction() as connection:
        before = await _find(connection, migration, service, lock=True)
        if before is not None and before.plan_hash == plan_hash:
            return before
        await _write(connection, migration, service, catalogs, plan_hash, by)
        await audit.append(connection, Entry(by, "catalogs.taken", migration, service, _hashes(catalogs)))
    return Taken({side: one.digests for side, one in catalogs.items()}, plan_hash, by)


async def accept(
    control: Control,
    migration: str,
    service: str,
    catalogs: Catalogs,
    *,
    plan_hash: str,
    by: str,
    reason: str,
    changes: list[str],
) -> None:
    """Takes both catalogs anew, as a person has decided; the audit row names who, why, and what had changed."""
    async with control.transaction() as connection:
        await _find(connection, migration, service, lock=True)
        await _write(connection, migration, service, catalogs, plan_hash, by)
        detail = {**_hashes(catalogs), "reason": reason, "changes": changes}
        await audit.append(connection, Entry(by, "catalogs.accepted", migration, service, detail))


async def find(control: Control, migration: str, service: str) -> Taken | None:
    """The catalogs as taken; None where one side's are missing."""
    async with control.connection() as connection:
        return await _find(connection, migration, service)


async def _find(connection: Connection, migration: str, service: str, *, lock: bool = False) -> Taken | None:
    if lock:
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 7239100006))", f"{migration}/{service}"
        )
    rows = await connection.fetch(
        "SELECT side, items::text AS items, plan_hash, taken_by FROM control.fingerprint"
        " WHERE migration = $1 AND service = $2",
        migration,
        service,
    )
    if len(rows) < 2:
        return None
    digests: dict[Side, Mapping[str, str]] = {row["side"]: json.loads(row["items"]) for row in rows}
    return Taken(digests, rows[0]["plan_hash"], rows[0]["taken_by"])


async def _write(
    connection: Connection, migration: str, service: str, catalogs: Catalogs, plan_hash: str, by: str
) -> None:
    for side, taken in sorted(catalogs.items()):
        await connection.execute(
            "INSERT INTO control.fingerprint (migration, service, side, hash, items, plan_hash, taken_by)"
            " VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)"
            " ON CONFLICT (migration, service, side) DO UPDATE SET hash = excluded.hash, items = excluded.items,"
            " plan_hash = excluded.plan_hash, taken_by = excluded.taken_by, taken_at = clock_timestamp()",
            migration,
            service,
            side,
            taken.hash,
            json.dumps(taken.digests),
            plan_hash,
            by,
        )


def _hashes(catalogs: Catalogs) -> dict[str, object]:
    return {side: taken.hash for side, taken in sorted(catalogs.items())}
