"""What has to hold once a service's way back was given up: the archive is whole, and the monolith's tables are gone."""

import asyncio

from chaos import tables
from chaos.ground import Place
from cutover.archive import manifest
from cutover.archive.service import folder
from cutover.plan.models import Plan


async def wrong(place: Place, plan: Plan, told: int) -> list[str]:
    """All that is not so, in words. `told`: events that were acknowledged before the cleanup began."""
    found = await asyncio.to_thread(_archive, place, plan, told)
    async with place.monolith.session("chaos-check") as connection:
        for table in (tables.items(place.service), tables.events(place.service)):
            if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
                found.append(f"after the cleanup {table} is still at the monolith")
    return found


def _archive(place: Place, plan: Plan, told: int) -> list[str]:
    kept = manifest.read_manifest(folder(plan, place.service) / manifest.NAME)
    found = manifest.verify(kept)
    rows = {entry.table: entry.rows for entry in kept.entries}
    events = next((number for name, number in rows.items() if name.endswith(tables.events(place.service))), 0)
    if events < told:
        found.append(f"the archive has {events} events, and {told} were acknowledged before it was made")
    return found
