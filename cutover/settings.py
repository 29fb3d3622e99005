"""The surroundings, read once at the edge: DSNs by a database's name, the Temporal address, paths.

A DSN comes from, in this order: the variable `CUTOVER_DSN_<NAME>`; the file named by
`CUTOVER_DSN_<NAME>_FILE` (its first line); the same names in the env file (`CUTOVER_ENV_FILE`, by
default `.cutover/env` in the working folder, which `cutover dev up` writes). A DSN is an address,
`postgresql://…`; an entry of libpq's service file is `postgresql:///?service=…`. `<NAME>` is the
database's name in capitals, other characters as `_`. `CUTOVER_REPLICATION_DSN_<NAME>` is how the
*other* server reaches it, where that differs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cutover.errors import ConfigError
from cutover.plan.dsn import variable
from cutover.postgres.databases import Database

CONTROL = "control"


def read_env_file(path: Path) -> dict[str, str]:
    """`NAME=value` lines; blank lines and `#` comments are passed over. A missing file is empty.

    Raises ConfigError.
    """
    if not path.is_file():
        return {}
    values: dict[str, str] = {}
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the env file {path} cannot be read ({type(error).__name__})") from None
    for line in text.splitlines():
        name, sign, value = line.strip().partition("=")
        if sign and not name.startswith("#"):
            values[name.strip()] = value.strip()
    return values


@dataclass(frozen=True)
class Settings:
    """What the process was told by its surroundings; never printed whole, for it holds DSNs."""

    values: Mapping[str, str] = field(repr=False)
    #: Sessions of its databases are kept and used again (for a worker, which lives in one event loop).
    reuse_sessions: bool = False
    _databases: dict[str, Database] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Environment first, then the env file."""
        environ = os.environ if environ is None else environ
        path = Path(environ.get("CUTOVER_ENV_FILE", ".cutover/env"))
        return cls({**read_env_file(path), **environ})

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name) or default

    def has_dsn(self, database: str) -> bool:
        name = variable(database)
        return bool(self.get(name) or self.get(name + "_FILE"))

    def _dsn(self, name: str) -> str:
        if value := self.get(name):
            return value
        if path := self.get(name + "_FILE"):
            try:
                return Path(path).read_text().strip().splitlines()[0]
            except (OSError, IndexError, UnicodeDecodeError):
                raise ConfigError(f"{name}_FILE names a file that cannot be read or is empty: {path}") from None
        return ""

    def database(self, name: str) -> Database:
        """The database of that name. Raises ConfigError where no DSN is set."""
        if name in self._databases:
            return self._databases[name]
        dsn = self._dsn(variable(name))
        if not dsn:
            raise ConfigError(
                f"database {name!r} has no DSN: set {variable(name)} "
                f"(or {variable(name)}_FILE, or a line in {self.get('CUTOVER_ENV_FILE', '.cutover/env')})"
            )
        made = Database(name, dsn, self._dsn(variable(name, "CUTOVER_REPLICATION_DSN_")), reuse=self.reuse_sessions)
        if self.reuse_sessions:
            self._databases[name] = made
        return made

    def end_sessions(self) -> None:
        """Ends the sessions that `reuse_sessions` has kept."""
        for database in self._databases.values():
            database.end_idle()

    @property
    def temporal_address(self) -> str:
        return self.get("TEMPORAL_ADDRESS", "127.0.0.1:7233")

    @property
    def temporal_namespace(self) -> str:
        return self.get("TEMPORAL_NAMESPACE", "default")

    @property
    def temporal_ui(self) -> str:
        return self.get("CUTOVER_TEMPORAL_UI", "")
