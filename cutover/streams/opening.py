"""Which implementation a plan's `stream` names."""

from typing import Literal, overload

from cutover.errors import Refused
from cutover.postgres.databases import Direction, Pair
from cutover.streams.base import Stream
from cutover.streams.logical import LogicalStream
from cutover.streams.outbox.stream import OutboxStream


@overload
def open_stream(pair: Pair, direction: Direction, kind: Literal["logical"]) -> LogicalStream: ...
@overload
def open_stream(pair: Pair, direction: Direction, kind: Literal["outbox"]) -> OutboxStream: ...
@overload
def open_stream(pair: Pair, direction: Direction, kind: str) -> Stream: ...


def open_stream(pair: Pair, direction: Direction, kind: str) -> Stream:
    """The stream of that kind for one direction. Raises Refused for a kind that this version lacks."""
    match kind:
        case "logical":
            return LogicalStream(pair, direction)
        case "outbox":
            return OutboxStream(pair, direction)
        case _:
            raise Refused(f"{pair.service}: stream {kind!r} is not in this version; set `stream: logical` in the plan")


__all__ = ["Stream", "open_stream"]
