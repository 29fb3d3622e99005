"""Ten looks a second at what every run says of itself, raw and through the command line's overview, judged at once."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg
from temporalio.client import Client, RPCError, WorkflowQueryFailedError

from cutover.cli.runs import open_runs
from cutover.cli.status import overview
from cutover.control.database import Control
from cutover.postgres.databases import Database
from tests.end_to_end.truth import Lasting, at_odds, untrue
from workflows.status import Status

EVERY = 0.1
#: One look in so many is the command line's, at all runs; the others are at a few runs in turn, for each answer costs
#: the worker that has the run some milliseconds of the two cores.
OVERVIEW_EVERY = 10
RUNS_A_LOOK = 3
#: Looks that may be under way together: a slow answer must not stop the next look, nor pile them up.
AT_ONCE = 6
ANSWER_SECONDS = 5.0
#: For so long the parts of an overview may differ, as they are read one after the other.
LASTING = 3.0


@dataclass
class Sampler:
    """`monolith` is asked by itself which side is writable; `services` are those of the plan."""

    client: Client
    control: Control
    monolith: Database
    migration: str
    services: tuple[str, ...]
    samples: int = 0
    overviews: int = 0
    #: Looks that got an answer, by the time at which they began.
    looks: list[float] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    states: set[str] = field(default_factory=set)
    begun: float = 0.0
    ended: float = 0.0
    _runs: list[str] = field(default_factory=list)
    _lasting: Lasting = field(default_factory=lambda: Lasting(LASTING))

    async def run(self) -> None:
        """Until cancelled. What goes wrong in a look itself is raised here."""
        self.begun = time.monotonic()
        looking: set[asyncio.Task[None]] = set()
        number = 0
        try:
            while True:
                done = {one for one in looking if one.done()}
                looking -= done
                for one in done:
                    one.result()
                if len(looking) < AT_ONCE:
                    look = self._overview if number % OVERVIEW_EVERY == 0 else self._raw
                    looking.add(asyncio.create_task(self._look(look)))
                    number += 1
                await asyncio.sleep(EVERY)
        finally:
            self.ended = time.monotonic()
            for one in looking:
                one.cancel()
            await asyncio.gather(*looking, return_exceptions=True)

    async def _look(self, look: Callable[[], Awaitable[bool]]) -> None:
        begun = time.monotonic()
        try:
            if await asyncio.wait_for(look(), ANSWER_SECONDS):
                self.looks.append(begun)
        except (RPCError, TimeoutError) as error:
            self.unanswered[type(error).__name__] += 1

    async def _raw(self) -> bool:
        chosen, rest = self._runs[:RUNS_A_LOOK], self._runs[RUNS_A_LOOK:]
        self._runs = [*rest, *chosen]
        return any(await asyncio.gather(*(self._ask(one) for one in chosen)))

    async def _ask(self, workflow_id: str) -> bool:
        handle = self.client.get_workflow_handle(workflow_id)
        try:
            status: Status = await handle.query("status", result_type=Status)
        except (RPCError, WorkflowQueryFailedError) as error:
            self.unanswered[type(error).__name__] += 1
            return False
        self._judge(status)
        return True

    async def _overview(self) -> bool:
        """The list of runs is renewed here as well: one that ends in between answers all the same."""
        found = await overview(self.client, self.control, self.migration)
        self._runs = [one for one in await open_runs(self.client, self.migration) if "/reconciliation" not in one]
        for status in found.runs:
            self._judge(status)
        self.unanswered["silent"] += len(found.silent)
        self.wrong += self._lasting.observe(at_odds(found, await self._writable(), self.services), time.monotonic())
        self.overviews += 1
        return bool(found.runs)

    def _judge(self, status: Status) -> None:
        self.samples += 1
        self.states.add(status.state)
        self.wrong += untrue(status, self.services)

    async def _writable(self) -> dict[str, str]:
        async with self.monolith.session("sampler") as connection:
            try:
                rows = await connection.fetch("SELECT service, primary_side FROM cutover.epoch")
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                return {}  # before preparation, or after cleanup: asking first whether it is there leaves a gap
            return {row["service"]: row["primary_side"] for row in rows}

    @property
    def rate(self) -> float:
        """Looks with an answer, a second."""
        return len(self.looks) / max(self.ended - self.begun, 1e-9)

    def gaps(self, longer_than: float) -> list[float]:
        """Times without any answered look, in seconds; from the first answer on."""
        looks = [*sorted(self.looks), self.ended]
        return [round(b - a, 1) for a, b in itertools.pairwise(looks) if b - a > longer_than]

    def __str__(self) -> str:
        looks = f"{self.samples} statuses in {len(self.looks)} looks ({self.rate:.1f} a second)"
        missed = f"not answered {dict(self.unanswered)}, gaps over 1 s {self.gaps(1.0)}"
        return f"{looks}, {self.overviews} overviews, {missed}"
