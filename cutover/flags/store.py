"""The flag store: per service one row that says where it reads and writes, and whether it is paused.

One update of the row is one atomic snapshot for every instance. Each change bumps the revision, is
notified on `cutover_route` with the payload `<migration>/<service>` and leaves an audit row, all in
one transaction. The databases' fences decide on writes; this row only tells instances where to go.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import asyncpg

from cutover.control import audit, switches
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.control.switches import SwitchRow
from cutover.errors import Conflict, Refused
from cutover.postgres.databases import Side

#: LISTEN on this channel to hear of changes.
CHANNEL = "cutover_route"

_COLUMNS = (
    "migration, service, epoch, primary_side, read_from_new, write_to_new_primary, pause_id, pause_started_at,"
    " pause_limit_ms, revision, changed_at, percentage"
)
_SELECT = f"SELECT {_COLUMNS} FROM control.route"  # noqa: S608 (constant text)
_STANDING = f"SELECT {_COLUMNS} FROM control.standing_route"  # noqa: S608 (constant text)


@dataclass(frozen=True)
class Route:
    """Where a service reads and writes, at one revision."""

    migration: str
    service: str
    #: Rises at each change of the writable side; 0 before the first.
    epoch: int
    primary_side: Side
    read_from_new: bool
    write_to_new_primary: bool
    #: The pause that is announced or running; None outside of one.
    pause_id: str | None
    pause_started_at: datetime | None
    pause_limit_ms: int | None
    #: Rises at each change of the row, pauses included.
    revision: int
    changed_at: datetime
    #: Share (0 to 100) of the `stale_ok` reads at the service database; `read_from_new` says that it is all of them.
    percentage: int = 0

    @property
    def paused(self) -> bool:
        return self.pause_id is not None

    @property
    def flags(self) -> dict[str, bool | int]:
        """The flags under the names of the migration strategy: two switches, and the share of the reads."""
        return {
            f"{self.service}_read_from_new": self.read_from_new,
            f"{self.service}_write_to_new_primary": self.write_to_new_primary,
            f"{self.service}_percentage": self.percentage,
        }


def route_from(row: asyncpg.Record) -> Route:
    """The dataclass of a row of `control.route`."""
    return Route(
        migration=row["migration"],
        service=row["service"],
        epoch=row["epoch"],
        primary_side=cast(Side, row["primary_side"]),
        read_from_new=row["read_from_new"],
        write_to_new_primary=row["write_to_new_primary"],
        pause_id=row["pause_id"],
        pause_started_at=row["pause_started_at"],
        pause_limit_ms=row["pause_limit_ms"],
        revision=row["revision"],
        changed_at=row["changed_at"],
        percentage=row["percentage"],
    )


async def find(control: Control, migration: str, service: str) -> Route | None:
    """The route, or None before `ensure`. After `drop` it is the last one, for good."""
    row = await control.fetchrow(f"{_STANDING} WHERE migration = $1 AND service = $2", migration, service)
    return route_from(row) if row else None


async def get(control: Control, migration: str, service: str) -> Route:
    """The route. Raises Refused before `ensure`."""
    route = await find(control, migration, service)
    if route is None:
        raise _missing(migration, service)
    return route


async def all(control: Control, migration: str) -> dict[str, Route]:
    """Every route of the migration by its service, those without flags any more among them."""
    rows = await control.fetch(f"{_STANDING} WHERE migration = $1 ORDER BY service", migration)
    return {row["service"]: route_from(row) for row in rows}


async def migrations(control: Control) -> list[str]:
    """The migrations that have flags, or had them until their cleanup."""
    rows = await control.fetch("SELECT DISTINCT migration FROM control.standing_route ORDER BY migration")
    return [row["migration"] for row in rows]


async def ensure(
    control: Control, migration: str, service: str, *, epoch: int = 0, actor: str = "preparation"
) -> Route:
    """The route; made, with everything at the monolith, if it is not there. Never changes one that is there.

    A service whose flags were removed keeps its last route, and gets no flags again.
    """
    async with control.transaction() as connection:
        made = await connection.fetchval(
            "INSERT INTO control.route (migration, service, epoch) SELECT $1, $2, $3"
            " WHERE NOT EXISTS (SELECT FROM control.final_route WHERE migration = $1 AND service = $2)"
            " ON CONFLICT DO NOTHING RETURNING 1",
            migration,
            service,
            epoch,
        )
        if made:
            await audit.append(connection, Entry(actor, "route.created", migration, service, {"epoch": epoch}))
    return await get(control, migration, service)


async def set_read_from_new(
    control: Control, migration: str, service: str, value: bool, *, actor: str, reason: str = ""
) -> Route:
    """Move all `stale_ok` reads to the new side, or all of them back. Idempotent.

    Raises Refused while the writes are at the new side and the reads would leave it: reads move with writes then.
    """
    return await set_percentage(control, migration, service, 100 if value else 0, actor=actor, reason=reason)


async def set_percentage(
    control: Control, migration: str, service: str, value: int, *, actor: str, reason: str = ""
) -> Route:
    """Send that share (0 to 100) of the `stale_ok` reads to the new side; at 100 `read_from_new` is true. Idempotent.

    A flip of the writes takes all reads with it: 100 at the service, 0 after a rollback. The audit row keeps `reason`
    and is named `route.read_from_new` where that flag turns.
    Raises Refused for a share out of range, and for less than 100 while the writes are at the new side.
    """
    if not 0 <= value <= 100:
        raise Refused(f"{service}: {value} is no share of the reads: 0 to 100 percent")
    all_of_them = value == 100
    async with control.transaction() as connection:
        route = await _locked(connection, migration, service)
        if route.percentage == value:
            return route
        if route.write_to_new_primary:
            raise Refused(
                f"{service}: writes are at the service database (epoch {route.epoch}), so reads stay "
                "there: roll the switch back instead"
            )
        row = await connection.fetchrow(
            "UPDATE control.route SET percentage = $3, read_from_new = $4"  # noqa: S608
            f" WHERE migration = $1 AND service = $2 RETURNING {_COLUMNS}",
            migration,
            service,
            value,
            all_of_them,
        )
        detail: dict[str, object] = {"from": route.percentage, "to": value, "reason": reason}
        action = "route.percentage"
        if route.read_from_new != all_of_them:
            # a soak is counted from this row on
            action, detail["value"] = "route.read_from_new", all_of_them
        await audit.append(connection, Entry(actor, action, migration, service, detail))
    return _changed(row, migration, service)


async def announce_pause(
    control: Control,
    migration: str,
    service: str,
    pause_id: str,
    limit: timedelta,
    *,
    actor: str = "switch",
    switch: SwitchRow | None = None,
) -> Route:
    """Ask every instance to let its transactions end and to hold new ones, for at most `limit`. Idempotent.

    `switch` is the row of the attempt that asks: an attempt that slept while a newer one ended its switch would
    announce a pause that nobody lifts, so it gets StaleAttempt.
    Raises Conflict while another pause of the service stands and its limit has not passed; one that was left behind
    (its limit passed, by the control database's clock) is replaced. A pause whose limit passed is over for the
    instances, though they have acknowledged it: announcing it again is a Conflict too; lift it, or take a new id.
    """
    limit_ms = int(limit / timedelta(milliseconds=1))
    if not pause_id or limit_ms <= 0:
        raise Refused(f"{service}: a pause needs an id and a limit above zero (got {limit_ms} ms)")
    async with control.transaction() as connection:
        if switch is not None:
            await switches.hold(connection, switch)
        route = await _locked(connection, migration, service)
        if route.pause_id == pause_id:
            if await connection.fetchval(
                "SELECT $1::timestamptz + $2::bigint * interval '1 millisecond' < clock_timestamp()",
                route.pause_started_at,
                route.pause_limit_ms,
            ):
                raise Conflict(f"{service}: the limit of pause {pause_id!r} has passed; lift it and announce a new one")
            return route
        row = await connection.fetchrow(
            "UPDATE control.route SET pause_id = $3, pause_started_at = clock_timestamp(), pause_limit_ms = $4"  # noqa: S608
            " WHERE migration = $1 AND service = $2 AND (pause_id IS NULL"
            "   OR pause_started_at + pause_limit_ms * interval '1 millisecond' < clock_timestamp())"
            f" RETURNING {_COLUMNS}",
            migration,
            service,
            pause_id,
            limit_ms,
        )
        if row is None:
            raise Conflict(
                f"{service}: pause {route.pause_id!r} is announced already; wait until it is lifted or its limit "
                f"of {route.pause_limit_ms} ms has passed"
            )
        detail = {"pause_id": pause_id, "limit_ms": limit_ms, "replaced": route.pause_id}
        await audit.append(connection, Entry(actor, "route.pause_announced", migration, service, detail))
    return route_from(row)


async def pause_age(control: Control, migration: str, service: str, pause_id: str) -> float:
    """Milliseconds since that pause was announced, by the control database's clock; 0 where it does not stand."""
    age = await control.fetchval(
        "SELECT extract(epoch FROM clock_timestamp() - pause_started_at) * 1000 FROM control.route "
        "WHERE migration = $1 AND service = $2 AND pause_id = $3",
        migration,
        service,
        pause_id,
    )
    return round(float(age or 0), 2)


async def lift_pause(control: Control, migration: str, service: str, pause_id: str, *, actor: str = "switch") -> Route:
    """End the pause, if it is this one; any other is left alone. Idempotent."""
    async with control.transaction() as connection:
        row = await connection.fetchrow(
            "UPDATE control.route SET pause_id = NULL, pause_started_at = NULL, pause_limit_ms = NULL"  # noqa: S608
            f" WHERE migration = $1 AND service = $2 AND pause_id = $3 RETURNING {_COLUMNS}",
            migration,
            service,
            pause_id,
        )
        if row is not None:
            await audit.append(
                connection, Entry(actor, "route.pause_lifted", migration, service, {"pause_id": pause_id})
            )
            return route_from(row)
    return await get(control, migration, service)


async def flip(
    control: Control, migration: str, service: str, *, primary_side: Side, epoch: int, actor: str, pause_id: str | None
) -> None:
    """Send writes, and reads with them, to `primary_side` at `epoch`, and end the pause: one round trip.

    Idempotent where the epoch is there already. Raises Refused for a lower epoch, Conflict where this epoch
    belongs to the other side.
    """
    row = await control.fetchrow(
        "SELECT outcome, current_epoch, current_side FROM control.flip_route($1, $2, $3, $4, $5, $6, $7)",
        migration,
        service,
        primary_side,
        epoch,
        actor,
        pause_id,
        audit.trace_id(),
    )
    outcome = row["outcome"] if row else "missing"
    if row is None or outcome == "missing":
        raise _missing(migration, service)
    if outcome == "lower":
        raise Refused(
            f"{service}: the flags are at epoch {row['current_epoch']} ({row['current_side']}); "
            f"a flip to epoch {epoch} is out of date"
        )
    if outcome == "other-side":
        raise Conflict(
            f"{service}: epoch {epoch} already belongs to {row['current_side']}, not to {primary_side}; "
            "draw a new epoch"
        )


async def left(control: Control, migration: str) -> list[str]:
    """The services of the migration that still have flags."""
    rows = await control.fetch("SELECT service FROM control.route WHERE migration = $1 ORDER BY service", migration)
    return [row["service"] for row in rows]


async def drop(control: Control, migration: str, service: str, *, actor: str) -> None:
    """Remove the flags at cleanup; their last route stands for good. Idempotent. Raises Refused while a pause stands.

    One transaction: an instance that asks at any moment is told where the service is.
    """
    async with control.transaction() as connection:
        row = await connection.fetchrow(
            f"{_SELECT} WHERE migration = $1 AND service = $2 FOR UPDATE", migration, service
        )
        if row is None:
            return
        if row["pause_id"] is not None:
            raise Refused(f"{service}: a pause stands; the flags can be removed after it")
        await connection.execute(
            "INSERT INTO control.final_route (migration, service, epoch, primary_side, revision)"
            " VALUES ($1, $2, $3, $4, $5)",
            migration,
            service,
            row["epoch"],
            row["primary_side"],
            row["revision"],
        )
        await connection.execute("DELETE FROM control.route WHERE migration = $1 AND service = $2", migration, service)
        detail = {"epoch": row["epoch"], "primary_side": row["primary_side"]}
        await audit.append(connection, Entry(actor, "route.dropped", migration, service, detail))


async def _locked(connection: Connection, migration: str, service: str) -> Route:
    row = await connection.fetchrow(f"{_SELECT} WHERE migration = $1 AND service = $2 FOR UPDATE", migration, service)
    return _changed(row, migration, service)


def _changed(row: asyncpg.Record | None, migration: str, service: str) -> Route:
    if row is None:
        raise _missing(migration, service)
    return route_from(row)


def _missing(migration: str, service: str) -> Refused:
    return Refused(f"{migration}/{service} has no flags yet: run Preparation (or `cutover plan register`) first")
