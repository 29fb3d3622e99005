"""What falls on a campaign from outside: its servers are killed, stopped, out of room, and change their password or
time of day; sessions are ended; processes are killed, and stopped for a while.

The times and the choices are drawn from the seed; what they hit depends on what runs just then. A run that is being
checked asks for calm: nothing begins meanwhile, and what is down is up again.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from chaos.processes import Child
from chaos.servers import Servers, administered, stopped
from cutover.devstack.cluster import SUPERUSER, Cluster
from cutover.errors import ConfigError
from cutover.postgres.databases import FAILURES
from cutover.postgres.identifiers import quote_literal

#: Seconds between two events, and how long a server is down or a process stopped, shortest and longest.
APART, DOWN, STOPPED = (1.5, 6.0), (0.2, 2.5), (0.5, 8.0)
#: How long a server is stopped (leases and pauses take 2 to 5 s, the timeout of a connection 10 s), a disk is full, a
#: password is another one, a clock is off.
SERVER_STOPPED, FULL, REFUSED, OFF = (0.5, 12.0), (0.5, 4.0), (0.5, 4.0), (1.0, 6.0)
#: Some stops last longer than every limit that is in seconds (a statement 30 s), and how many of them do.
LONG, OFTEN_LONG = (31.0, 45.0), 0.1
#: Farthest jump of a clock, in seconds.
JUMP = 3600
#: Seconds in which a server must take a statement again.
_PATIENCE = 60.0
_END_SESSIONS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5
"""
#: All that have logged in as the role whose password changes, so that they have to do it again.
_END_LOGINS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type IN ('client backend', 'walsender') AND usename = $1 AND pid <> pg_backend_pid()
"""
#: Each makes a file of WAL, unless one is there already.
_MORE_WAL = "SELECT pg_logical_emit_message(false, 'storm', ''), pg_switch_wal()"


class Storm:
    """Strikes until it is cancelled. `struck` counts what it did, and `log` says when and to whom."""

    def __init__(self, servers: Servers, seed: str, log: Path) -> None:
        self.servers = servers
        self.log = log
        self.struck: Counter[str] = Counter()
        self.rng = random.Random(f"{seed}/storm")
        every: dict[str, Callable[[], Awaitable[str]]] = {
            "server killed": self.kill_server,
            "server stopped": self.stop_server,
            "disk full": self.fill_disk,
            "password changed": self.change_password,
            "clock jumped": self.jump_clock,
            "sessions ended": self.end_sessions,
            "process killed": self.kill_process,
            "process stopped": self.stop_process,
        }
        self.strikes = {name: strike for name, strike in every.items() if name not in servers.left_out}
        self._checking = 0
        self._quiet = asyncio.Event()
        self._idle = asyncio.Event()
        self._quiet.set()
        self._idle.set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(*APART))
            what = self.rng.choice(list(self.strikes))
            while not self._quiet.is_set():  # another one may ask for calm before a waiter goes on
                await self._quiet.wait()
            self._idle.clear()
            begun = time.strftime("%H:%M:%S")
            try:
                if hit := await self.strikes[what]():
                    self.struck[what] += 1
                    with self.log.open("a") as log:
                        print(begun, time.strftime("%H:%M:%S"), what, hit, sep="\t", file=log)
            finally:
                self._idle.set()

    @asynccontextmanager
    async def calm(self) -> AsyncIterator[None]:
        """Inside, nothing is struck, and every server is up."""
        self._checking += 1
        self._quiet.clear()
        try:
            await self._idle.wait()
            yield
        finally:
            self._checking -= 1
            if not self._checking:
                self._quiet.set()

    # ------------------------------------------------------------------ strikes; each says whom it hit, "" for nobody

    def _any(self) -> Cluster:
        return self.rng.choice(self.servers.clusters)

    async def kill_server(self) -> str:
        cluster = self._any()
        seconds = self.rng.uniform(*DOWN)
        await asyncio.to_thread(cluster.kill9)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(cluster.start)
        return cluster.name

    async def stop_server(self) -> str:
        """It is there, and does not answer."""
        cluster = self._any()
        seconds = self.rng.uniform(*(LONG if self.rng.random() < OFTEN_LONG else SERVER_STOPPED))
        with stopped(cluster) as pids:
            await asyncio.sleep(seconds)
        return f"{cluster.name}, {len(pids)} processes" if pids else ""

    async def fill_disk(self) -> str:
        """Statements fail that need room, and where a new file of WAL is needed the server goes down."""
        number = self.rng.randrange(len(self.servers.disks))
        seconds, more_wal = self.rng.uniform(*FULL), self.rng.random() < 0.5
        cluster, disk = self.servers.clusters[number], self.servers.disks[number]
        try:
            await asyncio.to_thread(disk.fill)
            if more_wal:
                with suppress(*FAILURES):  # as it goes down by that
                    await _told(cluster, *[_MORE_WAL] * 3)
            await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(disk.clear)
            await _up(cluster)
        return f"{cluster.name}{' and its WAL' if more_wal else ''}"

    async def change_password(self) -> str:
        """Everybody has to log in anew, and nobody can."""
        cluster = self._any()
        seconds = self.rng.uniform(*REFUSED)
        try:
            await _set_password(cluster, cluster.password[::-1] + "!")
            await asyncio.sleep(seconds)
        finally:
            await _set_password(cluster, cluster.password)
        return cluster.name

    async def jump_clock(self) -> str:
        """Of one server, or of all our own processes."""
        clock = self.rng.choice(self.servers.clocks)
        seconds, jump = self.rng.uniform(*OFF), self.rng.randint(-JUMP, JUMP)
        clock.shift(jump)
        try:
            await asyncio.sleep(seconds)
        finally:
            clock.shift(0)
        return f"{clock.file.stem}, {jump:+d} s"

    async def end_sessions(self) -> str:
        cluster = self._any()
        try:
            await _told(cluster, _END_SESSIONS)
        except FAILURES:
            return ""
        return cluster.name

    def _victim(self, names: Sequence[str]) -> Child | None:
        """Somebody who is missed: an attempt if there is one, else a relay or a client."""
        found = [child for child in Child.living() if child.name.startswith(tuple(names))]
        return self.rng.choice(sorted(found, key=lambda child: child.pid)) if found else None

    async def kill_process(self) -> str:
        # the client that nobody hurts and the bypass writers are the witnesses
        if victim := self._victim(("attempt", "relays", "mend", "client-2")):
            victim.kill()
        return str(victim or "")

    async def stop_process(self) -> str:
        seconds = self.rng.uniform(*(LONG if self.rng.random() < OFTEN_LONG else STOPPED))
        if victim := self._victim(("attempt", "relays", "mend", "client", "bypass")):
            victim.kill(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                victim.kill(signal.SIGCONT)
        return str(victim or "")


async def _told(cluster: Cluster, *statements: str) -> None:
    """Statements of the storm's own superuser."""
    connection = await asyncpg.connect(administered(cluster))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _set_password(cluster: Cluster, password: str) -> None:
    """Of the role that all but the storm log in as; its sessions are ended. Raises where the server stays away."""
    deadline = time.monotonic() + _PATIENCE
    role, secret = quote_literal(SUPERUSER), quote_literal(password)
    statements = f"ALTER ROLE {SUPERUSER} PASSWORD {secret}", _END_LOGINS.replace("$1", role)
    while True:
        try:
            return await _told(cluster, *statements)
        except FAILURES:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def _up(cluster: Cluster) -> None:
    """Starts the server where it is down. Raises ConfigError where it does not come up."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            await asyncio.to_thread(cluster.start)
            return
        except ConfigError:  # it was going down when this began
            if time.monotonic() > deadline:
                raise
