"""The development stack: Temporal and two PostgreSQL clusters, brought up, looked at, taken down, deleted.

`up` is the one way to repair it: it starts what does not run, whatever has died and however.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutover.devstack import processes, temporal
from cutover.devstack.cluster import REPLICATION_SETTINGS, Cluster, port_in_use
from cutover.devstack.home import PORT_BASE, Home, Ports, write_private
from cutover.devstack.temporal import Say
from cutover.devstack.temporal_server import TemporalServer
from cutover.errors import ConfigError
from cutover.plan.dsn import variable
from cutover.settings import CONTROL

PORT_SECONDS = 5.0
MONOLITH_DATABASES = ("monolith",)
SERVICE_DATABASES = (
    "trading_engine_db",
    "ai_decision_db",
    "analytics_db",
    "api_gateway_db",
    "orchestrator_db",
    CONTROL,
)
#: Durable as a real server is (fsync and synchronous_commit stay on); room for workers, traffic and reconciliation.
SETTINGS = {**REPLICATION_SETTINGS, "max_connections": "400"}

State = Literal["running", "starting", "stopped"]


@dataclass(frozen=True)
class ServerStatus:
    """One server as `status` shows it."""

    name: str
    state: State
    pid: int | None
    port: int
    log: str
    url: str = ""


class Stack:
    """The stack of one home. Methods that change it hold its lock; `say` is told what happens."""

    def __init__(self, environ: Mapping[str, str] | None = None, say: Say = temporal.say_to_stderr) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.home = Home.from_environment(self.environ)
        self.say = say

    def _servers(self, ports: Ports, password: str = "") -> tuple[TemporalServer, Cluster, Cluster]:
        data = self.home.data
        return (
            TemporalServer(data / "temporal", ports.temporal, ports.ui),
            Cluster("monolith", data / "monolith", ports.monolith, SETTINGS, password),
            Cluster("services", data / "services", ports.services, SETTINGS, password),
        )

    def up(self) -> None:
        """Start or repair everything and write the env file.

        Raises ConfigError for a port in use, a missing Temporal, or a server that does not start.
        """
        started = time.monotonic()
        binary = temporal.ensure(self.environ, self.say)
        with self.home.locked(self.say):
            self.home.create()
            ports = self.home.ports(self.environ)
            server, monolith, services = self._servers(ports, self.home.password())
            self._leave_other_ports(server, (monolith, services))
            _refuse_taken_ports(server, (monolith, services))
            with ThreadPoolExecutor(3) as pool:
                jobs = [
                    pool.submit(self._start, "Temporal", server, lambda: server.start(binary)),
                    pool.submit(self._start_cluster, monolith, MONOLITH_DATABASES),
                    pool.submit(self._start_cluster, services, SERVICE_DATABASES),
                ]
            for job in jobs:
                job.result()
            self.home.keep_ports(ports)
            write_private(self.home.env_file, self._env(server, monolith, services))
        self.say(f"the stack is up after {time.monotonic() - started:.1f} s; web page {server.ui}")

    def _start(self, name: str, server: TemporalServer | Cluster, start: Callable[[], object]) -> None:
        began, before = time.monotonic(), server.pid
        start()
        if before:
            self.say(f"{name}: runs already (pid {server.pid}, port {server.port})")
        else:
            self.say(f"{name}: started in {time.monotonic() - began:.1f} s (pid {server.pid}, port {server.port})")

    def _start_cluster(self, cluster: Cluster, databases: tuple[str, ...]) -> None:
        def start() -> None:
            if cluster.initialise():
                self.say(f"PostgreSQL {cluster.name}: a new cluster in {cluster.data}")
            cluster.start()
            for database in sorted(set(databases) - cluster.databases()):
                cluster.ensure_database(database)

        self._start(f"PostgreSQL {cluster.name}", cluster, start)

    def _leave_other_ports(self, server: TemporalServer, clusters: tuple[Cluster, ...]) -> None:
        """Stop what runs on other ports than it should now (CUTOVER_DEV_PORT_BASE has changed)."""
        if server.pid and server.running_ports not in (None, (server.port, server.ui_port)):
            self.say("Temporal: moves to another port")
            server.stop()
        for cluster in clusters:
            if cluster.running_port not in (None, cluster.port):
                self.say(f"PostgreSQL {cluster.name}: moves to another port")
                cluster.stop()

    def _env(self, server: TemporalServer, monolith: Cluster, services: Cluster) -> str:
        lines = [
            "# Written by `cutover dev up`; read by cutover where the environment itself does not say otherwise.",
            f"TEMPORAL_ADDRESS={server.address}",
            f"CUTOVER_TEMPORAL_UI={server.ui}",
        ]
        lines += [f"{variable(name)}={monolith.dsn(name)}" for name in MONOLITH_DATABASES]
        lines += [f"{variable(name)}={services.dsn(name)}" for name in SERVICE_DATABASES]
        return "\n".join(lines) + "\n"

    def down(self) -> None:
        """Stop every process of the stack; the data stays."""
        with self.home.locked(self.say):
            self._down()

    def _down(self) -> None:
        server, *clusters = self._servers(self.home.ports(self.environ))
        running = bool(server.pid or any(cluster.pid for cluster in clusters))
        server.stop()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Cluster.stop, clusters))
        self.say("the stack is down" if running else "the stack was not running")

    def reset(self) -> None:
        """Stop everything and delete all data: databases, workflows, the env file."""
        with self.home.locked(self.say):
            self._down()
            self.home.env_file.unlink(missing_ok=True)
            if self.home.data.exists():
                shutil.rmtree(self.home.data)
            self.say(f"deleted {self.home.data}")

    def status(self) -> list[ServerStatus]:
        """What runs, with pids, ports and logs. Changes nothing and waits for nothing."""
        server, *clusters = self._servers(self.home.ports(self.environ))
        ports = server.running_ports or (server.port, server.ui_port)
        rows = [
            ServerStatus(
                "temporal",
                _state(server.pid, lambda: port_in_use(ports[0])),
                server.pid,
                ports[0],
                str(server.log),
                f"http://127.0.0.1:{ports[1]}",
            )
        ]
        for cluster in clusters:
            cluster.port = cluster.running_port or cluster.port
            rows.append(
                ServerStatus(
                    cluster.name, _state(cluster.pid, cluster.ready), cluster.pid, cluster.port, str(cluster.log)
                )
            )
        return rows

    @property
    def env_file(self) -> Path:
        return self.home.env_file


def _state(pid: int | None, ready: Callable[[], bool]) -> State:
    if pid is None:
        return "stopped"
    return "running" if ready() else "starting"


def _refuse_taken_ports(server: TemporalServer, clusters: tuple[Cluster, ...]) -> None:
    """Before anything is started: a port held by a program that is not ours stops `up` with nothing half done."""
    wanted: list[tuple[str, int]] = []
    if server.pid is None:
        wanted += [("Temporal", server.port), ("Temporal's web page", server.ui_port)]
    wanted += [(f"PostgreSQL {cluster.name}", cluster.port) for cluster in clusters if cluster.pid is None]

    def taken() -> list[str]:
        return [f"{port} ({name})" for name, port in wanted if port_in_use(port)]

    # a server of ours that was killed a moment ago may still be closing its sockets
    if not processes.wait_until(lambda: not taken(), PORT_SECONDS):
        raise ConfigError(
            f"port in use by another program: {', '.join(taken())}. Stop it, or shift the stack: "
            f"`{PORT_BASE}=17000 cutover dev up` takes four ports from 17000 on"
        )
