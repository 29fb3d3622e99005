"""The same database, as another role: the application and the people's jobs do not connect as its owner."""

import hmac
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from cutover.errors import ConfigError
from cutover.postgres.databases import Database


def role_password(database: Database, role: str) -> str:
    """What `prepare` gives a role as password where the superuser has one: made from that, so nothing is kept for it.

    Empty where the server trusts its loopback address.
    """
    password = _parts(database).password
    return hmac.new(unquote(password).encode(), role.encode(), "sha256").hexdigest() if password else ""


def as_role(database: Database, role: str) -> Database:
    """`database`, of the superuser who ran `prepare`, as one of the example's roles; unchanged for an empty role.

    Raises ConfigError for a DSN that is not a URL.
    """
    if not role:
        return database
    parts = _parts(database)
    password = role_password(database, role)
    host = parts.netloc.rpartition("@")[2]
    user = quote(role, safe="") + (f":{password}" if password else "")
    return Database(database.name, urlunsplit(parts._replace(netloc=f"{user}@{host}")))


def libpq_environment(database: Database) -> dict[str, str]:
    """The DSN as the variables that psql reads: a command line is for all to read. Raises ConfigError as above.

    Of the URL's options only those that libpq has a variable of the same name for are passed on (sslmode, …).
    """
    parts = _parts(database)
    found = {
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port) if parts.port else None,
        "PGUSER": parts.username,
        "PGPASSWORD": parts.password,
        "PGDATABASE": parts.path.lstrip("/"),
    }
    values = {name: unquote(value) for name, value in found.items() if value}
    return values | {f"PG{name.upper()}": value for name, value in parse_qsl(parts.query)}


def _parts(database: Database) -> SplitResult:
    parts = urlsplit(database.dsn)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"database {database.name!r}: its DSN has to be a URL, postgresql://…, for this")
    return parts
