"""`kill -9` at ten moments of a migration: which ones is drawn from a seed, when they come is what the runs show.

Phases are seen in the watch's scenes. A pause lasts milliseconds, so it is hunted: while a write switch is near, the
route's row is polled, and the worker that executes the fenced section is killed as soon as a pause is announced.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from temporalio.client import Client
from temporalio.service import RPCError

from activities import ids
from activities.signatures import FENCED_SECTION
from cutover.control.database import Control
from cutover.errors import CutoverError
from examples.ai_trader.demo_fleet import Fleet
from examples.ai_trader.demo_watch import Scene, Watch

MOMENTS = 10
#: Seconds between two kills that only wait for a phase, and before what was killed is started again.
APART = 4.0
RESTART_AFTER = 1.0
HUNT_EVERY = 0.005

Where = Literal["replication", "switchover", "preparation", "cleanup"]


@dataclass(frozen=True)
class Moment:
    """When to kill: once a run of that kind is in one of these phases, or in the pause of a service's n-th switch."""

    name: str
    where: Where
    phases: tuple[str, ...] = ()
    service: str = ""
    #: 1, 2, … for the pause of that switch of the service; 0 for a phase.
    switch: int = 0

    def reached(self, scene: Scene, migration: str) -> bool:
        """Whether a run shows it. A phase that was passed between two looks counts as well (see `phases`)."""
        wanted = {
            "preparation": ids.preparation(migration),
            "cleanup": ids.cleanup(migration),
            "switchover": ids.switchover(migration, self.service),
            "replication": "",
        }[self.where]
        for run in scene.overview.runs:
            mine = run.workflow_id == wanted if wanted else run.workflow_id.endswith("/replication")
            if mine and any(run.phase.startswith(phase) for phase in self.phases):
                return True
        return False


def draw(rng: random.Random, services: Sequence[str], rolled_back: str) -> list[Moment]:
    """Ten moments spread over the phases; the seed chooses the services."""
    others = [name for name in services if name != rolled_back]
    rng.shuffle(others)
    soak, pause, deprecation, second = (others * 4)[:4]
    after_soak = ("soak", "write gate", "write switch")
    return [
        Moment("preparation", "preparation", ("preparing", "checklist")),
        Moment("backfill", "replication", ("backfill", "first reconciliation")),
        Moment("first reconciliation", "replication", ("first reconciliation", "dual-write")),
        Moment("dual-write", "replication", ("dual-write",)),
        Moment(f"soak of {soak}", "switchover", after_soak, soak),
        Moment(f"pause of {pause}", "switchover", service=pause, switch=1),
        Moment(f"pause of the rollback of {rolled_back}", "switchover", service=rolled_back, switch=2),
        Moment(f"deprecation of {deprecation}", "switchover", ("deprecation", "deprecated"), deprecation),
        Moment(f"pause of {second}", "switchover", service=second, switch=1),
        Moment("cleanup", "cleanup", ("retiring", "rename", "quiet")),
    ]


@dataclass(frozen=True)
class Killed:
    """What was killed, when (seconds since the migration began), and in which moment."""

    at: float
    moment: str
    process: str

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  kill -9 {self.process} ({self.moment})"


@dataclass
class Killer:
    """Waits for its moments and kills. Everything that it draws comes from `rng`."""

    fleet: Fleet
    watch: Watch
    client: Client
    control: Control
    rng: random.Random
    moments: list[Moment]
    killed: list[Killed] = field(default_factory=list)
    _last: float = -APART
    _restarts: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def left(self) -> list[Moment]:
        done = {one.moment for one in self.killed}
        return [moment for moment in self.moments if moment.name not in done]

    async def run(self) -> None:
        """Until cancelled."""
        hunts = [moment for moment in self.moments if moment.switch]
        async with asyncio.TaskGroup() as group:
            for moment in hunts:
                group.create_task(self._hunt(moment))
            group.create_task(self._phases())
            group.create_task(self._one_client())

    async def _phases(self) -> None:
        waiting = [moment for moment in self.moments if not moment.switch]
        while waiting:
            scene = self.watch.scene
            if scene is not None and self.watch.seconds - self._last >= APART:
                due = next((one for one in waiting if one.reached(scene, self.watch.migration)), None)
                if due is not None:
                    await asyncio.sleep(self.rng.uniform(0, 0.8))
                    waiting.remove(due)
                    self._kill(due.name, self.rng.choice(self.fleet.workers))
            await asyncio.sleep(0.1)

    async def _one_client(self) -> None:
        """One traffic process, somewhere between the second and the fourth kill."""
        after = self.rng.randrange(2, 5)
        while len(self.killed) < after:
            await asyncio.sleep(0.2)
        await asyncio.sleep(self.rng.uniform(1, 3))
        self._kill("a client", self.rng.choice(self.fleet.traffic))

    async def _hunt(self, moment: Moment) -> None:
        run_id = ids.switchover(self.watch.migration, moment.service)
        while not self._near(moment, run_id):
            await asyncio.sleep(0.05)
        holder, looked = "", 0.0
        while True:
            if self.watch.seconds - looked > 0.1:
                holder, looked = await self._holder(run_id) or holder, self.watch.seconds
            try:
                row = await self.control.fetchrow(
                    "SELECT r.pause_id, (SELECT count(*) FROM control.switch_outcome o WHERE o.migration = r.migration"
                    " AND o.service = r.service AND o.outcome->>'result' = 'done') AS done"
                    " FROM control.route r WHERE r.migration = $1 AND r.service = $2",
                    self.watch.migration,
                    moment.service,
                )
            except CutoverError:
                row = None
            if row is not None and row["done"] >= moment.switch:
                return  # missed: the report says so
            if row is not None and row["pause_id"] and row["done"] == moment.switch - 1:
                self._kill(moment.name, holder or self.rng.choice(self.fleet.workers))
                return
            await asyncio.sleep(HUNT_EVERY)

    def _near(self, moment: Moment, run_id: str) -> bool:
        """Whether the next switch of that service may begin any moment: at its gate, or rolled back once switched."""
        scene = self.watch.scene
        run = scene.run(run_id) if scene else None
        if scene is None or run is None:
            return False
        if moment.switch > 1:
            return scene.stages.get(moment.service) in ("switched", "deprecated") or run.phase == "rolling back"
        return run.phase in ("write gate", "write switch")

    async def _holder(self, run_id: str) -> str:
        """The worker that executes the fenced section, by the identity that the server knows ("" for none)."""
        try:
            described = await self.client.get_workflow_handle(run_id).describe()
        except RPCError:
            return ""
        for pending in described.raw_description.pending_activities:
            if pending.activity_type.name == FENCED_SECTION.name:
                # `cutover-<build>@<host>:<pid>`; the SDK's own default is `<pid>@<host>`
                found = re.search(r":(\d+)$|^(\d+)@", pending.last_worker_identity)
                return (self.fleet.by_pid(int(found[1] or found[2])) or "") if found else ""
        return ""

    def _kill(self, moment: str, name: str) -> None:
        """At once; the restart follows by itself."""
        if not self.fleet.children[name].alive:
            others = [one for one in self.fleet.workers if self.fleet.children[one].alive]
            if not others or name not in self.fleet.workers:
                return
            name = others[0]
        self.fleet.kill(name)
        self._last = self.watch.seconds
        self.killed.append(Killed(round(self._last, 2), moment, name))
        task = asyncio.create_task(self._restart(name))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, name: str) -> None:
        await asyncio.sleep(RESTART_AFTER)
        self.fleet.restart(name)
