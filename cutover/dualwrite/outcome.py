"""What an error says about the statement that met it: refused, not sent, worth a retry, or unknown."""

from typing import TYPE_CHECKING

import asyncpg

from cutover.dualwrite.connections import gone
from cutover.dualwrite.errors import UnknownOutcome
from cutover.errors import CutoverError, Unreachable
from cutover.postgres.databases import CONNECTION_ERRORS
from cutover.postgres.epoch import FENCED_SQLSTATE

if TYPE_CHECKING:
    from cutover.dualwrite.connections import Connection

_DEPTH = 10


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from: a caller's code may wrap the driver's errors in its own."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found and len(found) < _DEPTH:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def is_fenced(error: BaseException) -> bool:
    """Whether the fence refused a statement; its transaction is rolled back, so nothing was done."""
    return any(isinstance(e, asyncpg.PostgresError) and e.sqlstate == FENCED_SQLSTATE for e in _chain(error))


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, or the server said goodbye (severity FATAL or PANIC).

    asyncpg reports misuse as an InterfaceError too; a wrong argument is one that is a ValueError.
    """
    if isinstance(error, CutoverError):
        return isinstance(error, Unreachable)
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return False
    if isinstance(error, asyncpg.PostgresError):
        # `severity_en` is the untranslated field; servers older than 9.6 do not send it
        severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
        return severity in ("FATAL", "PANIC") or isinstance(error, CONNECTION_ERRORS)
    return isinstance(error, CONNECTION_ERRORS)


def is_lost_on(connection: "Connection", error: BaseException) -> bool:
    """Whether the connection is gone or a statement's end was not waited for, so that nobody knows what became of it.

    With the connection still open a complaint of the driver (a wrong number of arguments) is one: nothing was sent.
    """
    if isinstance(error, asyncpg.InterfaceError) and not gone(connection):
        return False
    return is_lost(error)


def is_timeout_on(connection: "Connection", error: BaseException) -> bool:
    """Whether the caller's own limit (`timeout`, `command_timeout`) ended a statement, on a connection that is open."""
    return isinstance(error, TimeoutError) and not gone(connection)


def is_own_mistake(error: BaseException) -> bool:
    """Whether asyncpg refused an argument by itself, before anything was sent (a DataError without a severity)."""
    if isinstance(error, asyncpg.DataError):
        return getattr(error, "severity", None) is None
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)


def is_serialization(error: BaseException) -> bool:
    """Whether PostgreSQL asks for the same transaction again (manual, 13.5 "Serialization Failure Handling")."""
    wanted = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
    return any(isinstance(e, wanted) for e in _chain(error))


def unknown(what: str, where: str, error: BaseException) -> UnknownOutcome:
    """The error for a write whose answer was lost. The driver's text stays out: it may hold values."""
    return UnknownOutcome(
        f"{what} at {where}: the connection was lost ({type(error).__name__}) before the answer came, so it may or may "
        "not have been done; read it back by its key before doing it again"
    )
