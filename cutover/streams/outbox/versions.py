"""Versions of a source that was set back: a standby that was promoted without the last commits, a restored backup.

Its sequence stands below versions that the sink has seen of what was lost. What it drew from there on would not be
newer than those, so a relay would drop the change and forget its intent.
"""

import asyncpg

from cutover.postgres import outbox_capture, outbox_sink, outbox_versions


async def raise_over_sink(source: asyncpg.Connection, sink: asyncpg.Connection, service: str) -> None:
    """Versions drawn at the source from here on are above all that the sink knows. Nothing where they are already.

    What was drawn below before may have been dropped: passes find such rows, and a server that is accepted needs new
    ones of every table.
    """
    highest = await outbox_sink.highest_version(sink, service)
    if await outbox_versions.last_version(source, service) < highest:
        await outbox_capture.raise_above(source, service, highest)
