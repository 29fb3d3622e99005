"""Instances of the applications: a lease each, and what they have acknowledged.

A lease runs by the control database's clock. An instance whose lease has run out is not waited for: from then on it
checks the local epoch row with each read, and the fences decide on its writes. An instance renews every
`RENEW_EVERY` and counts its own lease from *before* it sent the renewal.
"""

import asyncio
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
    """An instance whose lease has not run out, and what it has acknowledged."""

    instance: Instance
    lease_until: datetime
    revision_acked: int
    pause_acked: str | None


@dataclass(frozen=True)
class Acks:
    """How a wait ended: instances that acknowledged, and instances whose lease ran out instead."""

    acked: int
    lapsed: int


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
        "  VALUES ($1, $2, $3, clock_timestamp() + $4::interval, $5, $6, $7, $8, $9, $10, $11, clock_timestamp())"
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


async def forget_lapsed(control: Control, migration: str, older_than: timedelta = timedelta(hours=1)) -> int:
    """Remove instances whose lease ran out that long ago; how many."""
    removed: int = await control.fetchval(
        "WITH gone AS (DELETE FROM control.instance"
        " WHERE migration = $1 AND lease_until < clock_timestamp() - $2::interval RETURNING 1)"
        " SELECT count(*) FROM gone",
        migration,
        older_than,
    )
    return removed


async def live(control: Control, migration: str, service: str) -> list[LiveInstance]:
    """Instances whose lease has not run out, by the control database's clock."""
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
    """Ids of live instances that have not acknowledged the revision, or the pause, that is named."""
    async with control.connection() as connection:
        waiting, _ = await _look(connection, migration, service, revision, pause_id)
    return sorted(waiting)


async def await_acknowledged(
    control: Control,
    migration: str,
    service: str,
    *,
    revision: int | None = None,
    pause_id: str | None = None,
    timeout: timedelta,
) -> Acks:
    """Wait until every live instance has acknowledged, or its lease has run out.

    Raises NotYet, which names the instances still waited for, after `timeout`.
    """
    deadline = asyncio.get_running_loop().time() + timeout.total_seconds()
    news = asyncio.Event()
    payload = f"{migration}/{service}"

    def heard(_connection: Any, _pid: int, _channel: str, text: object) -> None:
        if text == payload:
            news.set()

    waited_for: set[str] = set()
    async with control.connection() as connection:
        await connection.add_listener(CHANNEL, heard)
        try:
            while True:
                news.clear()
                waiting, acked = await _look(connection, migration, service, revision, pause_id)
                waited_for |= waiting
                if not waiting:
                    return Acks(acked=len(acked), lapsed=len(waited_for - acked))
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    what = f"pause {pause_id!r}" if pause_id is not None else f"revision {revision}"
                    raise NotYet(
                        f"{service}: {len(waiting)} live instance(s) have not acknowledged {what} within "
                        f"{timeout.total_seconds():g} s: {', '.join(sorted(waiting)[:5])}"
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


async def _look(
    connection: Connection, migration: str, service: str, revision: int | None, pause_id: str | None
) -> tuple[set[str], set[str]]:
    """(live and still to acknowledge, acknowledged whether live or not)."""
    if (revision is None) == (pause_id is None):
        raise ValueError("name either a revision or a pause")
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT id, lease_until > clock_timestamp() AS live,"
        " CASE WHEN $4::text IS NULL THEN revision_acked >= $3::bigint"
        "  ELSE pause_acked IS NOT DISTINCT FROM $4 END AS acked"
        " FROM control.instance WHERE migration = $1 AND service = $2",
        migration,
        service,
        revision,
        pause_id,
    )
    waiting = {row["id"] for row in rows if row["live"] and not row["acked"]}
    return waiting, {row["id"] for row in rows if row["acked"]}
