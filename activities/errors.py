"""From the library's errors to Temporal's: what must not be tried again, what passes by itself, what nobody expected.

No text leaves this module longer than 500 characters, or with what an unknown exception says: that
could hold a DSN or a value of a row.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from cutover.control.documents import scrub
from cutover.errors import ConfigError, NotYet, PlanError, Refused, Unreachable
from cutover.postgres.databases import CONNECTION_ERRORS

TEXT_LIMIT = 500

_log = logging.getLogger(__name__)


@contextmanager
def translated() -> Iterator[None]:
    """Errors leave the block as ApplicationErrors whose type is the library's class name."""
    try:
        yield
    except (ApplicationError, asyncio.CancelledError):
        raise
    except (Refused, PlanError, ConfigError) as error:
        raise ApplicationError(_text(error), type=type(error).__name__, non_retryable=True) from None
    except (NotYet, Unreachable) as error:
        raise _passing(type(error).__name__, _text(error)) from None
    except (*CONNECTION_ERRORS, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise _passing("Unreachable", f"a database does not answer ({type(error).__name__})") from None
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError) as error:
        raise _passing("NotYet", f"a lock or a statement's time was not to be had ({type(error).__name__})") from None
    except asyncpg.ReadOnlySQLTransactionError:
        text = "a database takes no writes: it is read-only, a standby or set so; make it writable again"
        raise _passing("NotYet", text) from None
    except asyncpg.InsufficientResourcesError as error:
        text = f"a database has no room or memory left ({type(error).__name__}): make room"
        raise _passing("NotYet", text) from None
    except asyncpg.PostgresError as error:
        # The message of a constraint may name a row's values; the class and the SQLSTATE never do.
        raise ApplicationError(
            f"the database refused a statement: {type(error).__name__} (SQLSTATE {error.sqlstate})",
            type="DatabaseError",
        ) from None
    except Exception as error:
        _log.exception("an activity failed in a way nobody expected")
        raise ApplicationError(
            f"unexpected {type(error).__name__}; its text is in the worker's log", type=type(error).__name__
        ) from None


def _passing(kind: str, text: str) -> ApplicationError:
    return ApplicationError(text, type=kind, category=ApplicationErrorCategory.BENIGN)


def _text(error: Exception) -> str:
    return str(scrub(str(error)))[:TEXT_LIMIT]
