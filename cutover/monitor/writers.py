"""Rogue writers: applications that write at the side that is not the primary.

Seen are: sessions that hold a writer's lock there at the moment of a look; statements that the fence refused, by its
own counter; and, where an outbox captures that side, rows that were written there. Not seen is a transaction that got
past the fence (an altered fence, a role of ours) and ended between two looks, where nothing captures it: that is what
reconciliation finds.
"""

import asyncio

from cutover.control import notes
from cutover.monitor.findings import Finding
from cutover.monitor.place import Place
from cutover.postgres import epoch, writers

#: Seconds for which statements that were refused are told.
REFUSED_FOR = 60.0
#: Seconds after which the fence has refused a statement that it met.
REFUSED_WITHIN = 0.2
_SHOWN = 3


async def watch_writers(at: Place) -> list[Finding]:
    """At the shut side alone."""
    side, database = at.shut, at.pair.at(at.shut).name
    connection = at.sessions[side]
    found = []
    holders = await writers.open_writers(connection, at.members[side])
    if holders:
        # a statement holds the lock for the moment until the fence refuses it
        await asyncio.sleep(REFUSED_WITHIN)
        still = {(one.pid, one.table) for one in await writers.open_writers(connection, at.members[side])}
        holders = [one for one in holders if (one.pid, one.table) in still]
    if holders:
        named = "; ".join(map(str, holders[:_SHOWN]))
        text = f"somebody writes at the {side}, which is not the writable side: {named}"
        pids = ", ".join(str(pid) for pid in sorted({one.pid for one in holders})[:_SHOWN])
        remedy = f"end that session at {database!r} (SELECT pg_terminate_backend(pid), pid {pids}), then: {at.compare}"
        found.append(at.finding("rogue-writer", "critical", f"sessions at the {side}", text, remedy))
    if rows := await writers.captured(connection, at.service):
        text = f"{rows} changes were written at the {side} ({database!r}), which is not the writable side"
        found.append(at.finding("rogue-writer", "critical", f"rows at the {side}", text, at.compare))
    refused = await epoch.refused(connection, at.service)
    if refused is not None:
        # in a switch both sides refuse for a moment: what was counted until its end is no news
        life = f"{at.now.epoch}/{at.now.token}"
        noted = await notes.note(at.control, at.pair.migration, at.service, f"refused at the {side}", life, refused)
        if noted.rose is not None and noted.rose < REFUSED_FOR:
            text = (
                f"the fence of the {side} ({database!r}) refused writes of an application, the last ones within "
                f"{noted.rose:.0f} s"
            )
            remedy = (
                f"find the application whose log has SQLSTATE {epoch.FENCED_SQLSTATE}, and let it follow the route "
                f"(cutover fleet {at.pair.migration})"
            )
            found.append(at.finding("rogue-writer", "warning", f"refused at the {side}", text, remedy))
    return found
