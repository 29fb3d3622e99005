"""Which implementation a service of a plan asks for."""

from typing import assert_never

from cutover.errors import Refused
from cutover.plan.models import Service
from cutover.postgres.databases import Direction, Pair
from cutover.streams.base import Stream
from cutover.streams.logical import LogicalStream
from cutover.streams.outbox.stream import OutboxStream


def open_stream(pair: Pair, direction: Direction, service: Service) -> Stream:
    """The service's stream of one direction. Raises Refused for a kind that this version lacks."""
    match service.stream:
        case "logical":
            return LogicalStream(pair, direction)
        case "outbox":
            best_effort = service.consistency == "best_effort"
            return OutboxStream(pair, direction, truncate=service.truncate, best_effort=best_effort)
        case "kafka":
            raise Refused(f"{pair.service}: stream 'kafka' is not in this version; set `stream: logical` in the plan")
        case _:
            assert_never(service.stream)


__all__ = ["Stream", "open_stream"]
