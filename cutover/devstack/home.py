"""Where the development stack lives: its folders, its ports, and the env file that it writes.

`.cutover/` in the working folder (or CUTOVER_DEV_HOME) holds the env file; the data is beside it. For root it is
in /var/tmp, under a name made from that folder's path, because the servers' account cannot pass a checkout in /root.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cutover.devstack.accounts import own_folder
from cutover.devstack.temporal import Say
from cutover.errors import ConfigError

SHARED = Path("/var/tmp")
PORT_BASE = "CUTOVER_DEV_PORT_BASE"


@dataclass(frozen=True)
class Ports:
    """The TCP ports of the stack, all on loopback."""

    temporal: int = 7233
    ui: int = 8233
    monolith: int = 54310
    services: int = 54311

    @classmethod
    def from_base(cls, text: str) -> "Ports":
        """Four ports in a row from `text` on. Raises ConfigError for what is no such number."""
        if not text.isdigit() or not 1024 <= int(text) <= 65532:
            raise ConfigError(f"{PORT_BASE}={text}: a number from 1024 to 65532 is needed (four ports from there on)")
        return cls(*range(int(text), int(text) + 4))


@dataclass(frozen=True)
class Home:
    """The stack's folders."""

    folder: Path
    data: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Home":
        folder = Path(environ.get("CUTOVER_DEV_HOME") or ".cutover").absolute()
        if os.geteuid() != 0:
            return cls(folder, folder / "data")
        digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        return cls(folder, SHARED / f"cutover-{os.geteuid()}-{digest}")

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    @property
    def _ports_file(self) -> Path:
        return self.data / "ports.json"

    def create(self) -> None:
        """Make the folders, or check that those there are ours."""
        own_folder(self.folder, 0o700)
        own_folder(self.data, 0o711)

    @contextmanager
    def locked(self, say: Say) -> Iterator[None]:
        """One `cutover dev` at a time; the others wait."""
        own_folder(self.folder, 0o700)
        with (self.folder / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another `cutover dev` is at work on this stack; waiting for it …")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def ports(self, environ: Mapping[str, str]) -> Ports:
        """CUTOVER_DEV_PORT_BASE if set, else those of the last `up`, else the defaults."""
        if base := environ.get(PORT_BASE):
            return Ports.from_base(base)
        try:
            return Ports(**json.loads(self._ports_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return Ports()

    def keep_ports(self, ports: Ports) -> None:
        write_private(self._ports_file, json.dumps(asdict(ports)))

    def password(self) -> str:
        """The superuser's password of both clusters, drawn once."""
        path = self.data / "password"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            write_private(path, secrets.token_urlsafe(18))
            return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    scratch.replace(path)
