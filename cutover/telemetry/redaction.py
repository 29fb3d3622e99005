"""What is cut out of texts before they leave the process: DSNs, passwords, and what a driver says of a row.

PostgreSQL puts the values of a row into an error's DETAIL ("Key (email)=(…) already exists"), sometimes
into the message itself. So of a driver's error only its kind, its SQLSTATE and the names it carries are kept.
"""

import re

import asyncpg

__all__ = ["describe", "scrub", "without_detail"]


_URL = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s\"']*", re.IGNORECASE)
_KEY = re.compile(r"\b(password|passwd|sslpassword|passfile)\s*=\s*('[^']*'|\S+)", re.IGNORECASE)
_DATABASES = ("postgres", "kafka", "amqp", "redis")


def scrub(text: str) -> str:
    """The text without connection strings and passwords. Web addresses stay, unless they carry a user."""
    return _KEY.sub(r"\1=***", _URL.sub(_address, text))


def _address(match: re.Match[str]) -> str:
    scheme = match.group(1)
    secret = scheme.lower().startswith(_DATABASES) or "@" in match.group(0)
    return f"{scheme}://***" if secret else match.group(0)


def without_detail(text: str) -> str:
    """Scrubbed, and cut where a driver's DETAIL begins: its text may have been put into another error's."""
    return scrub(text).partition("\nDETAIL:")[0]


def describe(error: BaseException) -> str:
    """The error as one line without values: our own texts scrubbed, a driver's replaced."""
    if isinstance(error, asyncpg.PostgresError):
        names = [getattr(error, name, None) for name in ("schema_name", "table_name", "constraint_name")]
        where = ".".join(name for name in names if name)
        return f"{type(error).__name__} (SQLSTATE {error.sqlstate}{', ' + where if where else ''})"
    if isinstance(error, asyncpg.InterfaceError):
        return type(error).__name__
    return without_detail(str(error))
