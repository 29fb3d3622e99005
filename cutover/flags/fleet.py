"""Who runs which version where, and whether it follows the route of now: what `cutover fleet` shows."""

from dataclasses import dataclass
from datetime import datetime

from cutover.control.database import Control
from cutover.flags.instances import Instance


@dataclass(frozen=True)
class Member:
    """One instance of an application, for one service; ages in seconds by the control database's clock."""

    service: str
    instance: Instance
    #: Seconds that the lease still runs; below zero: ran out so long ago.
    lease_left: float
    seen_ago: float
    started_at: datetime
    #: What the instance follows with every new request.
    epoch: int
    revision: int
    pause_acked: str | None
    #: The route of now; 0 for a service that has no flags yet.
    route_epoch: int
    route_revision: int

    @property
    def live(self) -> bool:
        return self.lease_left > 0

    @property
    def behind(self) -> bool:
        """Whether it has not acknowledged the route of now. One that was just changed is acknowledged in moments."""
        return self.revision < self.route_revision or self.epoch < self.route_epoch


async def members(control: Control, migration: str, service: str | None = None) -> list[Member]:
    """Every instance that is known, live or not; those that left in good order are not."""
    rows = await control.fetch(
        "SELECT i.*, extract(epoch FROM i.lease_until - now.at)::float8 AS lease_left,"
        "  extract(epoch FROM now.at - i.seen_at)::float8 AS seen_ago,"
        "  coalesce(r.epoch, 0) AS route_epoch, coalesce(r.revision, 0) AS route_revision"
        " FROM (SELECT clock_timestamp() AS at) AS now, control.instance i"
        " LEFT JOIN control.standing_route r USING (migration, service)"
        " WHERE i.migration = $1 AND ($2::text IS NULL OR i.service = $2) ORDER BY i.service, i.application, i.id",
        migration,
        service,
    )
    return [
        Member(
            row["service"],
            Instance(row["id"], row["host"], row["pid"], row["application"], row["version"]),
            row["lease_left"],
            row["seen_ago"],
            row["started_at"],
            row["epoch_acked"],
            row["revision_acked"],
            row["pause_acked"],
            row["route_epoch"],
            row["route_revision"],
        )
        for row in rows
    ]
