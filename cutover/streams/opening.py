"""Which implementation a plan's `stream` names."""

from cutover.errors import Refused
from cutover.postgres.databases import Direction, Pair
from cutover.streams.base import Stream
from cutover.streams.logical import LogicalStream


def open_stream(pair: Pair, direction: Direction, kind: str) -> LogicalStream:
    """The stream of that kind for one direction. Raises Refused for a kind that this version lacks."""
    if kind != "logical":
        raise Refused(f"{pair.service}: stream {kind!r} is not in this version; set `stream: logical` in the plan")
    return LogicalStream(pair, direction)


__all__ = ["Stream", "open_stream"]
