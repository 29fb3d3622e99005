"""A run in which a scenario says what happens at which moment: one switch after the other, with its own hand in them.

What is asserted is the run's: the doctor's word after each turn, and the checker's over all logs at the end. And at the
journal, the point of no return, everything has to be ready: what was acknowledged is at the new side, the old one is
shut, and the way back is there (invariants 1, 2, 4 and 5).
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import asyncpg

from chaos import actors, ground
from chaos.cells import Level, Plan
from chaos.ground import Place
from chaos.hand import Hand
from chaos.injection import Fault, Holds
from chaos.run import Run
from chaos.tables import events, read_rows
from chaos.turns import Turn, Violation
from cutover.errors import CutoverError
from cutover.flags import store as flags
from cutover.postgres import fence
from cutover.postgres.databases import Database, Side, direction_from, other
from cutover.switch.environment import SwitchEnvironment

#: The pause's limit: a busy machine is no fault, and an attempt that slept has to find some of it left.
MAX_PAUSE = 60.0
#: Steps by which a sequence is raised beyond the other side's.
MARGIN = 5
#: Seconds after which an attempt without a heartbeat is given up, where the scenario does not want just that.
PATIENT = 30.0
_JOURNAL = "switch.journal.after"
_DRAINED = 30.0
#: Seconds for what is done beside a switch to come to its end.
_LAST_STEP = 5.0

Beside = Callable[[Holds], Coroutine[Any, Any, None]]


def hold(*points: str, hard: bool = False) -> tuple[Fault, ...]:
    """Holds at those points; `hard`: without heartbeats."""
    return tuple(Fault(point, "hold", hard=hard) for point in points)


async def nothing(_: Holds) -> None:
    """Beside a switch that nobody disturbs."""


def place(level: Level, control: Database, monolith: Database, target: Database, folder: Path) -> Place:
    """A place for a scenario, with patience and a small margin."""
    return Place(
        f"scene-{uuid4().hex[:8]}", level, control, monolith, target, str(folder / "archive"), MAX_PAUSE, MARGIN
    )


class _Called(random.Random):
    """An attempt that was killed is always called again, and never left to the doctor."""

    def random(self) -> float:
        return 1.0


class Scene(Run):
    """Use it as a context: it begins with a service that streams, under traffic; `verdict` ends it."""

    def __init__(self, level: Level, place: Place, folder: Path, env: SwitchEnvironment) -> None:
        super().__init__(Plan(0, level, ((),), "scene"), place, folder, env)
        self.driver.rng = _Called()
        self.hand = Hand(place, folder)

    async def __aenter__(self) -> Self:
        await self._install()
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.traffic.kill()
        await self.driver.awake()
        await self.relays.end()
        await self.hand.close()
        await ground.drop(self.place)

    def wrong(self, what: str) -> None:
        """Something that must not be; the scenario goes on, to see what comes of it."""
        self.result.violations.append(what)

    # ------------------------------------------------------------------ turns

    async def switch(
        self, to_side: Side, sequence: Sequence[Fault] = (), beside: Beside = nothing, *, expected: str = "done",
        silence: float = PATIENT, order: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """One switch with that happening beside it; its outcome.

        `expected` is its result: any other is noted as wrong. `silence`: see `PATIENT`. With `order` all has to be in
        order afterwards, at the side that follows from the outcome.
        """
        armed = (*sequence, *hold(_JOURNAL))
        strike = self.driver.strike(faults=armed)
        turn = Turn(to_side, [strike])
        holds = Holds(armed, strike.injector.folder)
        switch_id = f"{self.place.service}-{uuid4().hex}"
        await self.driver.activity("ready", turn, switch_id)
        hands, journal = asyncio.create_task(beside(holds)), asyncio.create_task(self._at_the_journal(holds, to_side))
        try:
            outcome: dict[str, Any] = await self.driver.call(
                actors.attempt, turn, to_side, switch_id, "section", silence=silence
            )
            await asyncio.wait({hands}, timeout=_LAST_STEP)
        finally:
            for task in (hands, journal):
                task.cancel()
            ended = await asyncio.gather(hands, journal, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        if outcome["result"] != expected:
            reason = f" ({outcome['reason']})" if outcome.get("reason") else ""
            self.wrong(f"a switch was {outcome['result']}{reason}, and had to be {expected}")
        if outcome["result"] == "done":
            await self.driver.activity("finish", turn, switch_id)
        if order:
            await self.in_order(to_side if outcome["result"] == "done" else other(to_side))
        return outcome

    async def in_order(self, side: Side) -> None:
        """Notes what the doctor finds."""
        try:
            await self.driver.in_order(side)
        except (Violation, CutoverError) as error:
            self.wrong(str(error))

    async def _at_the_journal(self, holds: Holds, to_side: Side) -> None:
        await holds.reached(_JOURNAL, PATIENT)
        pair, old = self.place.pair, other(to_side)
        there = (await read_rows(pair.at(to_side), self.place.service)).events
        if missing := [token for token in self.hand.told if token not in there]:
            self.wrong(f"journaled while {len(missing)} acknowledged writes are not at the {to_side} yet")
        async with pair.at(old).session("chaos-check") as connection:
            states = await fence.states_of(connection, await fence.relations(connection, pair.tables))
        if open_ones := [str(table) for table, state in states.items() if state != "fenced-always"]:
            self.wrong(f"journaled while the {old} is not fenced: {', '.join(open_ones)}")
        if not await self.env.stream(direction_from(to_side)).exists():
            self.wrong("journaled without a stream for the way back")
        holds.go(_JOURNAL)

    # ------------------------------------------------------------------ what a scenario does

    async def first_id(self, side: Side, ahead: int) -> int:
        """Ids of events that somebody draws at that side ahead of time; the last one."""
        async with self.place.pair.at(side).session("chaos-hand") as connection:
            sequence = await connection.fetchval("SELECT pg_get_serial_sequence($1, 'id')", events(self.place.service))
            drawn = "SELECT max(nextval($1::text::regclass)) FROM generate_series(1, $2::int)"
            return int(await connection.fetchval(drawn, sequence, ahead))

    async def stall(self) -> None:
        """The forward stream carries nothing until `flow`."""
        await self.env.stream("forward").stop()

    async def flow(self) -> None:
        """It goes on, where it is still there."""
        stream = self.env.stream("forward")
        if await stream.exists():
            await stream.start(copy=False)

    async def verdict(self) -> list[str]:
        """Ends the traffic and lets the streams drain; all that was wrong, in words."""
        await self.traffic.stop()
        await self.driver.awake()
        route = await flags.get(self.env.control, self.place.migration, self.place.service)
        stream = self.env.stream(direction_from(route.primary_side))
        try:
            await stream.await_marker(await stream.put_marker(), _DRAINED)
        except (CutoverError, asyncpg.PostgresError) as error:
            self.wrong(f"the stream of now carries nothing: {error}")
        found = await self.traffic.check(self.env, self.before)
        self.result.counts = found.counts
        self.result.violations += found.words()
        return self.result.violations
