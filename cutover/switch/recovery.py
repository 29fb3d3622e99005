"""What ends a switch that stopped: undo before the journal, finish after it. Both may run again.

Recovery looks at the databases and not only at its notes: each effect is made where it is missing.
"""

import asyncio

import asyncpg

from cutover import faults
from cutover.control import switches
from cutover.errors import GateClosed, NotYet, Unreachable
from cutover.flags import store as flags
from cutover.postgres import epoch, fence
from cutover.postgres.databases import CONNECTION_ERRORS, Side, direction_from
from cutover.streams.base import Marker
from cutover.switch.attempt import Attempt
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchOutcome
from cutover.switch.turn import turn_back

#: What an effect of recovery waits for a lock in one try; the caller tries again.
_LOCK_WAIT = "3s"
_DURABILITY_SECONDS = 10.0
#: The application waits meanwhile.
_LOOK_SECONDS = 1.0


async def undo(
    env: SwitchEnvironment, attempt: Attempt, reason: str, decision: asyncio.Timeout | None = None
) -> SwitchOutcome:
    """Takes everything back: the application goes on where it was. `decision`: a limit that ends once that is noted."""
    row = attempt.row
    pause_ms = await flags.pause_age(env.control, row.migration, row.service, row.switch_id)
    if row.state in ("fencing", "fenced"):
        await _require_not_switched(attempt)
        async with faults.step("undo.decide"):
            row = attempt.row = await switches.advance(
                env.control, row, "undoing", only_from=("fencing", "fenced"), detail={"reason": reason}
            )
    if row.state == "undoing":
        if decision is not None:
            decision.reschedule(None)
        # Nobody can journal any more, so the other side's unfence is never committed: it is shut, and the application
        # goes on at once, whether or not the other side answers just now.
        async with faults.step("undo.open"):
            await set_fence(env, attempt, row.from_side, closed=False, primary=row.from_side, number=row.from_epoch)
        async with faults.step("undo.resume"):
            await flags.lift_pause(env.control, row.migration, row.service, row.switch_id)
        async with faults.step("undo.shut"):
            await set_fence(env, attempt, row.to_side, closed=True, primary=row.from_side, number=row.from_epoch)
        await turn_back(attempt)
    outcome = SwitchOutcome(
        result="undone",
        switch_id=row.switch_id,
        service=row.service,
        from_side=row.from_side,
        to_side=row.to_side,
        epoch=row.from_epoch,
        reason=row.detail.get("reason", reason),
        pause_ms=pause_ms,
        recovered=True,
    )
    return await _ended(env, attempt, outcome)


async def complete(env: SwitchEnvironment, attempt: Attempt) -> SwitchOutcome:
    """Finishes a journaled switch forwards, however often it was interrupted."""
    row = attempt.row
    pause_ms = await flags.pause_age(env.control, row.migration, row.service, row.switch_id)
    if row.state == "journaled":
        stream = env.stream(direction_from(row.from_side))
        async with faults.step("complete.marker"):
            sink = await attempt.session(row.to_side)
            # a committed unfence lies behind the rows in the same log: they are as durable as it is
            if not _is_open(row, await epoch.read(sink, row.service)):
                await stream.await_marker_on(sink, Marker(row.detail["marker"]), _DURABILITY_SECONDS)
        # the old primary's fence was committed before the journal, so the new side does not wait for it
        async with faults.step("complete.open"):
            await set_fence(env, attempt, row.to_side, closed=False, primary=row.to_side, number=row.to_epoch)
        async with faults.step("complete.flip"):
            await flags.flip(
                env.control,
                row.migration,
                row.service,
                primary_side=row.to_side,
                epoch=row.to_epoch,
                actor="cutover",
                pause_id=row.switch_id,
            )
        async with faults.step("complete.shut"):
            await set_fence(env, attempt, row.from_side, closed=True, primary=row.to_side, number=row.to_epoch)
    outcome = SwitchOutcome(
        result="done",
        switch_id=row.switch_id,
        service=row.service,
        from_side=row.from_side,
        to_side=row.to_side,
        epoch=row.to_epoch,
        pause_ms=pause_ms,
        recovered=True,
    )
    return await _ended(env, attempt, outcome)


async def _ended(env: SwitchEnvironment, attempt: Attempt, outcome: SwitchOutcome) -> SwitchOutcome:
    """State and outcome in one commit; of a switch that had ended already, what was recorded then, with its pauses."""
    row = attempt.row
    if row.state in ("journaled", "undoing"):
        async with faults.step("recovery.done"):
            attempt.row = await switches.advance(
                env.control, row, outcome.result, only_from=(row.state,), outcome=outcome.model_dump(mode="json")
            )
        return outcome
    recorded = await switches.outcome(env.control, row.switch_id)
    return SwitchOutcome.model_validate(recorded) if recorded else outcome


async def reopen(env: SwitchEnvironment, attempt: Attempt) -> None:
    """Lets the application go on where it was, while the control database is gone, refuses, or says nothing.

    Only for an attempt that has not tried to journal: its token keeps others from anything but undoing (a switch that
    is not journaled is never carried on by another attempt), so the old primary may open. The notes follow later.
    """
    row = attempt.row
    async with faults.step("undo.reopen"):
        await set_fence(env, attempt, row.from_side, closed=False, primary=row.from_side, number=row.from_epoch)


def _is_open(row: switches.SwitchRow, known: epoch.Epoch | None) -> bool:
    """Whether the new side says that this very switch has opened it."""
    return known is not None and (known.epoch, known.primary_side) == (row.to_epoch, row.to_side)


async def _require_not_switched(attempt: Attempt) -> None:
    """A control database that has lost its last commits must not shut the side that is in use by now."""
    row = attempt.row
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            known = await epoch.read(await attempt.session(row.to_side), row.service)
    except (*CONNECTION_ERRORS, Unreachable):
        return  # it does not answer; that it has been opened would need a journal that was lost as well
    if _is_open(row, known):
        raise GateClosed(
            f"{row.service}: the {row.to_side} says that it is writable since epoch {row.to_epoch}, and the control "
            "database has no journal of it: it seems to have lost its last commits (a failover or a restored backup). "
            "Nothing is changed; see cutover doctor"
        )


async def set_fence(
    env: SwitchEnvironment,
    attempt: Attempt,
    side: Side,
    *,
    closed: bool,
    primary: Side,
    number: int,
    always: bool = True,
) -> bool:
    """One side's fence and epoch row as they have to be; tables already so are not locked again.

    `always` False before the first copy is done. Returns whether a fence was changed. Raises NotYet with who holds
    it off.
    """
    try:
        async with attempt.effect(side, _LOCK_WAIT) as connection:
            members = await fence.relations(connection, env.pair.tables)
            different = await fence.ensure(connection, env.pair.service, members, closed=closed, always=always)
            await epoch.set_epoch(connection, env.pair.service, primary, number)
        return bool(different)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        connection = await attempt.session(side)
        found = await fence.holders(connection, await fence.relations(connection, env.pair.tables))
        raise NotYet(
            f"{env.pair.service}: the fence at the {side} waits for a lock: {'; '.join(map(str, found[:3]))}"
        ) from None
