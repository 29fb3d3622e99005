"""One write by itself: at its level, and with an answer to the question what became of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import asyncpg

from cutover.dualwrite import outcome
from cutover.dualwrite.endings import Alone, Ending, Noted
from cutover.dualwrite.errors import AnswerLost, SecondaryAway, SecondaryRefused
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.lending import Lent
from cutover.dualwrite.routing import WRITE
from cutover.dualwrite.statements import with_part
from cutover.dualwrite.strong import Strong
from cutover.dualwrite.transactions import lent_transaction
from cutover.dualwrite.two_sides import TwoSides
from cutover.errors import ConfigError, GateClosed, NotYet, Unreachable
from cutover.plan.models import Consistency
from cutover.postgres import own_schema, two_phase
from cutover.postgres.databases import CONNECTION_ERRORS, Side

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

T = TypeVar("T")

ALONE = Alone()

#: Statements that write no rows of a table, some of which cannot stand in a transaction: they are done as they are.
_UTILITY = frozenset({"ALTER", "ANALYZE", "CLUSTER", "CREATE", "DROP", "REFRESH", "REINDEX", "RESET", "SET", "VACUUM"})


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call of asyncpg's, for any connection, whose SQL may be extended. `many`: it sends several messages."""

    run: Callable[["Connection", str, Sequence[object]], Awaitable[T]]
    sql: str
    args: Sequence[object] = ()
    many: bool = False

    async def on(self, connection: "Connection") -> T:
        """As it is."""
        return await self.run(connection, self.sql, self.args)


def require_level(service: str, sides: TwoSides | None, level: Consistency | None) -> None:
    """Raises ConfigError where the service cannot have that level."""
    if sides is None and level not in (None, "eventual"):
        raise ConfigError(
            f"{service}: level {level} needs `stream: outbox` (dual-write) in the registered plan; leave `level` out"
        )


async def ending_of(gate: Gate, sides: TwoSides | None, side: Side, level: Consistency | None) -> Ending:
    """How a writing transaction at that side has to end.

    Raises ConfigError for a level that the service has not, SecondaryAway and SecondaryRefused where a strong one
    cannot be begun.
    """
    require_level(gate.service, sides, level)
    if sides is None:
        return ALONE
    wanted = level or sides.level
    if wanted == "strong" and not await sides.known(side, moved=gate.route.read_from_new):
        raise SecondaryAway(
            f"{gate.service}: whether its stream is there could not be found out, for a side does not answer; nothing "
            "was done, try again"
        )
    if sides.in_force(wanted, side) == "strong":
        try:
            route = await sides.route(side)
        except (NotYet, Unreachable, asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
            raise SecondaryAway(
                f"{gate.service}: both sides could not be looked at ({type(error).__name__}); nothing was done, "
                "try again"
            ) from None
        except GateClosed as error:
            raise SecondaryRefused(f"{gate.service}: {error}; nothing was done") from None
        return Strong(sides, side, route, gate.route.epoch, gate.counters)
    return Noted(sides, side) if side in sides.noted else ALONE


async def write_once(
    gate: Gate, sides: TwoSides | None, call: Call[T], lent: Lent, verb: str, level: Consistency | None
) -> T:
    """Makes the call on the lent connection, once.

    Raises Unreachable where nothing was done, AnswerLost where it was done but its answer is lost, UnknownOutcome where
    nobody can say, TimeoutError where a limit of the caller's ended it; what a transaction's ending raises.
    """
    try:
        result = await _write_once(gate, sides, call, lent, verb, level)
    except AnswerLost:
        await answerable(gate, sides, lent, level)
        raise
    if verb not in _UTILITY:
        await answerable(gate, sides, lent, level)
    return result


async def _write_once(
    gate: Gate, sides: TwoSides | None, call: Call[T], lent: Lent, verb: str, level: Consistency | None
) -> T:
    ending = ALONE if verb in _UTILITY else await ending_of(gate, sides, lent.side, level)
    if not isinstance(ending, Strong):
        gate.falls_behind(lent.slot)
    if isinstance(ending, Noted) and not call.many:
        part = two_phase.noted_sql(gate.service, len(call.args) + 1)
        if sql := with_part(call.sql, part, arguments=len(call.args)):
            return await _noted(gate, ending, call, sql, lent, verb)
        ending = ALONE  # it may be one that cannot stand in a transaction
    if isinstance(ending, Alone):
        return await _alone(gate, call, lent, verb)
    async with lent_transaction(gate, lent.connection, lent.side, lent.database, WRITE, None, ending) as connection:
        result = await call.on(connection)
    return result


async def answerable(gate: Gate, sides: TwoSides | None, lent: Lent, level: Consistency | None) -> None:
    """To be awaited before a write is answered: see `TwoSides.answerable`. Only reads that have moved can miss one."""
    moved = gate.route.read_from_new or not gate.lease.valid
    alone = lent.slot is not None and lent.slot.behind is not None and lent.side == "monolith"
    if sides is not None and moved and alone and (level or sides.level) == "strong":
        await sides.answerable()


async def _alone(gate: Gate, call: Call[T], lent: Lent, verb: str) -> T:
    try:
        return await call.on(lent.connection)
    except BaseException as error:
        if outcome.is_lost_on(lent.connection, error):
            raise _unknown(gate, lent, verb, error) from None
        raise


async def _noted(gate: Gate, ending: Noted, call: Call[T], sql: str, lent: Lent, verb: str) -> T:
    """The statement notes its id itself, so that it is still one message and one commit."""
    ending.begun = asyncio.get_running_loop().time()
    try:
        return await call.run(lent.connection, sql, (*call.args, ending.gid))
    except BaseException as error:
        if own_schema.is_taken_away(error):
            ending.sides.noted.discard(ending.side)
            return await _alone(gate, call, lent, verb)
        if not outcome.is_lost_on(lent.connection, error):
            raise
        timeout = outcome.is_timeout_on(lent.connection, error)
        match await ending.decided():
            case "abort" if timeout:
                raise
            case "abort":
                raise Unreachable(
                    f"{gate.service}: the connection to {lent.database.name!r} was lost in a write "
                    f"({type(error).__name__}); nothing was done"
                ) from None
            case "commit":
                raise AnswerLost(
                    f"{gate.service}: {verb} at {lent.database.name} was done, once; its answer was lost with the "
                    f"connection ({type(error).__name__}). Do not do it again; read what you need by its key"
                ) from None
        raise _unknown(gate, lent, verb, error) from None


def _unknown(gate: Gate, lent: Lent, verb: str, error: BaseException) -> Exception:
    gate.counters.unknown += 1
    return outcome.unknown(f"{gate.service}: {verb}", lent.database.name, error)
