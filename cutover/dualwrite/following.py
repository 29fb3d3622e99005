"""Dual-write by the plan of just now: a pool is opened before the plan is registered, and outlives its changes."""

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from cutover.control import plans
from cutover.control.database import Control
from cutover.dualwrite.gate import Gate
from cutover.dualwrite.two_sides import TwoSides, sides_of
from cutover.dualwrite.verifying import Verifier
from cutover.errors import ConfigError, Refused
from cutover.plan.models import Consistency, Plan
from cutover.postgres.databases import FAILURES, Database, Side
from cutover.streams.outbox.janitor import Janitor

_log = logging.getLogger(__name__)

#: Seconds between two looks whether there is another plan.
PLAN_EVERY = 5.0


@dataclass(eq=False)
class Outbox:
    """What one service has of dual-write just now; nothing where its plan has no outbox, or there is no plan yet."""

    sides: TwoSides | None = None
    verifier: Verifier | None = None
    #: What is at work for it.
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Following:
    """Keeps the outboxes of one process as the plan says."""

    def __init__(
        self,
        control: Control,
        migration: str,
        databases: Mapping[str, Mapping[Side, Database]],
        levels: Mapping[str, Consistency],
        gates: Mapping[str, Gate],
        limit: int,
    ) -> None:
        self._control = control
        self._migration = migration
        self._databases = databases
        self._levels = levels
        self._gates = gates
        self._limit = limit
        self._hash = ""
        self.outboxes = {service: Outbox() for service in databases}

    async def begin(self) -> None:
        """The first look. Raises ConfigError for a level that cannot be had."""
        if unknown := sorted(set(self._levels) - set(self._databases)):
            raise ConfigError(f"levels names {unknown[0]!r}, which is none of the services of this pool")
        try:
            plan, self._hash = await self._registered()
        except Refused:
            if wanted := sorted(service for service, level in self._levels.items() if level == "strong"):
                raise ConfigError(
                    f"{wanted[0]}: level {self._levels[wanted[0]]} needs the plan of {self._migration!r}, which is not "
                    "registered: `cutover plan register FILE`"
                ) from None
            return
        try:
            for service, outbox in self.outboxes.items():
                if sides := self._wanted(plan, service):
                    outbox.sides = sides
                    if sides.level == "strong":
                        await sides.require_prepared()
                    await sides.look()
                    self._attach(service)
        except BaseException:
            await self.close()
            raise

    def start(self) -> None:
        """Sets to work what there is; `close` ends it."""
        for service in self.outboxes:
            self._start(service)

    async def run(self) -> None:
        """Looks for another plan, until cancelled."""
        while True:
            await asyncio.sleep(PLAN_EVERY * random.uniform(0.8, 1.2))
            try:
                await self._look()
            except Refused:
                continue  # none is registered yet
            except FAILURES as error:
                _log.debug("%s: the plan was not read: %s", self._migration, type(error).__name__)

    async def close(self) -> None:
        """Ends what is at work, and the sessions."""
        for outbox in self.outboxes.values():
            await self._stop(outbox)
            if outbox.sides is not None:
                await outbox.sides.close()

    async def _registered(self) -> tuple[Plan, str]:
        known = await plans.record(self._control, self._migration)
        return await plans.load(self._control, self._migration, known.hash), known.hash

    def _wanted(self, plan: Plan, service: str) -> TwoSides | None:
        level = self._levels.get(service)
        if service not in plan.services and level is None:
            return None
        return sides_of(plan, service, self._databases[service], level, limit=self._limit)

    async def _look(self) -> None:
        if (await plans.record(self._control, self._migration)).hash == self._hash:
            return
        plan, found = await self._registered()
        for service in self.outboxes:
            try:
                await self._take_over(service, self._wanted(plan, service))
            except ConfigError as error:
                _log.error("%s: the plan does not fit this process, which goes on as before: %s", service, error)
        self._hash = found

    async def _take_over(self, service: str, sides: TwoSides | None) -> None:
        outbox = self.outboxes[service]
        old = outbox.sides
        if sides is None if old is None else sides is not None and sides.same_as(old):
            return
        if sides is not None:
            sides = await self._looked_at(sides)
            sides.mirror.adopted(1.2 * PLAN_EVERY)
        await self._stop(outbox)
        outbox.sides = sides
        self._attach(service)
        self._start(service)
        if old is not None:
            await old.close()
        _log.info("%s: its writes go by another plan now (level %s)", service, sides.level if sides else "eventual")

    async def _looked_at(self, sides: TwoSides) -> TwoSides:
        """A running application must not stop writing because a plan asks for what it has not: it goes on as before."""
        try:
            if sides.level == "strong":
                await sides.require_prepared()
            await sides.look()
        except ConfigError as error:
            await sides.close()
            _log.error("%s; until this pool is opened anew, this process writes at level eventual", error)
            return await self._looked_at(TwoSides(sides.pair, "eventual", limit=self._limit, planned=sides.planned))
        except BaseException:
            await sides.close()
            raise
        return sides

    def _attach(self, service: str) -> None:
        outbox, gate = self.outboxes[service], self._gates[service]
        outbox.verifier = None if outbox.sides is None else Verifier(outbox.sides, gate, self._control)
        gate.mirrored_by(None if outbox.sides is None else outbox.sides.mirror)

    def _start(self, service: str) -> None:
        outbox = self.outboxes[service]
        if outbox.sides is None or outbox.verifier is None:
            return
        outbox.tasks = [
            asyncio.create_task(outbox.sides.run(), name="cutover-sides"),
            asyncio.create_task(outbox.verifier.run(), name="cutover-verify"),
        ]
        # the relays' workers have one for every service; here is one for those whose writes it holds up
        if outbox.sides.level == "strong":
            janitor = Janitor(outbox.sides.pair, self._control)
            outbox.tasks.append(asyncio.create_task(janitor.run(), name="cutover-janitor"))

    async def _stop(self, outbox: Outbox) -> None:
        tasks, outbox.tasks = outbox.tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
