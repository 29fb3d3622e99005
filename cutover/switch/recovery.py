"""What ends a switch that stopped: undo before the journal, finish after it. Both may run again.

Recovery looks at the databases and not only at its notes: each effect is made where it is missing.
"""

import asyncpg

from cutover.control import switches
from cutover.errors import NotYet
from cutover.flags import store as flags
from cutover.postgres import epoch, fence
from cutover.postgres.databases import Side, direction_from
from cutover.streams.base import Marker
from cutover.switch.attempt import Attempt
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome

#: What an effect of recovery waits for a lock in one try; the caller tries again.
_LOCK_WAIT = "3s"
_DURABILITY_SECONDS = 10.0


async def undo(env: SwitchEnvironment, attempt: Attempt, reason: str) -> SwitchOutcome:
    """Takes everything back: the application goes on where it was."""
    row = attempt.row
    if row.state in ("fencing", "fenced"):
        row = attempt.row = await switches.advance(
            env.control, row, "undoing", only_from=("fencing", "fenced"), detail={"reason": reason}
        )
    if row.state == "undoing":
        # first the side that must stay shut, then the one that opens again: never two open
        await _set_fence(env, attempt, row.to_side, closed=True, primary=row.from_side, number=row.from_epoch)
        await _set_fence(env, attempt, row.from_side, closed=False, primary=row.from_side, number=row.from_epoch)
        await flags.lift_pause(env.control, row.migration, row.service, row.switch_id)
    outcome = SwitchOutcome(
        result="undone",
        switch_id=row.switch_id,
        service=row.service,
        from_side=row.from_side,
        to_side=row.to_side,
        epoch=row.from_epoch,
        reason=row.detail.get("reason", reason),
        recovered=True,
    )
    return await _ended(env, attempt, outcome)


async def complete(env: SwitchEnvironment, attempt: Attempt) -> SwitchOutcome:
    """Finishes a journaled switch forwards, however often it was interrupted."""
    row = attempt.row
    if row.state == "journaled":
        stream = env.stream(direction_from(row.from_side))
        await stream.await_marker_on(
            await attempt.session(row.to_side), Marker(row.detail["marker"]), _DURABILITY_SECONDS
        )
        await _set_fence(env, attempt, row.from_side, closed=True, primary=row.to_side, number=row.to_epoch)
        await _set_fence(env, attempt, row.to_side, closed=False, primary=row.to_side, number=row.to_epoch)
        await flags.flip(
            env.control,
            row.migration,
            row.service,
            primary_side=row.to_side,
            epoch=row.to_epoch,
            actor="cutover",
            pause_id=row.switch_id,
        )
    outcome = SwitchOutcome(
        result="done",
        switch_id=row.switch_id,
        service=row.service,
        from_side=row.from_side,
        to_side=row.to_side,
        epoch=row.to_epoch,
        recovered=True,
    )
    return await _ended(env, attempt, outcome)


async def _ended(env: SwitchEnvironment, attempt: Attempt, outcome: SwitchOutcome) -> SwitchOutcome:
    """State and outcome in one commit; of a switch that had ended already, what was recorded then, with its pauses."""
    row = attempt.row
    if row.state in ("journaled", "undoing"):
        attempt.row = await switches.advance(
            env.control, row, outcome.result, only_from=(row.state,), outcome=outcome.model_dump(mode="json")
        )
        return outcome
    recorded = await switches.outcome(env.control, row.switch_id)
    return SwitchOutcome.model_validate(recorded) if recorded else outcome


async def _set_fence(
    env: SwitchEnvironment, attempt: Attempt, side: Side, *, closed: bool, primary: Side, number: int
) -> None:
    """One side's fence and epoch row as they have to be; tables already so are not locked again."""
    try:
        async with attempt.effect(side, _LOCK_WAIT) as connection:
            members = await fence.relations(connection, env.pair.tables)
            states = await fence.states_of(connection, members)
            wanted = "fenced-always" if closed else "open"
            different = [member for member in members if states[member] != wanted]
            if different:
                statements = fence.close_sql(different, always=True) if closed else fence.open_sql(different)
                await connection.execute(statements)
            await epoch.set_epoch(connection, env.pair.service, primary, number)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        connection = await attempt.session(side)
        found = await fence.holders(connection, await fence.relations(connection, env.pair.tables))
        raise NotYet(
            f"{env.pair.service}: the fence at the {side} waits for a lock: {'; '.join(map(str, found[:3]))}"
        ) from None
