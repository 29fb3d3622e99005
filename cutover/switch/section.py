"""The fenced section of a switch: steps 3 to 11 of design 5.6, as one call that may be made again.

Called again with the same `switch_id` after a crash, it recovers by what the control database says:
not journaled → undo, journaled → finish forwards, ended → the recorded outcome.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import asyncpg

from cutover import faults
from cutover.control import switches
from cutover.errors import Conflict, CutoverError, GateClosed, NotYet, StaleAttempt, Unreachable
from cutover.flags import store as flags
from cutover.postgres.databases import CONNECTION_ERRORS, FAILURES, direction_from, other
from cutover.switch.attempt import Attempt, open_attempt
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.forward import Forward
from cutover.switch.models import SwitchOutcome, SwitchRequest
from cutover.switch.recovery import complete, reopen, undo

#: A tenth of a second under a heartbeat timeout of two seconds leaves room for a busy machine.
_HEARTBEAT_SECONDS = 0.4
#: How long the control database may take over a switch that is not journaled, before the application goes on without.
_DECISION_SECONDS = 2.0


async def run(
    env: SwitchEnvironment,
    request: SwitchRequest,
    heartbeat: Callable[[str], None],
    permitted: Callable[[], Awaitable[None]] | None = None,
) -> SwitchOutcome:
    """Switches the writable side of one service, or finishes what an earlier attempt left.

    Returns the outcome, done or undone; an unfinished switch of another run is ended first. Raises
    Conflict where the service is writable at that side already, GateClosed where it must not begin, NotYet when
    another attempt took over, Unreachable when a database does not answer (call again after both: recovery decides).
    `permitted` is asked right before a switch begins, and refuses by raising: approvals are checked again at the flip.
    """
    recorded = await switches.outcome(env.control, request.switch_id)
    if recorded is not None:
        return SwitchOutcome.model_validate(recorded)
    said = ["opening"]
    beating = asyncio.create_task(_beat(heartbeat, said))
    try:
        async with open_attempt(env) as attempt:
            return await _attempt(env, request, attempt, said, permitted)
    except StaleAttempt as error:
        # whichever attempt was the newer one may be gone by now: the next one looks at what it left
        raise NotYet(str(error)) from None
    except CONNECTION_ERRORS as error:
        raise Unreachable(
            f"{request.service}: a database stopped answering in step {said[0]!r} ({type(error).__name__})"
        ) from None
    finally:
        beating.cancel()


async def _beat(heartbeat: Callable[[str], None], said: list[str]) -> None:
    while True:
        heartbeat(said[0])
        await asyncio.sleep(_HEARTBEAT_SECONDS)


async def _attempt(
    env: SwitchEnvironment,
    request: SwitchRequest,
    attempt: Attempt,
    said: list[str],
    permitted: Callable[[], Awaitable[None]] | None,
) -> SwitchOutcome:
    row = attempt.row
    # once more, under the token: an attempt that slept must not begin a switch that has ended meanwhile
    recorded = await switches.outcome(env.control, request.switch_id)
    if recorded is not None:
        return SwitchOutcome.model_validate(recorded)
    if row.switch_id == request.switch_id:
        return await _to_its_end(_recover(env, attempt, "an earlier attempt ended in the middle", said))
    if row.state not in switches.SETTLED:
        # another run's switch, and that run is gone: this attempt holds the token, so it ends it first
        await _to_its_end(_recover(env, attempt, "its run ended in the middle", said))
        row = attempt.row
    route = await flags.get(env.control, request.migration, request.service)
    if route.primary_side == request.to_side:
        raise Conflict(f"{request.service} is writable at the {request.to_side} already; nothing to switch")
    async with env.changed(direction_from(route.primary_side)) as changed:
        forward = Forward(env, request, attempt, changed, said)
        try:
            async with faults.step("switch.clear"):
                await forward.clear_the_way()
        except NotYet as error:
            # nothing has begun: the run may try again, or hear a person
            return _not_begun(request, route.epoch, str(error))
        if permitted is not None:
            await permitted()
        async with faults.step("switch.begin"):
            attempt.row = await switches.begin(
                env.control,
                row,
                switch_id=request.switch_id,
                to_side=request.to_side,
                from_side=other(request.to_side),
                from_epoch=route.epoch,
                plan_hash=request.plan_hash,
            )
        try:
            return await forward.run()
        except CutoverError as error:
            reason = str(error)
        except CONNECTION_ERRORS as error:
            reason = f"a connection was lost in step {said[0]!r} ({type(error).__name__})"
        except asyncpg.PostgresError as error:
            # never the server's own text: it may quote a row
            reason = f"step {said[0]!r} was refused by the database ({type(error).__name__}, {error.sqlstate})"
        except asyncio.CancelledError:
            await _to_its_end(_take_back(env, forward, attempt, "it was cancelled", said))
            raise
        return await _to_its_end(_take_back(env, forward, attempt, reason, said))


async def _to_its_end(recovery: Coroutine[Any, Any, SwitchOutcome]) -> SwitchOutcome:
    """Cancelled, it goes on, and the cancellation counts once it has ended, however that was.

    A worker that shuts down, a run that was terminated: both sides must not stay shut for want of a next try.
    """
    task = asyncio.create_task(recovery)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.cancelled() or task.exception()  # nobody asks for it any more
        raise


async def _take_back(
    env: SwitchEnvironment, forward: Forward, attempt: Attempt, reason: str, said: list[str]
) -> SwitchOutcome:
    await forward.roll_back_unfence()
    try:
        async with asyncio.timeout(None if forward.journal_sent else _DECISION_SECONDS) as decision:
            return await _recover(env, attempt, reason, said, decision)
    except (StaleAttempt, GateClosed):
        raise  # it is not this attempt that may open a side
    except FAILURES:
        # Only switches stop without the control database: as nothing was journaled, the application goes on
        if not forward.journal_sent:
            await reopen(env, attempt)
        raise


def _not_begun(request: SwitchRequest, epoch: int, reason: str) -> SwitchOutcome:
    return SwitchOutcome(
        result="undone",
        switch_id=request.switch_id,
        service=request.service,
        from_side=other(request.to_side),
        to_side=request.to_side,
        epoch=epoch,
        reason=reason,
    )


async def _recover(
    env: SwitchEnvironment, attempt: Attempt, reason: str, said: list[str], decision: asyncio.Timeout | None = None
) -> SwitchOutcome:
    """Decides by the one row that is the truth, after every change in flight has ended.

    `decision`: the limit under which that is done, lifted once an undoing is noted.
    """
    said[0] = "recovery"
    row = await switches.settled(env.control, env.pair.migration, env.pair.service)
    if row.token != attempt.row.token:
        # not ours any more: the newer attempt recovers
        raise StaleAttempt(f"{env.pair.service}: attempt {attempt.row.token} was overtaken by attempt {row.token}")
    attempt.row = row
    if row.state in ("journaled", "done"):
        return await complete(env, attempt)
    return await undo(env, attempt, reason, decision)
