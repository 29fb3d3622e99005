"""`pg_dump` and `pg_restore`: found, checked for their version, and run without a secret on their command line.

Connection values travel in libpq's environment variables (PostgreSQL manual, 32.15), for a command line is
readable by every account of the machine.
"""

import asyncio
import os
import re
from pathlib import Path
from shutil import which
from urllib.parse import parse_qsl, unquote, urlsplit

from cutover.errors import ConfigError, CutoverError, NotYet, Unreachable

#: libpq's parameters (manual 32.1.2) whose environment variable is not `PG` + the name in capitals.
_VARIABLES = {
    "dbname": "PGDATABASE",
    "service": "PGSERVICE",
    "application_name": "PGAPPNAME",
    "client_encoding": "PGCLIENTENCODING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "require_auth": "PGREQUIREAUTH",
    "channel_binding": "PGCHANNELBINDING",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "sslcertmode": "PGSSLCERTMODE",
    "servicefile": "PGSERVICEFILE",
}
_SAME_NAME = ("host", "hostaddr", "port", "user", "password", "passfile", "options", "sslmode", "sslrootcert",
              "sslcert", "sslkey", "sslcrl", "sslcrldir", "sslnegotiation", "gssencmode", "krbsrvname")  # fmt: skip
_VARIABLES |= {name: "PG" + name.upper() for name in _SAME_NAME}

_LOCKED = re.compile(r"lock timeout|could not obtain lock|deadlock detected", re.IGNORECASE)
_AWAY = re.compile(r"connection to server|could not connect|server closed the connection|terminating connection"
                   r"|the database system is|lost synchronization", re.IGNORECASE)  # fmt: skip


def environment(dsn: str, application: str) -> dict[str, str]:
    """libpq's variables for a DSN (`postgresql://…`), on top of this process's own environment.

    Raises ConfigError for a parameter that has no variable; its value is not named.
    """
    parts = urlsplit(dsn)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError("a DSN has to begin with postgresql://")
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    pairs = [_host_and_port(host) for host in hosts.split(",") if host]
    values = {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(host for host, _ in pairs),
        "port": ",".join(port for _, port in pairs) if any(port for _, port in pairs) else "",
        "dbname": unquote(parts.path.removeprefix("/")),
    }
    values.update(parse_qsl(parts.query, keep_blank_values=True))
    result = {name: value for name, value in os.environ.items() if name not in _VARIABLES.values()}
    for name, value in values.items():
        variable = _VARIABLES.get("dbname" if name == "database" else name)
        if variable is None:
            raise ConfigError(f"a DSN has the parameter {name!r}, which libpq's environment cannot carry: take it out")
        if value:
            result[variable] = value
    result.update(PGAPPNAME=application, PGCONNECT_TIMEOUT=values.get("connect_timeout", "10"), LC_ALL="C")
    return result


def _host_and_port(text: str) -> tuple[str, str]:
    """`host:port`, `[::1]:port`, or a percent-encoded socket folder."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = text.partition(":")
    return unquote(host), port


async def find(program: str, bindir: Path | None, at_least: int) -> Path:
    """The program's path. Raises ConfigError where there is none, or it is older than the server (major version)."""
    found = which(program, path=str(bindir) if bindir else None)
    where = str(bindir) if bindir else "the PATH"
    if found is None:
        raise ConfigError(
            f"{program} is not in {where}: install PostgreSQL's client programs, version {at_least} or newer"
        )
    process = await asyncio.create_subprocess_exec(found, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    # packagers add their own in brackets: pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
    match = re.search(r"\(PostgreSQL\)\s+(\d+)", output.decode())
    if match is None or int(match[1]) < at_least:
        raise ConfigError(f"{program} in {where} is {output.decode().strip()!r}; the server needs {at_least} or newer")
    return Path(found)


async def run(program: Path, arguments: list[str], environment: dict[str, str], what: str, database: str) -> str:
    """Runs the program to its end; returns what it printed. Killed with the caller's cancellation.

    Raises NotYet for a lock it did not get, Unreachable for a server that went away, ConfigError for the rest; the
    text holds the server's own error lines (names of objects, no row and no address).
    """
    process = await asyncio.create_subprocess_exec(
        str(program), *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise failure(f"{what} (database {database!r}, {program.name})", errors.decode(errors="replace"))
    return output.decode()


def failure(what: str, errors: str) -> CutoverError:
    """The error that stands for the standard error of a failed program."""
    lines = [line.strip() for line in errors.splitlines() if "error" in line.lower() and not _AWAY.search(line)]
    detail = "; ".join(lines[:5])[:1000]
    if _LOCKED.search(errors):
        return NotYet(f"{what}: a lock was not obtained within its limit; try again when long transactions have ended")
    if _AWAY.search(errors):
        return Unreachable(f"{what}: the server cannot be reached or ended the connection")
    return ConfigError(f"{what} failed: {detail or 'no error text'}")
