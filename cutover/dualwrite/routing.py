"""Which side an operation goes to, given one snapshot of its service's route."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cutover.flags.share import bucket
from cutover.flags.store import Route
from cutover.monitor import statistics
from cutover.postgres.databases import Side

#: `read_your_writes` goes where writes are; `stale_ok` may be answered by the side that only follows.
ReadClass = Literal["read_your_writes", "stale_ok"]
Operation = Literal["read", "write"]


@dataclass(frozen=True)
class Access:
    """What an operation wants of a service."""

    operation: Operation
    read: ReadClass = "read_your_writes"
    #: Of a `stale_ok` read, 0 to 99: it goes to the new side at every percentage above.
    bucket: int = 99

    @property
    def measured(self) -> statistics.Operation:
        """Under which name it is counted."""
        return "stale_read" if self.stale_ok else self.operation

    @property
    def stale_ok(self) -> bool:
        """Such reads are never held: either side answers them truly enough, during a switch too."""
        return self.operation == "read" and self.read == "stale_ok"


WRITE = Access("write")
READ = Access("read")


def reading(service: str, read: ReadClass, key: object = None) -> Access:
    """What a read wants; a `stale_ok` one with the same key stays on one side while a share grows."""
    return READ if read == "read_your_writes" else Access("read", read, bucket(service, key))


def side_for(route: Route, access: Access, *, mirrored: bool = False) -> Side:
    """Writes and the reads that must see them: the primary. Others: the service, for the share that the flag names.

    `mirrored`: the other side has all that this process has written. Then reads that must see it follow the read flag.
    """
    if access.stale_ok:
        return "service" if access.bucket < route.percentage else "monolith"
    if mirrored and route.read_from_new and access.operation == "read":
        return "service"
    return route.primary_side


def before_preparation(migration: str, service: str) -> Route:
    """The route of a service whose migration has not made its flags yet: everything is at the monolith."""
    return Route(
        migration=migration,
        service=service,
        epoch=0,
        primary_side="monolith",
        read_from_new=False,
        write_to_new_primary=False,
        pause_id=None,
        pause_started_at=None,
        pause_limit_ms=None,
        revision=0,
        changed_at=datetime.fromtimestamp(0, UTC),
    )
