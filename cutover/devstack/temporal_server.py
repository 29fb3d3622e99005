"""Temporal's development server as a process of the stack: durable database file, web page, search attributes."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cutover.devstack import processes
from cutover.devstack.accounts import OURSELVES
from cutover.devstack.cluster import HOST, port_in_use
from cutover.devstack.home import write_private
from cutover.errors import ConfigError

#: What workflows put into the list of the web page (design, section 6).
SEARCH_ATTRIBUTES = ("CutoverMigration", "CutoverService", "CutoverPhase", "CutoverState", "CutoverWaitingFor")
#: Each step of a workflow is several commits of a database with one writer: with an fsync each, 20 activities a second
#: are all it does. In WAL mode without them a killed server has lost nothing, and a power cut only the last moments.
PRAGMAS = ("journal_mode=wal", "synchronous=normal")
#: A timer fires up to this much late; the server's own second would be the floor of every wait of a rehearsal.
TIMER_SHIFT = 'history.timerProcessorMaxTimeShift="10ms"'
START_SECONDS = 60.0
STOP_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))


@dataclass
class TemporalServer:
    """The server by its folder. Every method may be called again."""

    folder: Path
    port: int
    ui_port: int

    @property
    def database(self) -> Path:
        return self.folder / "temporal.db"

    @property
    def log(self) -> Path:
        return self.folder / "temporal.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "temporal.pid"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def ui(self) -> str:
        return f"http://{HOST}:{self.ui_port}"

    @property
    def pid(self) -> int | None:
        """The server's pid if it lives and is ours."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            # A killed `up` may have started the server without having noted its pid.
            return processes.find("start-dev", str(self.database))
        return pid if processes.is_ours(pid, str(self.database)) else None

    @property
    def running_ports(self) -> tuple[int, int] | None:
        """(port, port of the web page) that the running server was started with."""
        arguments = processes.command_line(self.pid) if self.pid else []
        try:
            return (
                int(arguments[arguments.index("--port") + 1]),
                int(arguments[arguments.index("--ui-port") + 1]),
            )
        except (ValueError, IndexError):
            return None

    def ready(self, binary: Path) -> bool:
        """Whether it answers, with all our search attributes registered."""
        if self.pid is None or not port_in_use(self.port):
            return False
        asked = subprocess.run(
            [
                *(binary, "operator", "search-attribute", "list", "--address", self.address),
                *("--namespace", "default", "--command-timeout", "5s", "--disable-config-file"),
            ],
            capture_output=True,
            text=True,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return asked.returncode == 0 and all(name in asked.stdout for name in SEARCH_ATTRIBUTES)

    def start(self, binary: Path) -> None:
        """Run the server until it answers. Raises ConfigError with the end of its log."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.pid is None:
            for port in (self.port, self.ui_port):
                if port_in_use(port):
                    raise ConfigError(f"port {port} (Temporal) is used by another program")
            arguments = [
                *(str(binary), "server", "start-dev", "--db-filename", str(self.database), "--ip", HOST),
                *("--port", str(self.port), "--ui-port", str(self.ui_port), "--ui-disable-news-fetch"),
                *("--log-level", "warn", "--dynamic-config-value", TIMER_SHIFT),
            ]
            for pragma in PRAGMAS:
                arguments += ["--sqlite-pragma", pragma]
            for name in SEARCH_ATTRIBUTES:
                arguments += ["--search-attribute", f"{name}=Keyword"]
            self._pid_file.unlink(missing_ok=True)
            pid = processes.start(
                arguments, log=self.log, account=OURSELVES, environment=_environment(), folder=self.folder
            )
            write_private(self._pid_file, str(pid))
        if not processes.wait_until(lambda: self.ready(binary) or self.pid is None, START_SECONDS) or self.pid is None:
            raise ConfigError(f"Temporal did not start; the end of {self.log}:\n{processes.tail(self.log)}")

    def stop(self) -> None:
        """Stop the server; nothing to do where it does not run."""
        if pid := self.pid:
            processes.stop(pid, str(self.database), STOP_STEPS)
        self._pid_file.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """Ours without TEMPORAL_*: those name the person's own server, its key and its namespace."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
