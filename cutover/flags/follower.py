"""The flags of one migration in memory, kept fresh: notifications wake it, polling stands behind them.

With the control database out of reach the last values stay, and `stale` says so. What is here is for readers of
flags: it holds no lease and acknowledges nothing, so no switch waits for it (`cutover.dualwrite` does that).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from cutover.control.database import Control
from cutover.flags import store
from cutover.flags.listening import answered, listen
from cutover.flags.store import Route
from cutover.postgres.databases import FAILURES

_log = logging.getLogger(__name__)

#: Seconds between two looks where no notification comes.
POLL = 1.0


@dataclass(frozen=True)
class Flag:
    """One flag as it is served: its value, and the route that it stands in."""

    name: str
    value: bool | int
    service: str
    epoch: int
    #: Of the route: rises at each change of any of the service's flags, and with pauses.
    revision: int
    changed_at: datetime

    @property
    def variant(self) -> str:
        """`on` or `off` for a switch, the number for a share."""
        if isinstance(self.value, bool):
            return "on" if self.value else "off"
        return str(self.value)

    @property
    def metadata(self) -> dict[str, bool | int | float | str]:
        """What is told beside the value."""
        return {"service": self.service, "epoch": self.epoch, "revision": self.revision}


def flags_of(routes: Mapping[str, Route]) -> dict[str, Flag]:
    """The flags of these routes by their names, in the order of their names."""
    found = [
        Flag(name, value, route.service, route.epoch, route.revision, route.changed_at)
        for route in routes.values()
        for name, value in route.flags.items()
    ]
    return {flag.name: flag for flag in sorted(found, key=lambda flag: flag.name)}


class Follower:
    """Holds the flags: `load` once, then `run` for as long as they are wanted. All in one event loop.

    `flags` is replaced, never changed, so a reader in another thread sees one snapshot or the next.
    """

    def __init__(
        self,
        control: Control,
        migration: str,
        *,
        changed: Callable[[list[str]], None] = lambda names: None,
        told: Callable[[bool], None] = lambda stale: None,
    ) -> None:
        """`changed` is given the names of flags that came, went or have another value; `told` each turn of `stale`."""
        self._control = control
        self.migration = migration
        self._changed = changed
        self._told = told
        self._wake = asyncio.Event()
        self.flags: Mapping[str, Flag] = MappingProxyType({})
        #: Whether the control database did not answer when it was asked last.
        self.stale = False

    async def load(self) -> None:
        """One look at the control database. Raises Unreachable and ConfigError; what was known stays then."""
        routes = await answered(store.all(self._control, self.migration))
        before, self.flags = self.flags, MappingProxyType(flags_of(routes))
        self._turn(stale=False)
        names = [name for name in sorted({*before, *self.flags}) if _value(before, name) != _value(self.flags, name)]
        if names:
            self._changed(names)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                listen(self._control.database, store.CHANNEL, self._heard, self._wake.set, name="cutover flags"),
                name="cutover-flags-listen",
            )
            tasks.create_task(self._follow(), name="cutover-flags-follow")

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.load()
            except FAILURES as error:
                self._turn(stale=True, why=type(error).__name__)

    def _turn(self, *, stale: bool, why: str = "") -> None:
        if stale == self.stale:
            return
        self.stale = stale
        if stale:
            _log.warning("%s: the control database does not answer (%s); the last flags stay", self.migration, why)
        else:
            _log.info("%s: the control database answers again", self.migration)
        self._told(stale)

    def _heard(self, payload: str) -> None:
        if payload.partition("/")[0] == self.migration:
            self._wake.set()


def _value(flags: Mapping[str, Flag], name: str) -> bool | int | None:
    return flags[name].value if name in flags else None
