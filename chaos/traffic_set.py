"""The traffic of one run: clients over the library, writers that pass it by, and the checker's word on their logs."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chaos import actors, bypass, traffic
from chaos.checker import Verdict, check
from chaos.ground import Place
from chaos.injection import Fault
from chaos.processes import Child
from chaos.sides import done_switches
from chaos.tables import read_rows
from cutover.postgres.databases import SIDES
from cutover.switch.environment import SwitchEnvironment

#: Processes over the library: one that nobody hurts, and one that faults of its own may hit.
CLIENTS = 2
_STARTED = 30.0


class Traffic:
    """Clients and bypass writers of one place."""

    def __init__(self, place: Place, folder: Path, seed: str) -> None:
        self.place = place
        self.folder = folder
        self._bypass = bypass.Options(folder / "bypass.jsonl", [place.service], rate=8.0)
        self._options = traffic.Options(
            folder / "client.jsonl", [place.service], clients=CLIENTS, loops=3, readers=1, keys=12, shared=2,
            rate=30.0, reads=15.0, seed=sum(map(ord, seed)), migration=place.migration,
        )  # fmt: skip
        self._running: list[Child] = []

    def _client(self, number: int) -> traffic.Options:
        return replace(self._options, client=number, log=self.folder / f"client-{number}.jsonl")

    async def start(self) -> None:
        """The client that nobody hurts, and the bypass writers; returns once they write."""
        self._running = [
            self.client(0, (), self.folder),
            Child("bypass", actors.bypass_writers, self.place, self._bypass),
        ]
        for child in self._running:
            await child.said("ready", _STARTED)
        async with asyncio.timeout(_STARTED):
            while not (log := self._client(0).log).exists() or '"ok"' not in log.read_text():
                await asyncio.sleep(0.05)

    def client(self, number: int, armed: Sequence[Fault], folder: Path) -> Child:
        """A client with these faults in it; one that was killed goes on where its log ends."""
        return Child(f"client-{number}", actors.client, self.place, self._client(number), armed, folder)

    async def stop(self) -> None:
        """Ends them; what is under way gets its outcome first. Raises ChildProcessError where one had died."""
        for child in self._running:
            if not child.alive:
                raise ChildProcessError(f"{child.name} ended by itself: {child.waiting()}")
        for child in self._running:
            await child.end(20)
        self._running.clear()

    async def kill(self) -> None:
        for child in self._running:
            child.kill()
            await child.ended(5)
        self._running.clear()

    async def check(self, env: SwitchEnvironment) -> Verdict:
        """Both sides' rows, the logs and the switches that were done."""
        service = self.place.service
        rows = {side: await read_rows(self.place.pair.at(side), service) for side in SIDES}
        switches = await done_switches(env.control, self.place.migration)
        logs = sorted(self.folder.glob("*.jsonl"))
        return await asyncio.to_thread(check, logs, {service: rows}, switches)
