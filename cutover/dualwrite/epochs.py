"""The databases' own word on where a service is writable, for the time when the control database has none.

The fence's transaction changes the epoch row of the side that stops being the primary. So a snapshot in
which that row still names this side is a snapshot from before the switch, and every read in it is good.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutover.dualwrite.connections import Pools
from cutover.errors import CutoverError
from cutover.flags.store import Route
from cutover.postgres import epoch as epochs
from cutover.postgres.databases import NOT_CONNECTED, Database, Side

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

_log = logging.getLogger(__name__)

#: Seconds that looking at one side may take.
LOOK_TIMEOUT = 1.0


class Moved(CutoverError):
    """This side is not, or not surely, the writable one any more; the caller looks for the route again."""


@dataclass(frozen=True)
class Writable:
    """A side that says of itself that it is the writable one."""

    side: Side
    epoch: int


async def writable_here(connection: "Connection", route: Route, side: Side) -> int:
    """The local epoch, if this database says in the present snapshot that it is the writable one. Raises Moved.

    Before Preparation there is no epoch row; then only the monolith can be the writable side. After cleanup there is
    none any more; a service's row goes only once its way back was given up, so a route to it holds for good.
    """
    known = await epochs.read(connection, route.service)  # type: ignore[arg-type]  # a pool's proxy is a connection
    if known is None:
        if (side == "monolith" and route.epoch == 0) or (side == route.primary_side == "service" and route.epoch > 0):
            return route.epoch
        raise Moved(f"{route.service}: {side} has no epoch row, so it cannot be told whether it is the writable side")
    if not known.side == known.primary_side == side:
        raise Moved(f"{route.service}: {side} is not the writable side (epoch {known.epoch})")
    return known.epoch


async def find_writable(pools: Pools, service: str, databases: dict[Side, Database]) -> Writable | None:
    """Asks both databases; None where neither says that it is the writable one (a pause, or out of reach)."""
    found: list[Writable] = []
    for side, database in databases.items():
        try:
            connection = await pools.acquire(database, LOOK_TIMEOUT)
            try:
                known = await epochs.read(connection, service)  # type: ignore[arg-type]
            finally:
                await pools.release(database, connection)
        except (*NOT_CONNECTED, CutoverError) as error:
            _log.debug("%s: epoch row at %s could not be read: %s", service, database.name, type(error).__name__)
            continue
        if known is not None and known.side == known.primary_side == side:
            found.append(Writable(side, known.epoch))
    return max(found, key=lambda writable: writable.epoch, default=None)
