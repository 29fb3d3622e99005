"""What falls on a campaign from outside: servers killed, processes killed, stopped for a while, sessions ended.

The times and the choices are drawn from the seed; what they hit depends on what runs just then. A run that is being
checked asks for calm: nothing begins meanwhile, and what is down is up again.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import asyncpg

from chaos.processes import Child
from cutover.devstack.cluster import Cluster
from cutover.postgres.databases import FAILURES

#: Seconds between two events, and how long a server is down or a process stopped, shortest and longest.
APART, DOWN, STOPPED = (1.5, 6.0), (0.2, 2.5), (0.5, 8.0)
_END_SESSIONS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5
"""


class Storm:
    """Strikes until it is cancelled. `struck` counts what it did."""

    def __init__(self, clusters: Sequence[Cluster], seed: str) -> None:
        self.clusters = list(clusters)
        self.struck: Counter[str] = Counter()
        self._rng = random.Random(f"{seed}/storm")
        self._strikes: dict[str, Callable[[], Awaitable[None]]] = {
            "server killed": self._kill_server,
            "sessions ended": self._end_sessions,
            "process killed": self._kill_process,
            "process stopped": self._stop_process,
        }
        self._checking = 0
        self._quiet = asyncio.Event()
        self._idle = asyncio.Event()
        self._quiet.set()
        self._idle.set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(*APART))
            what = self._rng.choice(list(self._strikes))
            await self._quiet.wait()
            self._idle.clear()
            try:
                await self._strikes[what]()
                self.struck[what] += 1
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

    async def _kill_server(self) -> None:
        cluster = self._rng.choice(self.clusters)
        seconds = self._rng.uniform(*DOWN)
        await asyncio.to_thread(cluster.kill9)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(cluster.start)

    async def _end_sessions(self) -> None:
        cluster = self._rng.choice(self.clusters)
        try:
            connection = await asyncpg.connect(cluster.superuser_dsn("postgres"))
            try:
                await connection.execute(_END_SESSIONS)
            finally:
                await connection.close()
        except FAILURES:
            self.struck["sessions not ended"] += 1

    def _victim(self, names: Sequence[str]) -> Child | None:
        """Somebody who is missed: an attempt if there is one, else a relay or a client."""
        found = [child for child in Child.living() if child.name.startswith(tuple(names))]
        return self._rng.choice(sorted(found, key=lambda child: child.pid)) if found else None

    async def _kill_process(self) -> None:
        # the client that nobody hurts and the bypass writers are the witnesses
        if victim := self._victim(("attempt", "relays")):
            victim.kill()

    async def _stop_process(self) -> None:
        seconds = self._rng.uniform(*STOPPED)
        if victim := self._victim(("attempt", "relays", "client", "bypass")):
            victim.kill(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                victim.kill(signal.SIGCONT)
