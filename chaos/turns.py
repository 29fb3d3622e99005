"""One turn of a run: a switch of the writable side with faults in it, driven to its end as Temporal would drive it.

What did not return is called again; when heartbeats stop, a second attempt begins while the first one sleeps. After the
turn everything has to be in order by `cutover doctor`'s own word, on the side that was asked for.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

from chaos import actors
from chaos.actors import Stage
from chaos.cells import AT_THE_END, LAST, Cell
from chaos.ground import MAX_PAUSE, Place
from chaos.injection import Fault, Injector, Kind
from chaos.processes import Child, Main
from cutover import doctor
from cutover.errors import ConfigError, PlanError, Refused
from cutover.flags import store as flags
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

#: How often a stage that failed is left to `cutover doctor --mend`, and what a section's outcome is called then.
BY_DOCTOR, MENDED = 0.34, "mended"
#: Seconds in which an activity that sleeps as a whole is overtaken by the next attempt.
OVERTAKEN = 1.0

_PLACES = (".before", ".after")
#: Points behind which the next commit is the journal's: who has lost its answer looks, and goes on.
JOURNALS = (
    "switch.compare.after",
    *(f"switch.{step}.{place}" for step in ("turn", "standbys", "unfence") for place in ("before", "after")),
    "switch.journal.before",
)
BEFORE_JOURNAL = ("fence", "marker", "sequences", "compare", "unfence")
AFTER_JOURNAL = ("switch.journal.after", "switch.commit.before", "switch.commit.after", "switch.flip.before")
#: Steps in which nothing has begun that would be undone.
UNBEGUN = ("switch.token", "switch.seize", "switch.clear", "switch.begin")
UNDO = ("undo.decide", "undo.open", "undo.resume", "undo.shut", "recovery.done")
COMPLETE = ("complete.marker", "complete.open", "complete.flip", "complete.shut", "recovery.done")
FINISH = ("finish.prove", "finish.changed", "finish.stream")
#: Groups of points whose processes have deadlines of their own: the pause, a lease, a janitor's patience.
_TIMED = ("switch", "undo", "complete", "recovery", "relay", "janitor", "strong")
#: Where a second fault meets what follows a point that is not passed twice.
NEXT = {
    "switch.done.after": FINISH,
    "undo.decide.after": UNDO[1:],
    # the control database is back when it is called again
    "undo.reopen.before": UNDO[1:],
    "undo.reopen.after": UNDO[1:],
    "ready.drop.after": ("ready.prepare",),
    "relay.hold.after": ("relay.apply",),
    "archive.prove.after": ("retire.rename",),
    "mend.lift.after": ("mend.fences",),
}
#: Points whose commit is looked up by the same process where it was cut, which then goes on.
LOOKED_UP = ("undo.shut.after", "complete.shut.after", "recovery.done.before", "archive.prove.before")
#: Points whose commit is not made again where it was done and only its answer was lost.
DONE_ONCE = ("undo.decide.before", "relay.hold.before", "mend.lift.before")


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
    """A switch to one side, and the faults that are to happen in it."""

    cell: Cell | None
    to_side: Side
    sequence: tuple[Fault, ...] = ()
    #: Its place in the plan.
    number: int = 0
    #: Faults of the sequence that have happened, and how often an activity was called.
    happened: int = 0
    calls: int = 0
    #: The statements in which a connection was lost.
    cut: list[str] = field(default_factory=list)
    seconds: float = 0.0
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    #: Faults that came right before it, of which leases and branches may be left.
    before: int = 0
    #: What Temporal would not have tried again: a run would have stopped there and asked a person.
    parked: list[str] = field(default_factory=list)
    #: It was undone once more than its faults explain, for want of time.
    late: bool = False

    @property
    def reached(self) -> bool:
        """Whether all has happened that its cell is."""
        return self.cell is not None and self.happened == len(self.sequence)

    @property
    def harm(self) -> int:
        """Faults that have happened, but for one that only lets the next one wait for its moment."""
        return sum(one.kind != "delay" or one.seconds > 0 for one in self.sequence[: self.happened])

    def count(self, folder: Path) -> None:
        """Notes how many of its faults have happened, which come in their order, and the statements they have cut."""
        self.happened = Injector(self.sequence, folder).happened()
        self.cut = [sql for number in range(self.happened) if (sql := (folder / str(number)).read_text())]

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


def fault(point: str, kind: Kind, rng: random.Random, hard: bool | None = None) -> Fault:
    """One of that kind, with what is left open drawn."""
    seconds = round(rng.uniform(MAX_PAUSE + 0.5, MAX_PAUSE + 2.0), 2) if kind == "delay" else 0.0
    drawn = rng.random() < 0.5
    return Fault(point, kind, seconds, hard=drawn if hard is None else hard)


def sequence(cell: Cell, rng: random.Random) -> tuple[Fault, ...]:
    """The faults of a cell: what has to happen first, its own, and another one on recovery."""
    found: list[Fault] = []
    done = False
    if cell.group == "undo" or (cell.group == "recovery" and rng.random() < 0.5):
        lead = f"switch.{rng.choice(BEFORE_JOURNAL)}.after"
        found.append(fault(lead, "error" if cell.step == "undo.reopen" else rng.choice(("error", "kill")), rng))
    elif cell.group in ("complete", "recovery"):
        found.append(fault(rng.choice(AFTER_JOURNAL), "kill", rng))
        done = True
    elif cell.group == "take-back":
        found.append(fault("switch.fence.after", "error", rng))
    if cell.step == "undo.reopen":  # the control database is away where the switch is to be undone
        found.append(fault("undo.decide.before", "error", rng, hard=False))
    # of a server that refuses there is no doubt; a process that sleeps as a whole is overtaken, which of the others
    # only one with a deadline for its heartbeats would be
    refuses = cell.group == "strong" and cell.kind == "error"
    hard = True if refuses or (cell.kind == "delay" and (cell.again or cell.group not in _TIMED)) else None
    found.append(fault(cell.point, cell.kind, rng, hard))
    if cell.again:
        found.append(fault(_again(cell, found[-1], done, rng), cell.kind, rng))
    return tuple(found)


def _again(cell: Cell, first: Fault, done: bool, rng: random.Random) -> str:
    """Where the second fault happens: at the same point, or at one that what follows the first one passes."""
    # a commit that was cut is looked up or made again, so what comes before it is not passed twice
    unanswered = cell.kind == "reset" and not first.hard
    cut = (cell.kind == "reset" and cell.point in LOOKED_UP) or (unanswered and cell.point in DONE_ONCE)
    steps = NEXT.get(cell.step + ".after" if cut else cell.point)
    if cell.point == "recovery.done.after" or (cut and cell.point in LOOKED_UP and cell.group != "archive"):
        steps = FINISH if done else ("switch.token", "switch.fence", "switch.marker")
    elif unanswered and cell.point in JOURNALS:
        steps = ("switch.commit", "switch.flip", *FINISH)
    elif cell.point in (*AFTER_JOURNAL, "switch.flip.after", "switch.done.before"):
        # the same, and then the switch goes on
        steps = FINISH if cell.kind == "reset" else COMPLETE
    elif steps is None and cell.group == "switch" and cell.step not in UNBEGUN and rng.random() < 0.5:
        steps = UNDO
    if steps is None:
        return cell.point
    points = [step + place for step in steps for place in _PLACES]
    return rng.choice([point for point in points if cell.kind != "reset" or point not in LAST])


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

    async def switch(self, turn: Turn, folder: Path) -> None:
        """Until the service is writable at the turn's side and the old stream is gone."""
        begun = time.monotonic()
        for number in range(MOST_SWITCHES):
            # a storm may undo some of them, but not those for which it pauses
            async with self.calm() if number >= MOST_SWITCHES // 2 else nullcontext():
                if await self._switched(turn, folder):
                    break
        else:
            reasons = "; ".join([*(str(one["reason"]) for one in turn.outcomes[-3:]), *turn.parked[-1:]])
            raise Violation(f"{MOST_SWITCHES} switches to the {turn.to_side} were undone: {reasons}")
        turn.seconds = time.monotonic() - begun

    async def _switched(self, turn: Turn, folder: Path) -> bool:
        """One switch; False where it was undone."""
        switch_id = f"{self.place.service}-{uuid4().hex}"
        await self.activity("ready", turn, switch_id, folder)
        outcome = await self.activity("section", turn, switch_id, folder)
        turn.count(folder)
        turn.outcomes.append({**outcome, "harm": turn.harm})
        if outcome["result"] == "done" or (outcome["result"] == MENDED and await self._writable() == turn.to_side):
            await self.activity("finish", turn, switch_id, folder)
            return True
        if turn.cell is not None and turn.cell.group == "take-back" and len(turn.outcomes) == 1:
            await self.call(actors.compensation, turn, folder, "take-back", turn.to_side)
        return False

    async def activity(self, stage: Stage, turn: Turn, switch_id: str, folder: Path) -> Any:
        return await self.call(actors.attempt, turn, folder, turn.to_side, switch_id, stage,
                               silence=HEARTBEAT_TIMEOUT if stage == "section" else PATIENCE)  # fmt: skip

    async def call(self, main: Main, turn: Turn, folder: Path, *arguments: Any, silence: float = PATIENCE) -> Any:
        """Calls until it returns; its result. Raises Violation where it never does, or ends as nothing explains."""
        said = ""
        deadline = time.monotonic() + CALLING
        while time.monotonic() < deadline:
            turn.calls += 1
            for_good = False
            child = Child(main.__name__, main, self.place, *arguments, turn.sequence, folder)
            try:
                while (message := await self._heard(child, silence, turn, folder)) is not None:
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
                    mended = await self.mended(turn, folder, parked=said if for_good else "")
                    if "section" in arguments:
                        return mended
            except TimeoutError:
                # it may wake up later, and must not do any harm then
                self._sleeping.append(child)
                said = f"no heartbeat for {silence:g} s"
        raise Violation(f"{main.__name__} {arguments[-1:]} did not return within {CALLING:g} s; the last said: {said}")

    async def _heard(self, child: Child, silence: float, turn: Turn, folder: Path) -> tuple[str, Any] | None:
        """Its next message. Raises TimeoutError where it is silent; one that sleeps as a whole is soon given up."""
        sleeps = [folder / str(number) for number, one in enumerate(turn.sequence) if one.kind == "delay" and one.hard]
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

    async def mended(self, turn: Turn, folder: Path, parked: str = "") -> dict[str, Any]:
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
                return {"result": MENDED, "reason": "by the doctor's remedy"}
            told = True
            if not found.remedy.endswith("--mend"):
                await asyncio.sleep(0.2)  # a server is away: none of our commands can help
                continue
            child = Child("mend", actors.mend, self.place, turn.sequence, folder)
            try:
                while await self._heard(child, PATIENCE, turn, folder) is not None:
                    pass
                await child.ended(5)
                child.require_no_crash()
            except TimeoutError:
                self._sleeping.append(child)
        raise Violation(f"the doctor's remedy did not lead back: {found.remedy}; {'; '.join(found.problems)}")

    async def _writable(self) -> Side:
        async def look() -> Side:
            return (await flags.get(self.env.control, self.place.migration, self.place.service)).primary_side

        return await patiently(look)

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


Where = Literal["attempt", "relay", "writer", "copy", "repair", "mending", "end"]


def where(cell: Cell) -> Where:
    """Which process passes the cell's point."""
    match cell.group:
        case "relay" | "janitor":
            return "relay"
        case "strong":
            return "writer"
        case "backfill":
            return "copy"
        case "repair":
            return "repair"
        case "rebuild" | "mend":
            return "mending"
        case group if group in AT_THE_END:
            return "end"
        case _:
            return "attempt"
