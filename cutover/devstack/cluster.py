"""One PostgreSQL cluster on loopback TCP: the one implementation of it, for `cutover dev` and for the tests."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote as percent

from cutover.devstack import processes
from cutover.devstack.accounts import give, server_account
from cutover.devstack.binaries import postgres_bin, server_bin
from cutover.errors import ConfigError

HOST = "127.0.0.1"
SUPERUSER = "postgres"
#: The first major version whose initdb knows the builtin locale provider.
BUILTIN_PROVIDER = 17
START_SECONDS = 60.0  # crash recovery included
#: Fast shutdown (sessions are ended), then immediate, then by force.
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))

#: What five services in both directions need, with room: a slot and a sender each way, an apply worker and table syncs.
REPLICATION_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_prepared_transactions": "20",
    "max_replication_slots": "30",
    "max_active_replication_origins": "40",
    "max_wal_senders": "30",
    "max_logical_replication_workers": "20",
    "max_worker_processes": "40",
    "wal_retrieve_retry_interval": "100ms",
}


def free_port() -> int:
    """A TCP port of loopback that nobody has just now.

    Below the range from which systems draw ports for outgoing connections (32768 and up on Linux): none of those
    can take it while a server is down for a moment.
    """
    while port_in_use(port := random.randint(15000, 32000)):
        pass
    return port


def port_in_use(port: int) -> bool:
    """Whether a server could not have that port of loopback, because somebody has it."""
    with socket.socket() as probe:
        # As servers do: a closed connection's remains (TIME_WAIT) are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


@dataclass
class Cluster:
    """A cluster by its folder: `<folder>/data`, `<folder>/postgres.log`. Every method may be called again."""

    name: str
    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    #: The superuser's; without one, everybody on loopback is trusted.
    password: str = field(default="", repr=False)
    #: The folder with `initdb` and `postgres` of another version, passable by the servers' account. Client programs
    #: are the package's all the same: they know older servers.
    bin: Path | None = None
    #: What its server finds in its environment beside ours.
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "postgres.log"

    def dsn(self, database: str, user: str = SUPERUSER) -> str:
        """A URL that asyncpg and libpq both take."""
        secret = f":{percent(self.password, safe='')}" if self.password and user == SUPERUSER else ""
        return f"postgresql://{percent(user, safe='')}{secret}@{HOST}:{self.port}/{percent(database, safe='')}"

    def superuser_dsn(self, database: str) -> str:
        return self.dsn(database)

    def _postmaster_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []

    @property
    def pid(self) -> int | None:
        """The postmaster's pid if it lives and is ours."""
        lines = self._postmaster_file()
        if not lines or not lines[0].strip().lstrip("-").isdigit():
            return None
        pid = abs(int(lines[0]))
        return pid if processes.is_ours(pid, str(self.data)) else None

    @property
    def running_port(self) -> int | None:
        """The port that the running server was started with."""
        lines = self._postmaster_file()
        return int(lines[3]) if self.pid and len(lines) > 3 and lines[3].isdigit() else None

    def ready(self) -> bool:
        """Whether our server accepts connections."""
        if self.pid is None:
            return False
        asked = subprocess.run(
            [postgres_bin() / "pg_isready", "-q", "-h", HOST, "-p", str(self.port), "-d", "postgres"],
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return asked.returncode == 0

    def initialise(self) -> bool:
        """Make the data folder if there is none; True if it was made now. Torn by a kill, it is made anew."""
        if (self.data / "PG_VERSION").exists():
            return False
        account = server_account()
        folder = self.bin or server_bin(account)
        give(self.folder, account)
        # A scratch folder renamed at the end: a half-made cluster never has the name of a whole one.
        scratch = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.folder))
        descriptor, secret = tempfile.mkstemp(prefix="secret-", dir=self.folder)  # made 0600
        try:
            give(scratch, account)
            with os.fdopen(descriptor, "w") as handle:
                handle.write(self.password)
                if account.uid is not None and account.gid is not None:
                    os.fchown(handle.fileno(), account.uid, account.gid)
            access = ["-A", "scram-sha-256", f"--pwfile={secret}"] if self.password else ["-A", "trust"]
            made = subprocess.run(
                [
                    *(str(folder / "initdb"), "-D", str(scratch), "-U", SUPERUSER, *access),
                    *("-E", "UTF8", "--no-sync", *_locale(folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.folder,
                env=_environment(),
                check=False,
                user=account.uid,
                group=account.gid,
                extra_groups=[] if account.other else None,
            )
            if made.returncode:
                raise ConfigError(f"initdb of cluster {self.name!r} in {self.folder} failed:\n{made.stdout[-2000:]}")
            shutil.rmtree(self.data, ignore_errors=True)
            scratch.rename(self.data)
        finally:
            Path(secret).unlink(missing_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def start(self) -> "Cluster":
        """Run the server until it accepts connections, whatever a crash has left behind.

        Raises ConfigError where the port is somebody else's or the server does not come up (with its log's end).
        """
        self.initialise()
        if self.pid is None:
            self._end_remains()
        if self.pid is None:
            if port_in_use(self.port):
                raise ConfigError(f"port {self.port} (PostgreSQL, cluster {self.name!r}) is used by another program")
            # It may name a pid that is now another program's, on which the server would refuse to start.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            self._launch()
        if not processes.wait_until(lambda: self.ready() or self.pid is None, START_SECONDS) or not self.ready():
            raise ConfigError(
                f"PostgreSQL cluster {self.name!r} did not start; the end of {self.log}:\n{processes.tail(self.log)}"
            )
        return self

    def _end_remains(self) -> None:
        """After a crash: end children that outlived their postmaster, so that two servers never share the data.

        They end by themselves as a rule; one in the middle of a long query does not.
        """

        def settled() -> bool:
            return self.pid is not None or not processes.working_in(self.data)

        if not processes.wait_until(settled, 3.0):
            for pid in processes.working_in(self.data):
                _kill(pid, signal.SIGKILL)
            processes.wait_until(settled, 5.0)

    def _launch(self) -> None:
        account = server_account()
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            **self.settings,
        }
        arguments = [str((self.bin or server_bin(account)) / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        environment = {**_environment(), **self.environment}
        pid = processes.start(arguments, log=self.log, account=account, environment=environment, folder=self.folder)
        # Its pid file comes a moment after the process.
        processes.wait_until(lambda: self.pid == pid or not processes.command_line(pid), START_SECONDS)

    def stop(self) -> None:
        """Stop the server in order; where it does not run, end what a crash has left of it."""
        if pid := self.pid:
            processes.stop(pid, str(self.data), STOP_STEPS)
        else:
            self._end_remains()

    def kill9(self) -> None:
        """Kill the server and all its children at once, as a power cut would (but for the disk's cache)."""
        if pid := self.pid:
            _kill(pid, signal.SIGKILL)
            for child in processes.working_in(self.data):
                _kill(child, signal.SIGKILL)
            # a dying process loses its memory, and its name with it, before its sockets
            processes.wait_until(lambda: not (processes.is_ours(pid, str(self.data)) or port_in_use(self.port)), 10)

    def restart(self) -> None:
        """Stop if it runs, then start."""
        self.stop()
        self.start()

    def run_program(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's client programs against this cluster as superuser; its output.

        Raises ConfigError with the program's own message.
        """
        done = subprocess.run(
            [postgres_bin() / program, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={
                **_environment(),
                "PGHOST": HOST,
                "PGPORT": str(self.port),
                "PGUSER": SUPERUSER,
                "PGPASSWORD": self.password,
            },
            check=False,
        )
        if done.returncode:
            raise ConfigError(f"{program} on cluster {self.name!r} failed: {done.stderr.strip()}")
        return done.stdout

    def databases(self) -> set[str]:
        """The names of its databases, templates left out."""
        listed = self.run_program(
            "psql", "-XAtq", "-d", "postgres", "-c", "SELECT datname FROM pg_database WHERE NOT datistemplate"
        )
        return set(listed.splitlines())

    def ensure_database(self, name: str) -> None:
        """Make the database if it is not there."""
        if name not in self.databases():
            self.run_program("createdb", "--maintenance-db=postgres", name)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _locale(programs: Path) -> tuple[str, ...]:
    """initdb's options for texts that sort by their bytes and know all letters, whatever the system has."""
    if major_version(programs) >= BUILTIN_PROVIDER:
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C", "--lc-ctype=C.UTF-8")


def major_version(programs: Path) -> int:
    """PostgreSQL's major version of the programs in a folder. Raises ConfigError where they do not run."""
    try:
        shown = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{programs / 'postgres'} does not run: {error.strerror}") from None
    if not (found := re.search(r"\) (\d+)", shown.stdout)):
        raise ConfigError(f"{programs / 'postgres'} does not run: {(shown.stderr or shown.stdout).strip()[-200:]}")
    return int(found[1])


def _environment() -> dict[str, str]:
    """Ours without any PG* variable (they would redirect the programs), in a fixed locale and time zone."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"PG[A-Z]+$", name)}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}
