"""One run of the matrix: a service from its first copy through its turns, under traffic; what has to hold at the end.

Around each turn runs what has to be armed: the attempt's own process, the relays and the janitor, an application that
writes strongly, the first copy, a repair. What a kill ends is started again, as a supervisor would.
"""

import asyncio
import json
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import actors, ground, tables
from chaos.cells import Cell, Plan
from chaos.ground import Place
from chaos.injection import Fault, Injector
from chaos.processes import Child
from chaos.traffic_set import Traffic
from chaos.turns import PATIENCE, Calm, Driver, Turn, Violation, count, patiently, sequence, where
from cutover import doctor
from cutover.control import audit
from cutover.errors import CutoverError, NotYet
from cutover.flags import store as flags
from cutover.postgres import replication
from cutover.postgres.databases import FAILURES, SIDES, Direction, Side, direction_from, other
from cutover.streams.logical import LogicalStream
from cutover.switch.environment import SwitchEnvironment

#: Seconds in which a fault that is armed beside the switch has to happen.
_HAPPENS = 30.0
#: Of the turns to the service, those before which the reads have moved there.
_READS_FIRST = 0.7
#: Seconds between two looks at the relays.
_LOOK = 0.3
#: A row of the ground, which no client touches.
_GROUND_KEY = tables.GROUND_KEYS - 1
_POISON_KEY = tables.GROUND_KEYS - 1_000_000


@dataclass
class Result:
    """What became of a run."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    seconds: float = 0.0
    switches: int = 0
    slots_lost: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    folder: Path = Path()

    def as_json(self) -> dict[str, Any]:
        cells = [
            {"turn": self.plan.turns.index(turn.cell), "cell": str(turn.cell), "happened": turn.happened,
             "faults": [str(one) for one in turn.sequence], "calls": turn.calls, "seconds": round(turn.seconds, 2),
             "outcomes": [f"{one['result']} {one.get('reason') or ''}".strip() for one in turn.outcomes]}
            for turn in self.turns
        ]  # fmt: skip
        return {"run": self.plan.number, "level": self.plan.level, "seed": self.plan.seed, "turns": cells,
                "switches": self.switches, "seconds": round(self.seconds, 1), "violations": self.violations,
                "counts": self.counts}  # fmt: skip

    @classmethod
    def from_json(cls, plan: Plan, found: dict[str, Any]) -> "Result":
        """What `as_json` has kept, as far as a report needs it."""
        turns = [Turn(plan.turns[one["turn"]], "service", happened=one["happened"]) for one in found["turns"]]
        return cls(plan, found["violations"], turns, found["seconds"], found["switches"], counts=found["counts"])


class Run:
    """Executes one plan at one place."""

    def __init__(
        self,
        plan: Plan,
        place: Place,
        folder: Path,
        env: SwitchEnvironment,
        calm: Calm,
    ) -> None:
        self.plan = plan
        self.calm = calm
        self.place = place
        self.folder = folder
        self.env = env
        self.rng = random.Random(plan.seed)
        self.driver = Driver(place, env, folder, self.rng, calm)
        self.traffic = Traffic(place, folder, plan.seed)
        self.result = Result(plan, folder=folder)
        self._relays: Child | None = None
        #: Held by whoever starts and ends them.
        self._arming = asyncio.Lock()
        self._poisoned = _POISON_KEY

    async def execute(self) -> Result:
        """Never raises for what it finds."""
        begun = time.monotonic()
        supervising = asyncio.create_task(self._supervise())
        try:
            async with self.calm():
                # a storm would begin the first pass anew for ever; its own faults hit the copy all the same
                await self._install()
                await self._begin()
            for number, cell in enumerate(self.plan.turns):
                to_side: Side = "service" if number % 2 == 0 else "monolith"
                if number in self.plan.slots_lost:
                    await self._lose_the_slot(other(to_side))
                await self._turn(cell, to_side)
                self.result.switches += 1
            async with self.calm():
                await self._end()
        except Violation as found:
            self.result.violations.append(str(found))
        except (*FAILURES, ChildProcessError) as error:
            self.result.violations.append(f"{type(error).__name__}: {error}")
        finally:
            supervising.cancel()
            await asyncio.wait({supervising})
            if not supervising.cancelled():
                self.result.violations.append(f"the relays do not start: {supervising.exception()}")
            await self.traffic.kill()
            await self.driver.awake()
            await self._end_relays()
            self.result.seconds = time.monotonic() - begun
            if self.result.violations:
                await self._keep()
        return self.result

    # ------------------------------------------------------------------ the run

    async def _install(self) -> None:
        await ground.install(self.place)
        await ground.start(self.env)

    async def _begin(self) -> None:
        async with self._arming:
            await self._start_relays()
        await self.traffic.start()
        first = self.plan.turns[0]
        turn = Turn(first, "service")
        if first is not None and where(first) == "copy":
            turn.sequence = sequence(first, self.rng)
        folder = self.driver.faults_folder()
        await self.driver.call(actors.first_copy, turn, folder)
        if turn.sequence:
            count(folder, turn)
            self.result.turns.append(turn)

    async def _turn(self, cell: Cell | None, to_side: Side) -> None:
        turn = Turn(cell, to_side)
        folder = self.driver.faults_folder()
        at = where(cell) if cell is not None else "attempt"
        if to_side == "service" and self.rng.random() < _READS_FIRST:
            await patiently(self._move_reads)
        if cell is not None and at != "copy":
            turn.sequence = sequence(cell, self.rng)
            self.result.turns.append(turn)
        try:
            match at:
                case "attempt":
                    if cell is not None and cell.point.startswith("ready.drop"):
                        await self._lose_the_way_back(to_side)
                    await self.driver.switch(turn, folder)
                case "relay":
                    await self._relay_faults(turn, folder)
                    await self.driver.switch(Turn(None, to_side), folder)
                case "writer":
                    await self._client_faults(turn, folder)
                    await self.driver.switch(Turn(None, to_side), folder)
                case "repair":
                    await self._repair(turn, folder)
                    await self.driver.switch(Turn(None, to_side), folder)
                case "rebuild":
                    await self.driver.switch(Turn(None, to_side), folder)
                    name = "rebuild"
                    if cell is not None and cell.point.startswith("rebuild.follow"):
                        await self._lose_the_record(to_side)
                        name = "follow"
                    await self.driver.call(actors.compensation, turn, folder, name, to_side)
                case "copy" | "end":
                    await self.driver.switch(Turn(None, to_side), self.driver.faults_folder())
            await self.driver.in_order(to_side)
        finally:
            if at != "end":
                count(folder, turn)

    async def _end(self) -> None:
        await self.traffic.stop()
        await self.driver.awake()
        last = self.plan.turns[-1]
        side: Side = "service" if len(self.plan.turns) % 2 else "monolith"
        stream = self.env.stream(direction_from(side))
        await stream.await_marker(await stream.put_marker(), 30)
        found = await self.traffic.check(self.env)
        self.result.counts = found.counts
        self.result.violations += [f"{number} × {name}" for name, number in found.violations.items()]
        if found.shown:
            (self.folder / "verdict.json").write_text(json.dumps(found.as_json(), indent=1))
        if last is not None and where(last) == "end":
            await self._clean_up(last)

    async def _move_reads(self) -> None:
        """The read switch comes before that of the writes; a rollback takes the reads back with it."""
        await flags.set_read_from_new(self.env.control, self.place.migration, self.place.service, True, actor="chaos")

    # ------------------------------------------------------------------ faults beside the switch

    async def _supervise(self) -> None:
        """Starts the relays again where a storm has killed them."""
        while True:
            await asyncio.sleep(_LOOK)
            async with self._arming:
                if self._relays is not None and not self._relays.alive:
                    await self._start_relays()

    async def _start_relays(self) -> None:
        """Without faults; once more where a server is away. Raises ChildProcessError where they never start."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._relays = Child("relays", actors.relays, self.place, (), self.driver.faults_folder())
            try:
                await self._relays.said("ready", 20)
                return
            except ChildProcessError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK)

    async def _end_relays(self) -> None:
        async with self._arming:
            if self._relays is not None:
                await self._relays.end()
            self._relays = None

    async def _keep_up(self, turn: Turn, folder: Path, start: Callable[[], Child]) -> Child:
        """Runs a process until all faults have happened, and starts it again where one ended it."""
        child = start()
        deadline = time.monotonic() + _HAPPENS
        injector = Injector(turn.sequence, folder)
        while injector.happened() < len(turn.sequence):
            if time.monotonic() > deadline:
                break  # told by the count of what has happened
            if not child.alive:
                await child.ended(1)
                child = start()
            await asyncio.sleep(0.02)
        return child

    async def _relay_faults(self, turn: Turn, folder: Path) -> None:
        assert turn.cell is not None
        if turn.cell.group == "janitor":
            await self._leave_in_doubt()
        if turn.cell.point.startswith("relay.hold"):
            await self._poison(turn)
        await self._end_relays()
        async with self._arming:
            armed = await self._keep_up(
                turn, folder, lambda: Child("relays", actors.relays, self.place, turn.sequence, folder)
            )
            # a process that was killed this moment may still look alive
            await armed.end()
            await self._start_relays()
        if turn.cell.point.startswith("relay.hold"):
            await self._cure(turn)

    async def _leave_in_doubt(self) -> None:
        places = ("strong.prepare.after", "strong.commit.after")
        armed = Turn(None, "service", (Fault(self.rng.choice(places), "kill"),))
        await self._client_faults(armed, self.driver.faults_folder())

    async def _client_faults(self, turn: Turn, folder: Path) -> None:
        """A client that its faults hit; it is ended afterwards in good order."""
        child = await self._keep_up(turn, folder, lambda: self.traffic.client(1, turn.sequence, folder))
        await child.end(20)

    async def _repair(self, turn: Turn, folder: Path) -> None:
        """A row of the other side is changed behind everybody's back, found and mended."""
        direction = direction_from(other(turn.to_side))
        sink = self.env.pair.sink(direction)
        table = tables.items(self.place.service)
        await ground.behind_the_fence(sink, f"UPDATE {table} SET value = 'changed' WHERE key = {_GROUND_KEY}")
        await self.driver.call(actors.repair, turn, folder, direction)
        async with self.env.changed(direction):
            if differing := await ground.verify(self.env, direction):
                raise Violation(f"{differing} rows differ after their repair")

    async def _lose_the_way_back(self, to_side: Side) -> None:
        """It is made ready before its time, and its slot goes as an administrator's mistake would have it."""
        await self.driver.activity("ready", Turn(None, to_side), "", self.driver.faults_folder())
        direction = direction_from(to_side)
        name = LogicalStream(self.env.pair, direction).subscription
        await ground.execute(self.env.pair.sink(direction), f"ALTER SUBSCRIPTION {name} DISABLE")
        await self._drop_slot(direction)

    async def _lose_the_slot(self, side: Side) -> None:
        """The slot of the stream of now goes by a mistake; the doctor has to see it, and a person does what it says."""
        async with self.calm():
            await self._drop_slot(direction_from(side))
            self.result.slots_lost += 1
            await self._require_remedy("a slot is lost")
        await self.driver.mended()
        await self.driver.in_order(side)

    async def _drop_slot(self, direction: Direction) -> None:
        name = LogicalStream(self.env.pair, direction).subscription
        async with asyncio.timeout(_HAPPENS), self.env.pair.source(direction).session("chaos-admin") as source:
            while await replication.has_slot(source, name):
                with suppress(NotYet):
                    await replication.drop_slot(source, name)
                await asyncio.sleep(0.05)

    async def _lose_the_record(self, primary: Side) -> None:
        """The slot of the changed keys goes as an administrator's mistake would have it; the doctor sees it."""
        direction = direction_from(primary)
        async with self.env.pair.source(direction).session("chaos-admin") as source:
            await replication.drop_slot(source, self.env.changed(direction).slot)
        await self._require_remedy("a record of changed keys is lost")

    async def _require_remedy(self, what: str) -> None:
        found = await doctor.examine(self.env.plan, self.env.pair, self.env.control)
        if not found.remedy.endswith("--mend"):
            raise Violation(f"{what}, and the doctor says: {found}")

    async def _poison(self, turn: Turn) -> None:
        """A row that the other side refuses for good."""
        self._poisoned -= 1
        sink, source = self._ends(turn)
        table = tables.items(self.place.service)
        await ground.execute(
            sink, f"ALTER TABLE {table} ADD CONSTRAINT chaos CHECK (key <> {self._poisoned}) NOT VALID"
        )
        value = tables.value_of(tables.GROUND, self._poisoned)
        sql = f"INSERT INTO {table} VALUES ({self._poisoned}, '{value}', 1, '{tables.GROUND}')"
        await ground.execute(source, sql)

    async def _cure(self, turn: Turn) -> None:
        """As a person does: the cause is taken away, and what was held is tried again."""
        sink, source = self._ends(turn)
        table = tables.items(self.place.service)
        await ground.execute(sink, f"ALTER TABLE {table} DROP CONSTRAINT chaos")
        stream = self.env.stream(direction_from(other(turn.to_side)))
        async with asyncio.timeout(_HAPPENS):
            while await ground.retry_held(source, self.place.service) or not (await stream.health()).ok:
                await asyncio.sleep(0.1)

    def _ends(self, turn: Turn) -> tuple[Any, Any]:
        direction: Direction = direction_from(other(turn.to_side))
        return self.env.pair.sink(direction), self.env.pair.source(direction)

    async def _clean_up(self, cell: Cell) -> None:
        turn = next(turn for turn in self.result.turns if turn.cell is cell)
        folder = self.driver.faults_folder()
        await self._end_relays()  # as the run that kept them has ended by then
        for step in actors.CLEANUP:
            await self.driver.call(actors.cleanup, turn, folder, step)
        count(folder, turn)

    # ------------------------------------------------------------------ what is kept of a failed one

    async def _keep(self) -> None:
        """The run's own notes beside the clients' logs, for whoever looks into it."""
        with suppress(CutoverError):
            async with self.env.control.transaction() as connection:
                entries = await audit.entries(connection, self.place.migration, 10_000)
            (self.folder / "audit.txt").write_text("\n".join(map(str, entries)))
            (self.folder / "run.txt").write_text(f"{self.plan}\n" + "\n".join(self.result.violations))
            found = await doctor.examine(self.env.plan, self.env.pair, self.env.control)
            (self.folder / "doctor.txt").write_text(str(found))
            here, there = [await tables.read_rows(self.place.pair.at(side), self.place.service) for side in SIDES]
            (self.folder / "differing.txt").write_text("\n".join(tables.differing(here, there)))


def remove(folder: Path) -> None:
    """The folder of a run that needs no looking into."""
    shutil.rmtree(folder, ignore_errors=True)
