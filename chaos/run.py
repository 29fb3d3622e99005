"""One run of the matrix: a service from its first copy through its turns, under traffic; what has to hold at the end.

Around each turn runs what has to be armed: the attempt's own process, the relays and the janitor, an application that
writes strongly, the first copy, a repair. What a kill ends is started again, as a supervisor would. After each turn
everything has to be in order, every client at work at the new side, and all that was acknowledged there.
"""

import asyncio
import json
import random
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from chaos import actors, ending, ground, mishaps, relays, tables
from chaos.cells import Cell, Plan, Where, where
from chaos.ground import Place
from chaos.injection import Fault
from chaos.processes import Child, Crashed
from chaos.relays import Relays
from chaos.results import Result
from chaos.strikes import Strike
from chaos.traffic_set import ARMED, Traffic
from chaos.turns import Calm, Driver, Turn, Violation, patiently
from chaos.witness import Idle
from cutover import doctor
from cutover.control import audit
from cutover.flags import store as flags
from cutover.postgres.databases import FAILURES, SIDES, Side, direction_from, other
from cutover.switch.environment import SwitchEnvironment

#: Of the turns to the service, those before which the reads have moved there.
_READS_FIRST = 0.7
#: Of the turns whose faults hit a relay or a strong writer, those in which a switch is under way then; and the points
#: that it has come to at the least: of a writer, who waits behind the announcement, before that.
_BESIDE = 0.5
_MOMENTS: dict[Where, Sequence[str]] = {
    "relay": ("ready.prove.before", "switch.fence.before", "switch.fence.after", "switch.marker.after",
              "switch.journal.after", "finish.prove.before"),
    "writer": ("ready.prove.before", "ready.prove.after", "switch.token.before", "switch.begin.after"),
}  # fmt: skip
#: Seconds in which everybody has to be at work at the new side.
_AT_WORK = 60.0


class Run:
    """Executes one plan at one place; `storm` gives times without strikes, where there are any."""

    def __init__(
        self,
        plan: Plan,
        place: Place,
        folder: Path,
        env: SwitchEnvironment,
        storm: Calm | None = None,
    ) -> None:
        self.plan = plan
        self.stormy, self.calm = storm is not None, storm or nullcontext
        self.place = place
        self.folder = folder
        self.env = env
        self.rng = random.Random(plan.seed)
        self.driver = Driver(place, env, folder, self.rng, self.calm)
        self.traffic = Traffic(place, folder, plan.seed)
        self.result = Result(plan, folder=folder)
        #: The rows that no client has made.
        self.before = tables.Rows()
        self.relays = Relays(place, self.driver.faults_folder)
        self._poison = mishaps.Poison()

    async def execute(self) -> Result:
        """Never raises for what it finds."""
        begun = time.monotonic()
        supervising = asyncio.create_task(self._supervise())
        try:
            async with self.calm():
                # a storm would begin the first pass anew for ever; its own faults hit the copy all the same
                await self._install()
                await self._begin()
            for number, cells in enumerate(self.plan.turns):
                to_side: Side = "service" if number % 2 == 0 else "monolith"
                if number in self.plan.slots_lost:
                    await self._lose_the_slot(other(to_side))
                await self._turn(number, cells, to_side)
                self.result.switches += 1
            async with self.calm():
                await self._end()
        except (Violation, Idle, Crashed) as found:
            self.result.violations.append(str(found))
        except (*FAILURES, ChildProcessError) as error:
            self.result.violations.append(f"{type(error).__name__}: {error}")
        finally:
            supervising.cancel()
            await asyncio.wait({supervising})
            if not supervising.cancelled():
                self.result.violations.append(f"the relays: {supervising.exception()}")
            await self.traffic.kill()
            await self.driver.awake()
            await self.relays.end()
            self.result.seconds = time.monotonic() - begun
            if self.result.violations:
                async with self.calm():
                    await self._keep()
        return self.result

    # ------------------------------------------------------------------ the run

    async def _install(self) -> None:
        await ground.install(self.place)
        self.before = await tables.read_rows(self.place.monolith, self.place.service)
        await ground.start(self.env)

    async def _begin(self) -> None:
        await self.relays.start()
        await self.traffic.start()
        copies = [cell for cell in self.plan.turns[0] if where(cell) == "copy"]
        with self._counted("service", 0, [self.driver.strike(cell) for cell in copies]) as turn:
            await self.driver.call(actors.first_copy, turn)

    @contextmanager
    def _counted(self, to_side: Side, number: int, strikes: Sequence[Strike]) -> Iterator[Turn]:
        """A turn with those; how many of their faults have happened is known at its end, whatever that is."""
        turn = Turn(to_side, [*strikes] or [self.driver.strike()], number)
        if strikes:
            self.result.turns.append(turn)
        try:
            yield turn
        finally:
            turn.count()

    async def _turn(self, number: int, cells: Sequence[Cell], to_side: Side) -> None:
        if to_side == "service" and self.rng.random() < _READS_FIRST:
            await patiently(self._move_reads)
        #: Of relays and writers those that are hit while a switch is under way, and what waits for it to come so far.
        moments = {cell: moment for cell in cells if (moment := self._moment(cell))}
        in_switch = [cell for cell in cells if where(cell) == "attempt" or cell in moments]
        strikes = {cell: self.driver.strike(cell, moments.get(cell, ())) for cell in in_switch}
        with self._counted(to_side, number, [*strikes.values()]) as switch:
            for cell in cells:
                if where(cell) in _MOMENTS and cell not in moments:
                    with self._counted(to_side, number, [self.driver.strike(cell)]) as before:
                        await self._beside(cell, before.strikes[0], to_side)
                    switch.before += len(before.strikes[0].sequence)
                elif where(cell) == "repair":
                    with self._counted(to_side, number, [self.driver.strike(cell)]) as repair:
                        await self._repair(repair)
                    repair.judge(stormy=self.stormy)
            if any(cell.step == "ready.drop" for cell in cells):
                await self._lose_the_way_back(to_side)
            await self._at_once([self._beside(cell, strikes[cell], to_side) for cell in moments], switch)
            for cell in cells:
                if where(cell) == "mending":
                    with self._counted(to_side, number, [self.driver.strike(cell)]) as mending:
                        await self._mending(cell, mending)
                    mending.judge(stormy=self.stormy)
            await self._settled(to_side)
        switch.judge(stormy=self.stormy)
        self.result.late += switch.late

    async def _at_once(self, strikes: Sequence[Coroutine[Any, Any, None]], switch: Turn) -> None:
        striking = [asyncio.create_task(one) for one in strikes]
        try:
            await self.driver.switch(switch)
        finally:
            await asyncio.gather(*striking)

    def _moment(self, cell: Cell) -> Sequence[Fault]:
        """What its faults wait for where they are to hit while it switches; nothing for all others."""
        # what is in doubt is decided, and what is held is told, before a switch begins
        if where(cell) not in _MOMENTS or cell.group == "janitor" or cell.step == "relay.hold":
            return ()
        return [Fault(self.rng.choice(_MOMENTS[where(cell)]), "delay")] if self.rng.random() < _BESIDE else ()

    def _beside(self, cell: Cell, strike: Strike, to_side: Side) -> Coroutine[Any, Any, None]:
        """What hits a relay or a strong writer."""
        return self._relay_faults(cell, strike, to_side) if where(cell) == "relay" else self._client_faults(strike)

    async def _settled(self, side: Side) -> None:
        """All is as it has to be after a turn; raises Violation or Idle."""
        await self.driver.in_order(side)
        async with self.calm():
            await self.traffic.at_work(side, _AT_WORK)

        async def lost() -> set[str]:
            return await self.traffic.lost(side)

        if missing := await patiently(lost):
            raise Violation(f"{len(missing)} acknowledged events are not at the {side}, {min(missing)} among them")

    async def _end(self) -> None:
        cleaned = [cell for cell in self.plan.turns[-1] if where(cell) == "end"]
        side: Side = "service" if len(self.plan.turns) % 2 else "monolith"
        # who slept may do no harm any more; after a cleanup there is nothing of ours left to look at
        await self.driver.awake()
        for cell in cleaned:
            await self._clean_up(cell)
        if not cleaned:
            await self._settled(side)
        await self.traffic.stop()
        if not cleaned:
            stream = self.env.stream(direction_from(side))
            await stream.await_marker(await stream.put_marker(), 30)
        found = await self.traffic.check(self.env, self.before, (side,) if cleaned else SIDES)
        self.result.counts = found.counts
        self.result.violations += found.words()
        if found.shown:
            (self.folder / "verdict.json").write_text(json.dumps(found.as_json(), indent=1))
        done, proved = found.counts["switches done"], found.counts["switches proved by writes"]
        if done != proved:
            self.result.violations.append(f"{done} switches were done, and writes prove {proved}")

    async def _clean_up(self, cell: Cell) -> None:
        """The way back is given up, under traffic."""
        self.traffic.witness.look()
        told = len(self.traffic.witness.events)
        await self.relays.end()  # as the run that kept them has ended by then
        with self._counted("service", len(self.plan.turns) - 1, [self.driver.strike(cell)]) as turn:
            for step in actors.CLEANUP:
                await self.driver.call(actors.cleanup, turn, step)
            await self.driver.awake()
        turn.judge(stormy=self.stormy)
        await self.traffic.at_work("service", _AT_WORK)
        self.result.violations += await ending.wrong(self.place, self.env.plan, told)

    async def _move_reads(self) -> None:
        """The read switch comes before that of the writes; a rollback takes the reads back with it."""
        await flags.set_read_from_new(self.env.control, self.place.migration, self.place.service, True, actor="chaos")

    # ------------------------------------------------------------------ faults beside the switch

    async def _supervise(self) -> None:
        """Starts the relays and a client again where a storm has killed them."""
        while True:
            await asyncio.sleep(relays.LOOK)
            await self.relays.keep_up()
            self.traffic.keep_up()

    async def _keep_up(self, strike: Strike, start: Callable[[], Child], *, spare: bool = False) -> Child:
        """Runs a process until all faults have happened, and starts it again where one ended it.

        With `spare` another one takes over from the first fault on, while the first one may sleep.
        """
        child = start()
        second: Child | None = None
        deadline = time.monotonic() + mishaps.WITHIN
        while strike.injector.happened() < len(strike.sequence):
            if time.monotonic() > deadline:
                break  # told by the count of what has happened
            if not child.alive:
                await child.ended(1)
                relays.require_passing(child)
                child = start()
            strike.count()
            if spare and second is None and strike.harm:
                second = start()
            await asyncio.sleep(0.02)
        if second is not None:
            await second.end()
            relays.require_passing(second)
        return child

    async def _relay_faults(self, cell: Cell, strike: Strike, to_side: Side) -> None:
        direction = direction_from(other(to_side))
        if cell.step == "relay.hold":
            if self.place.level == "best_effort":  # which gives up what is refused, except where a switch is near
                await self.driver.activity("ready", self.driver.plain(to_side), "")
            self.before = tables.Rows(
                {**self.before.items, **await self._poison.put(self.env, direction)}, self.before.events
            )
        async with self.relays.replaced():
            if cell.group == "janitor":
                # where a connection is lost behind the end of one, that of the next one is cut
                for _ in range(1 + cell.again * (2 if cell.kind == "reset" else 1)):
                    await self._leave_in_doubt()
            armed = await self._keep_up(strike, lambda: self.relays.armed(strike.injector), spare=cell.kind == "delay")
            # a process that was killed this moment may still look alive
            await armed.end()
            relays.require_passing(armed)
        if cell.step == "relay.hold":
            await self._poison.cure(self.env, direction)

    async def _leave_in_doubt(self) -> None:
        places = ("strong.prepare.after", "strong.commit.after")
        await self._client_faults(self.driver.strike(faults=[Fault(self.rng.choice(places), "kill")]))

    async def _client_faults(self, strike: Strike) -> None:
        """A client that its faults hit; it is ended afterwards in good order."""
        child = await self._keep_up(strike, lambda: self.traffic.client(ARMED, strike.injector))
        await child.end(20)
        child.require_no_crash()

    async def _repair(self, turn: Turn) -> None:
        """A row of the other side is changed behind everybody's back, found and mended."""
        direction = direction_from(other(turn.to_side))
        (strike,) = turn.strikes
        while True:
            happened = strike.injector.happened()
            await mishaps.change_a_row(self.env, direction)
            await self.driver.call(actors.repair, turn, direction)
            if strike.injector.happened() in (happened, len(strike.sequence)):
                break
        async with self.env.changed(direction):
            if differing := await ground.verify(self.env, direction):
                raise Violation(f"{differing} rows differ after their repair")

    async def _mending(self, cell: Cell, turn: Turn) -> None:
        """What a person does after a mistake, with the faults in that."""
        await self.driver.awake()
        if cell.group == "mend":
            await mishaps.leave_shut(self.env, turn.to_side)
            await self._require_remedy("a side is shut, and a pause was left")
            await self.driver.mended(turn)
        else:
            name = "rebuild"
            if cell.step == "rebuild.follow":
                await mishaps.drop_record(self.env, direction_from(turn.to_side))
                await self._require_remedy("a record of changed keys is lost")
                name = "follow"
            await self.driver.call(actors.compensation, turn, name, turn.to_side)
        # one that was overtaken does it all once more, and a switch is refused meanwhile
        await self.driver.awake()
        await self.driver.mended(self.driver.plain(turn.to_side))

    async def _lose_the_way_back(self, to_side: Side) -> None:
        """It is made ready before its time, and breaks as an administrator's mistake would have it."""
        await self.driver.activity("ready", self.driver.plain(to_side), "")
        await mishaps.break_stream(self.env, direction_from(to_side))

    async def _lose_the_slot(self, side: Side) -> None:
        """The slot of the stream of now goes by a mistake; the doctor has to see it, and a person does what it says."""
        async with self.calm():
            await mishaps.drop_slot(self.env, direction_from(side))
            self.result.slots_lost += 1
            await self._require_remedy("a slot is lost")
        await self.driver.mended(self.driver.plain(side))
        await self.driver.in_order(side)

    async def _require_remedy(self, what: str) -> None:
        found = await doctor.examine(self.env.plan, self.env.pair, self.env.control)
        if not found.remedy.endswith("--mend"):
            raise Violation(f"{what}, and the doctor says: {found}")

    # ------------------------------------------------------------------ what is kept of a failed one

    async def _keep(self) -> None:
        """The run's own notes beside the clients' logs, for whoever looks into it; as far as the servers tell."""
        (self.folder / "run.txt").write_text(f"{self.plan}\n" + "\n".join(self.result.violations))

        async def audited() -> str:
            async with self.env.control.transaction() as connection:
                return "\n".join(map(str, await audit.entries(connection, self.place.migration, 10_000)))

        async def examined() -> str:
            return str(await doctor.examine(self.env.plan, self.env.pair, self.env.control))

        async def differing() -> str:
            here, there = [await tables.read_rows(self.place.pair.at(side), self.place.service) for side in SIDES]
            return "\n".join(tables.differing(here, there))

        for name, look in (("audit", audited), ("doctor", examined), ("differing", differing)):
            with suppress(*FAILURES):
                (self.folder / f"{name}.txt").write_text(await look())


def remove(folder: Path) -> None:
    """The folder of a run that needs no looking into."""
    shutil.rmtree(folder, ignore_errors=True)
