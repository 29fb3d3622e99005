"""The truth of a switch, in one row of the control database (design 5.6).

Each change is a compare-and-set on state and token under the row's lock. An answer that is lost is
read back by `settled`, which waits for whatever is still in flight.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import asyncpg

from cutover.control import audit, documents, plans
from cutover.control.audit import Connection, Entry
from cutover.control.database import Control
from cutover.errors import GateClosed, StaleAttempt
from cutover.postgres.databases import Side

SwitchState = Literal["idle", "fencing", "fenced", "undoing", "undone", "journaled", "done"]
STATES: tuple[str, ...] = get_args(SwitchState)
#: States in which a switch is neither begun nor left half done.
SETTLED: frozenset[str] = frozenset({"idle", "undone", "done"})


@dataclass(frozen=True)
class SwitchRow:
    migration: str
    service: str
    switch_id: str
    token: int
    state: SwitchState
    from_side: Side
    to_side: Side
    from_epoch: int
    to_epoch: int
    plan_hash: str
    detail: dict[str, Any]


_COLUMNS = (
    "migration, service, switch_id, token, state, from_side, to_side, from_epoch, to_epoch, plan_hash, detail::text"
)


#: One statement, so that state, audit row and outcome cost the write pause one round trip and one flush.
_ADVANCE = f"""
WITH moved AS (
    UPDATE control.switch SET state = $4, detail = detail || $5::text::jsonb, changed_at = clock_timestamp()
    WHERE migration = $1 AND service = $2 AND token = $3 AND switch_id = $6 AND state = ANY ($7::text[])
    RETURNING {_COLUMNS}
), ended AS (
    INSERT INTO control.switch_outcome (switch_id, migration, service, outcome)
    SELECT switch_id, migration, service, $8::text::jsonb FROM moved WHERE $8::text IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT moved.*, control.append_audit('cutover', 'switch.' || $4, $1, $2, $9::text::jsonb, $10) AS audited FROM moved
"""  # noqa: S608


def _row(record: asyncpg.Record) -> SwitchRow:
    values = {name: value for name, value in record.items() if name != "audited"}
    values["detail"] = json.loads(values["detail"])
    return SwitchRow(**values)


async def raise_token(
    control: Control, migration: str, service: str, states: Collection[str] = STATES
) -> SwitchRow | None:
    """Draws the next attempt's token, audited; the row as it is now, with that token. State is left alone.

    None where the switch is in none of `states`: then no attempt of it is overtaken.
    """
    async with control.transaction() as connection:
        return await _raise_token(connection, migration, service, states)


async def _raise_token(
    connection: Connection, migration: str, service: str, states: Collection[str]
) -> SwitchRow | None:
    await connection.execute(
        "INSERT INTO control.switch (migration, service) VALUES ($1, $2) ON CONFLICT DO NOTHING", migration, service
    )
    record = await connection.fetchrow(
        "UPDATE control.switch SET token = token + 1 WHERE migration = $1 AND service = $2 "  # noqa: S608
        f"AND state = ANY ($3::text[]) RETURNING {_COLUMNS}",
        migration,
        service,
        list(states),
    )
    if record is None:
        return None
    row = _row(record)
    detail = {"token": row.token, "state": row.state, "switch_id": row.switch_id}
    await audit.append(connection, Entry("cutover", "switch.attempt", migration, service, detail))
    return row


async def require_moved(connection: Connection, migration: str, service: str) -> None:
    """For what ends the way back: the service's side is the writable one, and no switch is under way.

    No attempt from before begins a switch once the caller's transaction is committed. Raises GateClosed.
    """
    if await _raise_token(connection, migration, service, SETTLED) is None:
        raise GateClosed(
            f"{service}: a switch is under way, so its way back cannot end now: let a worker end it (cutover worker), "
            f"or, where its run is gone: cutover doctor {migration} --service {service} --mend"
        )
    primary = await connection.fetchval(
        "SELECT primary_side FROM control.standing_route WHERE migration = $1 AND service = $2", migration, service
    )
    if primary != "service":
        raise GateClosed(
            f"{service} is writable at the monolith, whose tables are in use: switch it again (cutover start "
            f"switchover {migration} {service}), then give up its way back anew"
        )


async def find(control: Control, migration: str, service: str) -> SwitchRow | None:
    """The row as it is committed now, or None where no switch was ever begun."""
    record = await control.fetchrow(
        f"SELECT {_COLUMNS} FROM control.switch WHERE migration = $1 AND service = $2",  # noqa: S608
        migration,
        service,
    )
    return _row(record) if record else None


async def under_way(control: Control, migration: str, service: str) -> SwitchRow | None:
    """The switch that is begun and not ended, or None."""
    row = await find(control, migration, service)
    return row if row is not None and row.state not in SETTLED else None


async def settled(control: Control, migration: str, service: str) -> SwitchRow:
    """The row after every change in flight has ended, one way or the other."""
    async with control.transaction() as connection:
        record = await connection.fetchrow(
            f"SELECT {_COLUMNS} FROM control.switch WHERE migration = $1 AND service = $2 FOR UPDATE",  # noqa: S608
            migration,
            service,
        )
    if record is None:
        raise StaleAttempt(f"{service}: no switch was ever begun")
    return _row(record)


#: True where the switch is as `held_by` says; it stays so until the transaction ends.
HELD = (
    "SELECT true FROM control.switch WHERE migration = $1 AND service = $2 AND token = $3 AND switch_id = $4 "
    "AND state = $5 FOR SHARE"
)


def held_by(row: SwitchRow) -> tuple[str, str, int, str, SwitchState]:
    """The parameters of `HELD`."""
    return row.migration, row.service, row.token, row.switch_id, row.state


def overtaken(row: SwitchRow) -> StaleAttempt:
    """The error for a switch that is not held."""
    return StaleAttempt(f"{row.service}: switch {row.switch_id} is no longer {row.state} under token {row.token}")


async def hold(connection: Connection, row: SwitchRow) -> None:
    """Keeps the switch as it is until the caller's transaction ends. Raises StaleAttempt where it is so no longer."""
    if not await connection.fetchval(HELD, *held_by(row)):
        raise overtaken(row)


@dataclass(frozen=True)
class Still:
    """Route and switch of a service at one moment; `settled`: no switch is under way."""

    primary_side: Side
    epoch: int
    switch_id: str
    token: int
    state: SwitchState
    stage: str

    @property
    def settled(self) -> bool:
        return self.state in SETTLED


async def still(control: Control, migration: str, service: str) -> Still | None:
    """Who is writable and whether a switch is under way, in one snapshot; None before the service has a route.

    Equal before and after a look at the databases, and settled, it says that no switch came in between: a switch
    raises the token before it begins.
    """
    row = await control.fetchrow(
        "SELECT r.primary_side, r.epoch, coalesce(s.switch_id, '') AS switch_id, coalesce(s.token, 0) AS token,"
        " coalesce(s.state, 'idle') AS state, coalesce(g.stage, '') AS stage FROM control.route r"
        " LEFT JOIN control.switch s ON s.migration = r.migration AND s.service = r.service"
        " LEFT JOIN control.stage g ON g.migration = r.migration AND g.service = r.service"
        " WHERE r.migration = $1 AND r.service = $2",
        migration,
        service,
    )
    return Still(**row) if row else None


async def unsettled_seconds(control: Control, migration: str, service: str) -> float | None:
    """For how long the switch that is under way stands where it stands; None where none is."""
    age: float | None = await control.fetchval(
        "SELECT extract(epoch FROM clock_timestamp() - changed_at)::float8 FROM control.switch"
        " WHERE migration = $1 AND service = $2 AND NOT state = ANY ($3::text[])",
        migration,
        service,
        sorted(SETTLED),
    )
    return age


async def begin(
    control: Control,
    before: SwitchRow,
    *,
    switch_id: str,
    to_side: Side,
    from_side: Side,
    from_epoch: int,
    plan_hash: str,
) -> SwitchRow:
    """A new switch: settled → fencing, with an epoch that was never used before.

    Raises PlanReplaced where the way forward was approved under a plan that is no longer the one in force: looked at
    in the same transaction, so that no adoption comes between the last look and the first effect.
    """
    async with control.acting(
        "cutover",
        "switch.begin",
        migration=before.migration,
        service=before.service,
        detail={"switch_id": switch_id, "to": to_side, "token": before.token},
    ) as connection:
        if to_side == "service":
            await plans.hold(connection, before.migration, plan_hash)
        record = await connection.fetchrow(
            "UPDATE control.switch SET switch_id = $4, state = 'fencing', from_side = $5, to_side = $6, "  # noqa: S608
            "from_epoch = $7, to_epoch = greatest(to_epoch, $7) + 1, plan_hash = $8, detail = '{}', "
            "changed_at = clock_timestamp() "
            "WHERE migration = $1 AND service = $2 AND token = $3 AND state IN ('idle', 'undone', 'done') "
            f"RETURNING {_COLUMNS}",
            before.migration,
            before.service,
            before.token,
            switch_id,
            from_side,
            to_side,
            from_epoch,
            plan_hash,
        )
        if record is None:
            raise StaleAttempt(f"{before.service}: a newer attempt began a switch first")
    return _row(record)


async def advance(
    control: Control,
    row: SwitchRow,
    to_state: SwitchState,
    *,
    only_from: tuple[SwitchState, ...],
    detail: dict[str, Any] | None = None,
    outcome: dict[str, Any] | None = None,
) -> SwitchRow:
    """Compare-and-set of the state, audited in the same statement. Raises StaleAttempt when it lost.

    `outcome`: how the switch ended, for a state that ends it; no kill leaves the one without the other.
    """
    assert to_state in get_args(SwitchState)
    record = await control.fetchrow(
        _ADVANCE,
        row.migration,
        row.service,
        row.token,
        to_state,
        json.dumps(detail or {}),
        row.switch_id,
        list(only_from),
        None if outcome is None else json.dumps(outcome),
        documents.dumps({"switch_id": row.switch_id, "token": row.token, "epoch": row.to_epoch}),
        audit.trace_id(),
    )
    if record is None:
        raise StaleAttempt(
            f"{row.service}: switch {row.switch_id} is no longer {' or '.join(only_from)} under token {row.token}"
        )
    return _row(record)


async def outcome(control: Control, switch_id: str) -> dict[str, Any] | None:
    """The recorded end of a switch, or None."""
    text = await control.fetchval("SELECT outcome::text FROM control.switch_outcome WHERE switch_id = $1", switch_id)
    return json.loads(text) if text else None


async def outcomes(control: Control, migration: str) -> list[dict[str, Any]]:
    """All ended switches of a migration, oldest first."""
    rows = await control.fetch(
        "SELECT outcome::text FROM control.switch_outcome WHERE migration = $1 ORDER BY at", migration
    )
    return [json.loads(row["outcome"]) for row in rows]


async def note_identity(
    control: Control, migration: str, database: str, system_identifier: str, timeline: int
) -> tuple[str, int]:
    """Notes a server's identity at its first sight, audited; returns the one noted."""
    async with control.transaction() as connection:
        made = await connection.fetchval(
            "INSERT INTO control.server_identity (migration, database, system_identifier, timeline) "
            "VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING 1",
            migration,
            database,
            system_identifier,
            timeline,
        )
        row = await connection.fetchrow(
            "SELECT system_identifier, timeline FROM control.server_identity WHERE migration = $1 AND database = $2",
            migration,
            database,
        )
        if made:
            detail = {"database": database, "system_identifier": system_identifier, "timeline": timeline}
            await audit.append(connection, Entry("gate", "server.noted", migration, None, detail))
    assert row is not None
    return row["system_identifier"], row["timeline"]
