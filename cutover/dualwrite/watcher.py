"""The process's line to the control database: routes in, leases and acknowledgements out.

One loop does both, so that their order is plain: routes are read and taken over first, then acknowledged.
A second task only listens for notifications, which wake the loop. With the control database out of reach
the gates keep their last routes, and the lease runs out by itself.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from cutover.control.database import Control
from cutover.dualwrite.gate import Gate, Lease
from cutover.flags import instances, store
from cutover.flags.instances import Instance
from cutover.flags.listening import answered, listen
from cutover.postgres.databases import FAILURES, Database

_log = logging.getLogger(__name__)

POLL = 0.25
#: Taken off the lease, for clocks that do not run alike.
DRIFT = 0.25


@dataclass(eq=False)
class Watcher:
    """Keeps the gates' routes fresh and this instance's lease alive; `run` for as long as the pool is open."""

    control: Control
    database: Database
    migration: str
    instance: Instance
    gates: Mapping[str, Gate]
    lease: Lease
    #: Called after a pause was taken over, with the service's name.
    paused: Callable[[str], None] = lambda service: None

    def __post_init__(self) -> None:
        self._wake = asyncio.Event()
        self._sent: dict[str, tuple[int, str | None, int]] = {}
        self._renewed = 0.0
        self._reachable = True
        for gate in self.gates.values():
            gate.drained = self.wake

    def wake(self) -> None:
        """Look at the routes now; also called when a gate has drained and a pause can be acknowledged."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                listen(self.database, store.CHANNEL, self._notified, self.wake, name="cutover route listener"),
                name="cutover-listen",
            )
            tasks.create_task(self._follow(), name="cutover-follow")

    async def beat(self) -> None:
        """One round: read the routes, take them over, renew and acknowledge. Raises what control raises."""
        await answered(self._load())
        fresh = self.lease.valid
        sent_at = self.lease.clock()
        due = sent_at - self._renewed >= instances.RENEW_EVERY.total_seconds() or not fresh
        for service, gate in self.gates.items():
            # the pause as it stands at this moment: what is said here must be true when it is sent
            revision, pause, epoch = acknowledgement = (gate.revision_seen, gate.acknowledgeable, gate.route.epoch)
            if due or self._sent.get(service) != acknowledgement:
                await answered(
                    instances.renew(self.control, self.instance, self.migration, service, revision, pause, epoch=epoch)
                )
                self._sent[service] = acknowledgement
        if not due:
            return
        self._renewed = sent_at
        if not (fresh and self.lease.valid):
            # Registered again: a pause announced while nobody waited for this instance is seen only by this read.
            await answered(self._load())
        self.lease.extend(sent_at + instances.LEASE.total_seconds() - DRIFT)

    async def leave(self) -> None:
        """Takes this instance off the list, so that no switch waits for it."""
        for service in self.gates:
            await answered(instances.leave(self.control, self.instance, self.migration, service))

    async def _load(self) -> None:
        for service, route in (await store.all(self.control, self.migration)).items():
            gate = self.gates.get(service)
            if gate is None:
                continue
            was = gate.route.pause_id
            if gate.apply(route) and gate.route.pause_id not in (None, was):
                self.paused(service)

    async def _follow(self) -> None:
        while True:
            try:
                await self.beat()
                self._heard(True)
            except FAILURES as error:
                self._heard(False, error)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._wake.wait()
            self._wake.clear()

    def _heard(self, reachable: bool, error: BaseException | None = None) -> None:
        if reachable and not self._reachable:
            _log.info("%s: the control database answers again", self.migration)
        elif not reachable and self._reachable:
            _log.warning(
                "%s: the control database does not answer (%s); the last routes stay in use, fences decide on writes",
                self.migration,
                type(error).__name__,
            )
        self._reachable = reachable

    def _notified(self, payload: str) -> None:
        migration, _, service = payload.partition("/")
        if migration == self.migration and service in self.gates:
            self.wake()
