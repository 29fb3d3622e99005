"""One turn of a run: a switch of the writable side with faults in it, driven to its end as Temporal would drive it.

What did not return is called again; when heartbeats stop, a second attempt begins while the first one sleeps. After the
turn everything has to be in order by `cutover doctor`'s own word, on the side that was asked for.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from chaos import actors
from chaos.actors import Stage
from chaos.cells import Cell
from chaos.ground import Place
from chaos.injection import Fault, Injector
from chaos.processes import Child, Main
from chaos.strikes import Strike, sequence
from cutover import doctor
from cutover.errors import ConfigError, PlanError, Refused
from cutover.postgres.databases import FAILURES, Side, direction_from
from cutover.switch.environment import SwitchEnvironment

T = TypeVar("T")
#: Inside, nothing strikes from outside.
Calm = Callable[[], AbstractAsyncContextManager[None]]

#: As the fenced section's activity has it (workflows/timeouts.py).
HEARTBEAT_TIMEOUT = 2.0
#: Seconds for an activity without heartbeats.
PATIENCE = 60.0
#: Seconds for one activity with all its calls, and switches begun, before a turn counts as one that does not end.
CALLING, MOST_SWITCHES = 120.0, 8
#: Seconds in which all has to be in order after a turn.
IN_ORDER = 120.0

#: How often a stage that failed is left to `cutover doctor --mend` before it is called again.
BY_DOCTOR = 0.34
#: Seconds in which an activity that sleeps as a whole is overtaken by the next attempt.
OVERTAKEN = 1.0


def _subclasses(kind: type) -> set[str]:
    """Its name, and those of all that derive from it."""
    return {kind.__name__}.union(*map(_subclasses, kind.__subclasses__()))


#: How reasons for an undone switch begin or go on that a busy machine explains.
_LATE = ("within the pause's limit", "too little of the pause is left", "the pause reached its limit")
#: Errors that Temporal would not try again (activities/errors.py).
FOR_GOOD = _subclasses(Refused) | _subclasses(PlanError) | _subclasses(ConfigError)


class Violation(Exception):
    """What must not be; its text says what, and in which turn."""


async def patiently(look: Callable[[], Awaitable[T]]) -> T:
    """What `look` gives, once the servers that it needs are up."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await look()
        except FAILURES:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


@dataclass
class Turn:
    """A switch to one side, or something else that is done in its turn, and the faults that are to happen in it."""

    to_side: Side
    strikes: list[Strike]
    #: Its place in the plan.
    number: int = 0
    #: How often an activity was called.
    calls: int = 0
    seconds: float = 0.0
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    #: Faults that came right before it, of which leases and branches may be left.
    before: int = 0
    #: What Temporal would not have tried again: a run would have stopped there and asked a person.
    parked: list[str] = field(default_factory=list)
    #: It was undone once more than its faults explain, for want of time.
    late: bool = False

    @property
    def harm(self) -> int:
        """Faults of it that have happened."""
        return sum(strike.harm for strike in self.strikes)

    @property
    def injectors(self) -> list[Injector]:
        """What its processes are armed with."""
        return [strike.injector for strike in self.strikes]

    def has(self, group: str) -> bool:
        """Whether one of its cells is of that group."""
        return any(strike.cell is not None and strike.cell.group == group for strike in self.strikes)

    def count(self) -> None:
        for strike in self.strikes:
            strike.count()

    def judge(self, *, stormy: bool) -> None:
        """Raises Violation where it was undone, or refused, and no fault that had happened by then explains that.

        Once in a turn a busy machine may: it is noted as `late`.
        """
        undone = [one for one in self.outcomes if one["result"] == "undone"]
        if broken := [one["reason"] for one in undone if "keys differ" in str(one["reason"])]:
            raise Violation(f"the marker was passed, and yet {broken[0]}")
        unexplained = max((times - one["harm"] - self.before for times, one in enumerate(undone, 1)), default=0)
        self.late = unexplained == 1 and any(text in str(one["reason"]) for text in _LATE for one in undone)
        if not stormy and unexplained > 0 and not self.late:
            told = "; ".join(f"behind {one['harm']} faults: {one['reason']}" for one in undone)
            raise Violation(f"undone {len(undone)} times, and {unexplained} of them no fault explains: {told}")
        if not stormy and self.parked and not self.harm:
            raise Violation(f"no fault had happened, and a run would have stopped: {self.parked[0]}")


class Driver:
    """Takes the part of Temporal for one place."""

    def __init__(self, place: Place, env: SwitchEnvironment, folder: Path, rng: random.Random, calm: Calm) -> None:
        self.calm = calm
        self.rng = rng
        self.place = place
        self.env = env
        self.folder = folder
        self._sleeping: list[Child] = []

    def faults_folder(self) -> Path:
        path = self.folder / f"faults-{uuid4().hex[:8]}"
        path.mkdir(parents=True)
        return path

    def strike(self, cell: Cell | None = None, faults: Sequence[Fault] = ()) -> Strike:
        """A cell's, with what it leaves open drawn, behind these faults; in a folder of its own."""
        drawn = sequence(cell, self.rng) if cell is not None else ()
        return Strike(cell, Injector((*faults, *drawn), self.faults_folder()))

    def plain(self, to_side: Side) -> Turn:
        """A turn without a fault."""
        return Turn(to_side, [self.strike()])

    async def switch(self, turn: Turn) -> None:
        """Until the service is writable at the turn's side and the old stream is gone."""
        begun = time.monotonic()
        for number in range(MOST_SWITCHES):
            # a storm may undo some of them, but not those for which it pauses
            async with self.calm() if number >= MOST_SWITCHES // 2 else nullcontext():
                if await self._switched(turn):
                    break
        else:
            reasons = "; ".join([*(str(one["reason"]) for one in turn.outcomes[-3:]), *turn.parked[-1:]])
            raise Violation(f"{MOST_SWITCHES} switches to the {turn.to_side} were undone: {reasons}")
        turn.seconds = time.monotonic() - begun

    async def _switched(self, turn: Turn) -> bool:
        """One switch; False where it was undone."""
        switch_id = f"{self.place.service}-{uuid4().hex}"
        await self.activity("ready", turn, switch_id)
        outcome = await self.activity("section", turn, switch_id)
        turn.count()
        turn.outcomes.append({**outcome, "harm": turn.harm})
        if outcome["result"] == "done":
            await self.activity("finish", turn, switch_id)
            return True
        if turn.has("take-back") and len(turn.outcomes) == 1:
            await self.call(actors.compensation, turn, "take-back", turn.to_side)
        return False

    async def activity(self, stage: Stage, turn: Turn, switch_id: str) -> Any:
        silence = HEARTBEAT_TIMEOUT if stage == "section" else PATIENCE
        return await self.call(actors.attempt, turn, turn.to_side, switch_id, stage, silence=silence)

    async def call(self, main: Main, turn: Turn, *arguments: Any, silence: float = PATIENCE) -> Any:
        """Calls until it returns; its result. Raises Violation where it never does, or ends as nothing explains."""
        said = ""
        deadline = time.monotonic() + CALLING
        while time.monotonic() < deadline:
            turn.calls += 1
            for_good = False
            child = Child(main.__name__, main, self.place, *arguments, turn.injectors)
            try:
                while (message := await self._heard(child, silence, turn)) is not None:
                    match message:
                        case ("done", result):
                            await child.ended(5)
                            return result
                        case ("failed", (kind, text)):
                            said = f"{kind}: {text}"
                            for_good = kind in FOR_GOOD
                            if for_good:
                                turn.parked.append(said)
                            await asyncio.sleep(0.2)
                            break
                await child.ended(5)
                child.require_no_crash()
                # where a run would stop and ask, a person does what the doctor says before it is called again
                if main is actors.attempt and (for_good or self.rng.random() < BY_DOCTOR):
                    await self.mended(turn, parked=said if for_good else "")
            except TimeoutError:
                # it may wake up later, and must not do any harm then
                self._sleeping.append(child)
                said = f"no heartbeat for {silence:g} s"
        raise Violation(f"{main.__name__} {arguments[-1:]} did not return within {CALLING:g} s; the last said: {said}")

    async def _heard(self, child: Child, silence: float, turn: Turn) -> tuple[str, Any] | None:
        """Its next message. Raises TimeoutError where it is silent; one that sleeps as a whole is soon given up."""
        sleeps = [file for strike in turn.strikes for file in strike.sleeps]
        awake = sum(path.exists() for path in sleeps)
        end = time.monotonic() + silence
        while True:
            try:
                return await child.message(min(0.2, silence) if sleeps else silence)
            except TimeoutError:
                if (asleep := sum(path.exists() for path in sleeps)) > awake:
                    awake, end = asleep, min(end, time.monotonic() + OVERTAKEN)
                if time.monotonic() >= end or not sleeps:
                    raise

    async def mended(self, turn: Turn, parked: str = "") -> None:
        """A person does what the doctor says, and nothing else; the turn's faults hit that too.

        `parked`: why a run would have stopped, of which the doctor then has to know.
        """
        deadline = time.monotonic() + CALLING
        told = False
        while time.monotonic() < deadline:
            found = await doctor.examine(self.env.plan, self.env.pair, self.env.control)
            if not found.problems and parked and not told:
                raise Violation(f"a run would have stopped, and the doctor knows of nothing: {parked}")
            if not found.problems:
                return
            told = True
            if not found.remedy.endswith("--mend"):
                await asyncio.sleep(0.2)  # a server is away: none of our commands can help
                continue
            child = Child("mend", actors.mend, self.place, turn.injectors)
            try:
                while await self._heard(child, PATIENCE, turn) is not None:
                    pass
                await child.ended(5)
                child.require_no_crash()
            except TimeoutError:
                self._sleeping.append(child)
        raise Violation(f"the doctor's remedy did not lead back: {found.remedy}; {'; '.join(found.problems)}")

    async def awake(self) -> None:
        """Waits for those that slept and were given up."""
        while self._sleeping:
            child = self._sleeping.pop()
            await child.ended(PATIENCE)
            child.require_no_crash()

    async def in_order(self, side: Side) -> None:
        """Raises Violation where the doctor finds something, or the stream of now carries no marker."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + IN_ORDER
        while True:
            found = await doctor.examine(self.env.plan, self.env.pair, self.env.control)
            writable = found.facts.get("flags", "")
            if not found.problems and writable.startswith(f"writes at the {side}"):
                break
            if clock() > deadline:
                raise Violation(f"after a switch to the {side}: {writable}; {'; '.join(found.problems)}")
            await asyncio.sleep(0.2)
        stream = self.env.stream(direction_from(side))

        async def carry() -> float:
            return await stream.await_marker(await stream.put_marker(), IN_ORDER)

        await patiently(carry)
