"""The traffic of one run: clients over the library, writers that pass it by, and the checker's word on their logs."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from chaos import actors, bypass, injection, traffic
from chaos.checker import Verdict, check
from chaos.ground import Place
from chaos.injection import Injector
from chaos.processes import Child
from chaos.sides import both_shut, done_switches, timed
from chaos.tables import Rows, read_rows
from chaos.witness import Who, Witness
from cutover.postgres.databases import SIDES, Side
from cutover.switch.environment import SwitchEnvironment

#: Processes over the library: one that nobody hurts, one that faults of its own may hit, and one that a storm may kill.
UNHURT, ARMED, KILLED = range(3)
CLIENTS = 3
_LOOPS = 3
_STARTED = 30.0


class Traffic:
    """Clients and bypass writers of one place."""

    def __init__(self, place: Place, folder: Path, seed: str) -> None:
        self.place = place
        self.folder = folder
        self._bypass = bypass.Options(folder / "bypass.jsonl", [place.service], rate=8.0)
        self._options = traffic.Options(
            folder / "client.jsonl", [place.service], clients=CLIENTS, loops=_LOOPS, readers=1, keys=12, shared=2,
            rate=24.0, reads=12.0, seed=sum(map(ord, seed)), migration=place.migration,
        )  # fmt: skip
        self._running: dict[str, Child] = {}
        self.witness = Witness(folder, lambda key: key % (CLIENTS * _LOOPS))

    def _client(self, number: int) -> traffic.Options:
        busy = 1.0 if number != KILLED else 0.4
        return replace(self._options, client=number, log=self.folder / f"client-{number}.jsonl",
                       rate=self._options.rate * busy, reads=self._options.reads * busy)  # fmt: skip

    async def start(self) -> None:
        """The clients that go on all the time, and the bypass writers; returns once they work."""
        self._running = {
            "client-0": self.client(UNHURT),
            "client-2": self.client(KILLED),
            "bypass": Child("bypass", actors.bypass_writers, self.place, self._bypass),
        }
        for child in self._running.values():
            await child.said("ready", _STARTED)
        await self.at_work("monolith", _STARTED)

    def client(self, number: int, injector: Injector | None = None) -> Child:
        """A client with these faults in it; one that was killed goes on where its log ends."""
        armed = [injector or Injector((), self.folder)]
        return Child(f"client-{number}", actors.client, self.place, self._client(number), armed)

    def keep_up(self) -> None:
        """Starts the client again that a storm has killed."""
        child = self._running.get("client-2")
        if child is not None and not child.alive and child.killed:
            self._running["client-2"] = self.client(KILLED)

    async def at_work(self, side: Side, within: float) -> None:
        """Returns once every loop of one client and some loop of the other has written there, and both have read.

        A writer past the library has to be let in there too. Raises Idle.
        """
        everybody: list[Who] = [("client-0", loop) for loop in range(_LOOPS)]
        everybody += [("client-0", "read"), ("client-2", "write"), ("client-2", "read"), ("bypass", side)]
        await self.witness.at_work(side, everybody, within)

    async def lost(self, side: Side) -> set[str]:
        """Tokens of events that were acknowledged before this call and are not at that side."""
        self.witness.look()
        acknowledged = set(self.witness.events)
        return acknowledged - (await read_rows(self.place.pair.at(side), self.place.service)).events.keys()

    async def stop(self) -> None:
        """Ends them; what is under way gets its outcome first.

        Raises ChildProcessError where one had died, or does not end; Crashed where something else ended it.
        """
        running, self._running = list(self._running.values()), {}
        for child in running:
            if not child.alive and not child.killed:
                raise ChildProcessError(f"{child.name} ended by itself: {child.waiting()}")
        statuses = await asyncio.gather(*(child.end(20) for child in running))
        for child, status in zip(running, statuses, strict=True):
            if status == -signal.SIGKILL and child.name != "client-2":  # which a storm may have killed just now
                raise ChildProcessError(f"{child.name} did not end within 20 s")
            child.require_no_crash()

    async def kill(self) -> None:
        running, self._running = list(self._running.values()), {}
        for child in running:
            child.kill()
            await child.ended(5)

    async def check(self, env: SwitchEnvironment, before: Rows, sides: Sequence[Side] = SIDES) -> Verdict:
        """These sides' rows, the logs, and the switches that were done, with the windows in which both were shut."""
        service = self.place.service
        rows: Mapping[Side, Rows] = {side: await read_rows(self.place.pair.at(side), service) for side in sides}
        turns = injection.passes(self.folder)
        done = (await done_switches(env.control, self.place.migration)).get(service, [])
        switches = {service: timed(done, turns)}
        shut = both_shut(turns)
        logs = sorted(self.folder.glob("*.jsonl"))
        return await asyncio.to_thread(check, logs, {service: rows}, switches, {service: before}, {service: shut})
