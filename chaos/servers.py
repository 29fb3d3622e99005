"""The servers of a campaign: each wants a password, on a small disk of its own, under a clock that can be set.

Where this machine allows no mount or has no compiler, the campaign goes on without, and `left_out` says so.
"""

import os
import secrets
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote as percent

from chaos.clocks import Clock, compiled
from chaos.disks import Disk, mounted_below
from cutover.devstack import processes, throwaway
from cutover.devstack.cluster import HOST, SUPERUSER, Cluster, free_port
from cutover.errors import ConfigError
from cutover.postgres.identifiers import quote_literal

PREFIX = "cutover-chaos-"
#: The storm's own superuser, which no strike hits.
ADMINISTRATOR = "storm"
#: WAL that fits on a disk some times over, and logins that cost little.
SETTINGS = {"max_wal_size": "192MB", "scram_iterations": "32", "log_replication_commands": "on"}


@dataclass
class Servers:
    """Running clusters, with what can be done to each of them."""

    clusters: list[Cluster]
    #: Of the clusters, in their order; empty where the strike is left out.
    disks: list[Disk] = field(default_factory=list)
    #: Of the clusters, and the last one of our own processes; empty where the strike is left out.
    clocks: list[Clock] = field(default_factory=list)
    #: Strikes that cannot be here, and why.
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str]:
        """For our own processes, so that their clock can be set too."""
        return self.clocks[-1].environment if self.clocks else {}


def administered(cluster: Cluster) -> str:
    """The DSN of the storm's own superuser."""
    return f"postgresql://{ADMINISTRATOR}:{percent(cluster.password, safe='')}@{HOST}:{cluster.port}/postgres"


@contextmanager
def running(names: Sequence[str], settings: Mapping[str, str]) -> Iterator[Servers]:
    """Running clusters in a throw-away folder; at the end they and their disks are gone."""
    with throwaway.opened(PREFIX, end=_end) as folder:
        servers = Servers(
            [
                Cluster(name, folder / name, free_port(), {**settings, **SETTINGS}, secrets.token_hex(8))
                for name in names
            ]
        )
        try:
            library = compiled(folder)
            servers.clocks = [Clock.made(folder / f"{name}.clock", library) for name in (*names, "processes")]
        except ConfigError as error:
            servers.left_out["clock jumped"] = str(error)
        for cluster, clock in zip(servers.clusters, servers.clocks, strict=False):
            cluster.environment = clock.environment
        try:
            for cluster in servers.clusters:
                servers.disks.append(Disk.mounted(cluster.folder))
        except ConfigError as error:
            servers.left_out["disk full"] = str(error)
            servers.disks.clear()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_started, servers.clusters))
        yield servers


def _started(cluster: Cluster) -> None:
    cluster.start()
    secret = quote_literal(cluster.password)
    statements = (
        f"CREATE ROLE {ADMINISTRATOR} SUPERUSER LOGIN PASSWORD {secret}",
        f"ALTER ROLE {SUPERUSER} PASSWORD {secret}",  # anew, with few iterations
    )
    cluster.run_program("psql", "-Xqd", "postgres", *(part for sql in statements for part in ("-c", sql)))


def _end(folder: Path) -> None:
    """Kills the servers of a campaign's folder, unmounts their disks and deletes it."""
    throwaway.end_servers(folder)
    for disk in mounted_below(folder):
        disk.unmount()
    throwaway.end(folder)


def sweep() -> None:
    """Ends what campaigns have left that were killed before they could do so."""
    throwaway.sweep(PREFIX, _end)


@contextmanager
def stopped(cluster: Cluster) -> Iterator[list[int]]:
    """Inside, no process of the server runs: SIGSTOP for all, and SIGCONT for exactly those at the end.

    The postmaster is the first one, so that it forks nobody who is not stopped.
    """
    pids: set[int] = set()
    found = {pid} if (pid := cluster.pid) is not None else set()
    try:
        while found:
            pids |= found
            _signal(found, signal.SIGSTOP)
            found = set(processes.working_in(cluster.data)) - pids
        yield sorted(pids)
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
