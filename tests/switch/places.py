"""Switches between databases of a test's own, each activity in a process that the crash matrix's faults can hit."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chaos.actors import _armed, _telling
from chaos.ground import Place
from chaos.injection import Injector
from chaos.processes import Say
from chaos.turns import Driver
from cutover.control.database import Control
from cutover.plan.models import Plan
from cutover.postgres.databases import Database
from cutover.switch import crossing
from cutover.switch.environment import SwitchEnvironment

#: The activities of `keys`.
Keys = Literal["detach", "restore"]


@dataclass(frozen=True)
class PlannedPlace(Place):
    """A place whose plan, service and tables are the test's. `named`: each database of the plan by its name."""

    chosen: Plan = field(kw_only=True)
    named: dict[str, Database] = field(kw_only=True)

    @property
    def service(self) -> str:
        return self.level

    @property
    def plan(self) -> Plan:
        return self.chosen


def planned(plan: Plan, service: str, control: Database, named: dict[str, Database], folder: Path) -> PlannedPlace:
    """The place of that service."""
    monolith, target = named[plan.monolith.database], named[plan.service(service).database]
    archive = str(folder / "archive")
    return PlannedPlace(plan.migration, service, control, monolith, target, archive, chosen=plan, named=named)


class _Doctored(random.Random):
    """What an attempt that was killed has left is always, or never, put right by `cutover doctor --mend` first."""

    def __init__(self, always: bool) -> None:
        super().__init__(0)
        self._always = always

    def random(self) -> float:
        return 0.0 if self._always else 1.0


def driver(place: PlannedPlace, control: Control, folder: Path, *, doctored: bool = False) -> Driver:
    """Calls each activity until it returns, as Temporal does; `doctored`: after the doctor's remedy."""
    env = SwitchEnvironment(place.plan, place.pair, control)
    return Driver(place, env, folder, _Doctored(doctored), nullcontext)


async def keys(say: Say, place: PlannedPlace, what: Keys, injectors: Sequence[Injector]) -> None:
    """The activity that takes the service's keys off the monolith, or puts them back; says what it returns."""
    async with place.opened() as env, _armed(injectors):
        if what == "detach":
            await _telling(say, crossing.detach(env))
        else:
            await _telling(say, crossing.reattach(env, place.named.__getitem__))
