"""RoutedPool: what a service embeds so that its SQL follows its tables from the monolith to their own database.

The developer's page is docs/routed-pool.md.
"""

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from cutover.control.database import Control
from cutover.dualwrite.connections import Pools
from cutover.dualwrite.errors import PoolClosed, SpansServices
from cutover.dualwrite.following import Following
from cutover.dualwrite.gate import MAX_HELD, Gate, Lease
from cutover.dualwrite.lending import Surroundings
from cutover.dualwrite.measure import Recorder
from cutover.dualwrite.routing import before_preparation
from cutover.dualwrite.service_pool import ServicePool
from cutover.dualwrite.watcher import Watcher
from cutover.errors import ConfigError, Unreachable
from cutover.flags import instances
from cutover.flags.instances import Instance
from cutover.monitor import statistics
from cutover.monitor.statistics import Collector
from cutover.plan.models import Consistency
from cutover.postgres.databases import CONNECTION_ERRORS, FAILURES, SIDES, Database, Side, other
from cutover.telemetry.meters import instruments

_log = logging.getLogger(__name__)

#: Seconds between two flushes of statistics.
FLUSH_EVERY = 1.0
#: Seconds between two prunings, spread so that instances do not prune together.
PRUNE_EVERY = 600.0
OPEN_TIMEOUT = 30.0
CLOSE_TIMEOUT = 5.0
PATIENCE = 10.0

Databases = Callable[[str, Side], Database] | Mapping[str, Mapping[Side, Database]]


@dataclass(frozen=True)
class PoolStats:
    """What one service's requests met in this process since the pool was opened; times in milliseconds."""

    requests: int
    held: int
    held_too_long: int
    retried: int
    fenced: int
    unknown: int
    failed: int
    #: Strong writes that are done, but whose branch at the other side was left to the janitor.
    in_doubt: int
    #: Samples of reads: compared and settled, of these unlike the other side, and passed over.
    verified: int
    mismatches: int
    unverified: int
    pauses: int
    #: The longest time by which a request was later than it would have been without holding and retrying.
    longest_wait_ms: float
    #: From the announcement as this process saw it to its end.
    longest_pause_ms: float


class RoutedPool:
    """Pools for the services of one migration, routed by its flags. Open it with `RoutedPool.open`."""

    def __init__(
        self,
        watcher: Watcher,
        around: Surroundings,
        collector: Collector,
        services: dict[str, ServicePool],
        following: Following,
    ) -> None:
        self._watcher = watcher
        self._around = around
        self._collector = collector
        self._services = services
        self._following = following
        self._tasks: list[asyncio.Task[None]] = []
        self._warming: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(
        cls,
        *,
        migration: str,
        services: Sequence[str],
        control: Database,
        database: Databases,
        application: str,
        version: str = "",
        min_size: int = 0,
        max_size: int = 10,
        tables: Mapping[str, str] | None = None,
        max_held: int = MAX_HELD,
        patience: float = PATIENCE,
        open_timeout: float = OPEN_TIMEOUT,
        levels: Mapping[str, Consistency] | None = None,
        appliers: Databases | None = None,
        **options: Any,
    ) -> Self:
        """Registers this process, reads its routes and begins to follow them.

        `application` and its `version` are what `cutover fleet` shows of this process.
        `database` names the two databases of a service, by its side. `tables` maps a table to its service, so that a
        wrong `table=` is refused. `min_size` and `max_size` count connections per database; `options` go to
        `asyncpg.create_pool`. `patience`: seconds for which an operation looks for a database that is away.
        `levels` sets a service's level of consistency, in place of the registered plan's; a plan that is registered, or
        adopted, later is taken over within seconds. `appliers` names the two
        databases once more, with cutover's own role, which may write behind the fence; without it the application's
        own role has to be able to, where a level other than eventual is used.
        Raises Unreachable if the control database does not answer within `open_timeout` seconds: without it nobody
        can say where the service writes. Raises ConfigError for a level that cannot be had.
        """
        if not services:
            raise ConfigError("RoutedPool.open needs at least one service")
        lookup = _all(database, services)
        lease = Lease()
        gates = {s: Gate(before_preparation(migration, s), lease, max_held=max_held) for s in services}
        name = f"{application}-{secrets.token_hex(4)}"
        instance = Instance(name, socket.gethostname(), os.getpid(), application, version)
        opened = await _open_control(control, open_timeout)
        both = lookup if appliers is None else _all(appliers, services)
        following = Following(opened, migration, both, levels or {}, gates, max_size)
        try:
            await following.begin()
        except BaseException:
            await opened.close()
            raise
        watcher = Watcher(opened, control, migration, instance, gates, lease)
        pools = Pools(application=application, min_size=min_size, max_size=max_size, options=options)
        around = Surroundings(pools, lookup, dict(tables or {}), patience, watcher.wake)
        collector = Collector(migration, name)
        pool = cls(
            watcher,
            around,
            collector,
            {
                s: ServicePool(g, around, Recorder(s, collector, instruments(), g.counters), following.outboxes[s])
                for s, g in gates.items()
            },
            following,
        )
        watcher.paused = pool._warm
        try:
            await _first_beat(watcher, open_timeout)
        except BaseException:
            await following.close()
            await opened.close()
            raise
        following.start()
        pool._tasks = [
            asyncio.create_task(watcher.run(), name="cutover-watch"),
            asyncio.create_task(pool._report(), name="cutover-report"),
            asyncio.create_task(following.run(), name="cutover-follow-plan"),
        ]
        return pool

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def service(self, name: str) -> ServicePool:
        """The pool of one service. Raises ConfigError for one that was not opened."""
        if self._closed:
            raise PoolClosed("this RoutedPool has been closed; open a new one")
        try:
            return self._services[name]
        except KeyError:
            raise ConfigError(f"service {name!r} was not opened; this pool has {', '.join(self._services)}") from None

    def owner(self, table: str) -> ServicePool:
        """The pool of the service that owns the table. Raises SpansServices where `tables` does not know it."""
        try:
            return self.service(self._around.owners[table])
        except KeyError:
            raise SpansServices(f"no service is known for table {table!r}; pass tables= to RoutedPool.open") from None

    @property
    def instance(self) -> str:
        """The id under which the control database lists this process."""
        return self._watcher.instance.id

    def stats(self) -> dict[str, PoolStats]:
        """Counters by service."""
        return {name: PoolStats(**asdict(pool.gate.counters)) for name, pool in self._services.items()}

    async def close(self) -> None:
        """Ends in good order: reports the last second, leaves the fleet, closes the connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in [*self._tasks, *self._warming]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._warming, return_exceptions=True)
        await self._around.pools.close(CLOSE_TIMEOUT)
        await self._following.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._collector.flush(self._watcher.control)
                await self._watcher.leave()
        except FAILURES as error:
            _log.info("%s: left without a word to the control database: %s", self.instance, type(error).__name__)
        await self._watcher.control.close()

    def _warm(self, service: str) -> None:
        """A pause was announced: the other side's connections are opened while it lasts."""
        databases = self._around.databases[service]
        side = self._services[service].gate.route.primary_side
        task = asyncio.create_task(self._around.pools.warm(databases[other(side)], databases[side]))
        self._warming.add(task)
        task.add_done_callback(self._warming.discard)

    async def _report(self) -> None:
        """Flushes statistics each second; what the control database does not take now, it gets later."""
        prune_at = time.monotonic() + random.uniform(0.5, 1.0) * PRUNE_EVERY
        lapsed: list[tuple[str, str, str]] = []
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            # an outage is logged by the watcher, once
            with suppress(*FAILURES):
                await self._collector.flush(self._watcher.control)
                if time.monotonic() >= prune_at:
                    prune_at = time.monotonic() + random.uniform(0.5, 1.0) * PRUNE_EVERY
                    await statistics.prune(self._watcher.control)
                    await instances.forget(self._watcher.control, self._watcher.migration, lapsed)
                    lapsed = await instances.long_lapsed(self._watcher.control, self._watcher.migration)


def _both_sides(database: Databases, service: str) -> dict[Side, Database]:
    if callable(database):
        return {side: database(service, side) for side in SIDES}
    try:
        return {side: database[service][side] for side in SIDES}
    except KeyError as error:
        raise ConfigError(f"no database is named for service {service!r} ({error} is missing)") from None


def _all(database: Databases, services: Sequence[str]) -> dict[str, dict[Side, Database]]:
    return {service: _both_sides(database, service) for service in services}


async def _open_control(database: Database, timeout: float) -> Control:
    deadline = time.monotonic() + timeout
    while True:
        try:
            # few connections: one asks for routes, one reports
            return await Control.open(database, min_size=1, max_size=2)
        except Unreachable:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(random.uniform(0.1, 0.3))


async def _first_beat(watcher: Watcher, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            await watcher.beat()
        except (*CONNECTION_ERRORS, Unreachable) as error:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"control database {watcher.database.name!r} does not answer ({type(error).__name__}): "
                    "without it nobody can say where the service writes"
                ) from None
            await asyncio.sleep(random.uniform(0.1, 0.3))
        else:
            return
