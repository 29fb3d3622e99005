"""Instances of the applications: a lease each, and what they have acknowledged.

An instance renews its lease every `RENEW_EVERY` and counts it from *before* it sent the renewal. Once it has run out
the instance checks the local epoch row with each read, the fences decide on its writes, and nobody waits for it.

Whoever waits measures that by a clock of its own, from when it first saw a row as it is (`Leases`). The control
database's clock may jump, and a live instance that is not waited for would read what is stale; it says no more than
whom to look at twice.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from cutover.control.audit import Connection
from cutover.control.database import Control
from cutover.errors import NotYet
from cutover.flags.store import Route, route_from

LEASE = timedelta(seconds=2)
RENEW_EVERY = timedelta(seconds=0.5)
#: Notified, with the payload `<migration>/<service>`, when an instance acknowledges something new.
CHANNEL = "cutover_ack"
#: Seconds between two looks while acknowledgements are awaited; a notification cuts it short.
POLL = 0.02
_SETTLE_POLL = 0.1


@dataclass(frozen=True)
class Instance:
    """A running process of an application, for one service."""

    id: str
    host: str = ""
    pid: int = 0
    application: str = ""
    #: Of the application, as it says of itself.
    version: str = ""


@dataclass(frozen=True)
class LiveInstance:
    """An instance whose lease seems not to have run out, and what it has acknowledged."""

    instance: Instance
    lease_until: datetime
    revision_acked: int
    pause_acked: str | None


@dataclass(frozen=True)
class Acks:
    """How a wait ended: instances that acknowledged, and instances whose lease ran out instead."""

    acked: int
    lapsed: int


class Leases:
    """Of one service: who has renewed since it was last looked at, by the clock of this process that cannot be set."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}

    def run_out(self, row: asyncpg.Record) -> bool:
        """Whether the instance's row (`id`, `version`, `lease`) has stayed as it is for as long as its lease."""
        now = time.monotonic()
        version, since = self._seen.get(row["id"], ("", 0.0))
        if version != row["version"]:
            self._seen[row["id"]] = row["version"], (since := now)
        lease: timedelta = row["lease"]
        return now - since >= lease.total_seconds()

    async def settle(self, control: Control, migration: str, service: str) -> None:
        """Before a pause: looks at all, and at who seems to be gone until that is certain, at most for a lease."""
        async with control.connection() as connection:
            while True:
                rows = await _rows(connection, migration, service)
                gone = [self.run_out(row) for row in rows]
                if all(row["live"] or lapsed for row, lapsed in zip(rows, gone, strict=True)):
                    return
                await asyncio.sleep(_SETTLE_POLL)


async def renew(
    control: Control,
    instance: Instance,
    migration: str,
    service: str,
    revision: int,
    pause_acked: str | None = None,
    lease: timedelta = LEASE,
    *,
    epoch: int = 0,
) -> Route | None:
    """Renew the lease and say what is acknowledged: one upsert, which also returns the route of now (None: no flags).

    `revision` is the newest revision of the route that this instance follows with every new request, `epoch` the one
    that it writes under; `pause_acked` is the pause for which none of its transactions is open any more.
    """
    row = await control.fetchrow(
        "WITH renewed AS ("
        "  INSERT INTO control.instance (migration, service, id, lease_until, revision_acked, pause_acked, host, pid,"
        "    application, version, epoch_acked, seen_at)"
        "  VALUES ($1, $2, $3, statement_timestamp() + $4::interval, $5, $6, $7, $8, $9, $10, $11,"
        "    statement_timestamp())"
        "  ON CONFLICT (migration, service, id) DO UPDATE SET lease_until = excluded.lease_until,"
        "    revision_acked = excluded.revision_acked, pause_acked = excluded.pause_acked, host = excluded.host,"
        "    pid = excluded.pid, application = excluded.application, version = excluded.version,"
        "    epoch_acked = excluded.epoch_acked, seen_at = excluded.seen_at"
        ") SELECT migration, service, epoch, primary_side, read_from_new, write_to_new_primary, pause_id,"
        "  pause_started_at, pause_limit_ms, revision, changed_at, percentage"
        " FROM control.route WHERE migration = $1 AND service = $2",
        migration,
        service,
        instance.id,
        lease,
        revision,
        pause_acked,
        instance.host,
        instance.pid,
        instance.application,
        instance.version,
        epoch,
    )
    return route_from(row) if row else None


async def leave(control: Control, instance: Instance, migration: str, service: str) -> None:
    """The instance ends in good order: nobody waits for it any more. Idempotent."""
    await control.execute(
        "DELETE FROM control.instance WHERE migration = $1 AND service = $2 AND id = $3",
        migration,
        service,
        instance.id,
    )


async def long_lapsed(
    control: Control, migration: str, older_than: timedelta = timedelta(hours=1)
) -> list[tuple[str, str, str]]:
    """(service, id, version) of instances whose lease ran out that long ago, by the control database's clock."""
    rows = await control.fetch(
        "SELECT service, id, xmin::text AS version FROM control.instance"
        " WHERE migration = $1 AND lease_until < clock_timestamp() - $2::interval",
        migration,
        older_than,
    )
    return [(row["service"], row["id"], row["version"]) for row in rows]


async def forget(control: Control, migration: str, lapsed: Sequence[tuple[str, str, str]]) -> int:
    """Remove those that have not renewed since `long_lapsed` found them; how many."""
    removed: int = await control.fetchval(
        "WITH gone AS (DELETE FROM control.instance AS i"
        " USING unnest($2::text[], $3::text[], $4::text[]) AS l (service, id, version)"
        " WHERE i.migration = $1 AND i.service = l.service AND i.id = l.id AND i.xmin::text = l.version RETURNING 1)"
        " SELECT count(*) FROM gone",
        migration,
        *map(list, zip(*lapsed, strict=True)) if lapsed else ([], [], []),
    )
    return removed


async def live(control: Control, migration: str, service: str) -> list[LiveInstance]:
    """For people: instances whose lease has not run out, by the control database's clock."""
    rows = await control.fetch(
        "SELECT id, host, pid, application, version, lease_until, revision_acked, pause_acked FROM control.instance"
        " WHERE migration = $1 AND service = $2 AND lease_until > clock_timestamp() ORDER BY id",
        migration,
        service,
    )
    return [
        LiveInstance(
            Instance(row["id"], row["host"], row["pid"], row["application"], row["version"]),
            row["lease_until"],
            row["revision_acked"],
            row["pause_acked"],
        )
        for row in rows
    ]


async def unacknowledged(
    control: Control, migration: str, service: str, *, revision: int | None = None, pause_id: str | None = None
) -> list[str]:
    """Ids of instances that seem to live and have not acknowledged the revision, or the pause, that is named."""
    acknowledged = _acknowledged(revision, pause_id)
    async with control.connection() as connection:
        rows = await _rows(connection, migration, service)
    return sorted(row["id"] for row in rows if row["live"] and not acknowledged(row))


async def await_acknowledged(
    control: Control,
    migration: str,
    service: str,
    *,
    revision: int | None = None,
    pause_id: str | None = None,
    timeout: timedelta,
    leases: Leases | None = None,
) -> Acks:
    """Wait until every instance has acknowledged, or its lease has run out.

    `leases`: what is known of them already, so that it need not be waited for again.
    Raises NotYet, which names the instances still waited for, after `timeout`.
    """
    deadline = asyncio.get_running_loop().time() + timeout.total_seconds()
    news = asyncio.Event()
    payload = f"{migration}/{service}"
    acknowledged, leases = _acknowledged(revision, pause_id), leases or Leases()

    def heard(_connection: Any, _pid: int, _channel: str, text: object) -> None:
        if text == payload:
            news.set()

    waited_for: set[str] = set()
    async with control.connection() as connection:
        await connection.add_listener(CHANNEL, heard)
        try:
            while True:
                news.clear()
                rows = await _rows(connection, migration, service)
                acked = {row["id"] for row in rows if acknowledged(row)}
                waiting = {row["id"] for row in rows if not leases.run_out(row)} - acked
                waited_for |= waiting
                if not waiting:
                    return Acks(acked=len(acked), lapsed=len(waited_for - acked))
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    what = f"pause {pause_id!r}" if pause_id is not None else f"revision {revision}"
                    raise NotYet(
                        f"{service}: {len(waiting)} live instance(s) have not acknowledged {what} within "
                        f"{timeout.total_seconds():g} s: {', '.join(sorted(waiting)[:5])} "
                        f"(cutover fleet {migration} shows them)"
                    )
                await _first_of(news, min(POLL, left))
        finally:
            if not connection.is_closed():
                await connection.remove_listener(CHANNEL, heard)


async def _first_of(news: asyncio.Event, seconds: float) -> None:
    """Wait for news or that long, whatever comes first."""
    waiter = asyncio.ensure_future(news.wait())
    try:
        await asyncio.wait({waiter}, timeout=seconds)
    finally:
        waiter.cancel()


def _acknowledged(revision: int | None, pause_id: str | None) -> Callable[[asyncpg.Record], bool]:
    """Whether the instance of a row has acknowledged what is named."""
    if (revision is None) == (pause_id is None):
        raise ValueError("name either a revision or a pause")
    if revision is not None:
        return lambda row: bool(row["revision_acked"] >= revision)
    return lambda row: bool(row["pause_acked"] == pause_id)


async def _rows(connection: Connection, migration: str, service: str) -> list[asyncpg.Record]:
    """`version` is another one after each renewal. `live`: by the control database's clock, if that went right."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT id, xmin::text AS version, lease_until - seen_at AS lease, revision_acked, pause_acked,"
        " lease_until > clock_timestamp() AND seen_at <= clock_timestamp() AS live"
        " FROM control.instance WHERE migration = $1 AND service = $2",
        migration,
        service,
    )
    return rows
