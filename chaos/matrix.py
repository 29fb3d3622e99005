"""`make chaos-matrix`: a fault at every point of every protocol, in real switches under traffic; then the invariants.

    SEED=…      draws the cells (default: the hash of the last commit that changes anything but docs)
    CELLS=500   at least so many, among them every reachable pair of a point and a fault, a stream, a direction
    FULL=1      every reachable cell; goes on where an earlier one of the same code and seed was stopped
    PART=2/3    the second third of its runs, for a machine that has not the time for all of them
    RUN=17      only that run, to see it again
    PLAN=…      only the run that a violation was found in, as it was printed then
    PARALLEL=3  runs at once, of each level one at most

A cell whose faults did not all happen is tried in two more runs. Prints each run, and as the last line one JSON object.
Exit status 1 where an invariant was violated or a cell did not happen. What a failed run leaves stands under
.cutover/chaos.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from bench import ground as servers
from chaos import cells, ground
from chaos.cells import Cell, Plan
from chaos.ground import Place
from chaos.results import Result, earlier, not_reached, tried
from chaos.run import Run, remove
from chaos.storm import Storm
from cutover.control.database import Control
from cutover.devstack import throwaway
from cutover.devstack.cluster import REPLICATION_SETTINGS, Cluster
from cutover.errors import ConfigError, CutoverError, Exit
from cutover.postgres.databases import Database

FOLDER = Path(".cutover/chaos")
#: How often a cell is tried whose faults do not all happen.
TRIES = 3
SETTINGS = {
    **throwaway.SETTINGS,
    "max_connections": "400",
    "max_prepared_transactions": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def commit() -> str:
    """The last one that changes anything but docs."""
    command = ["git", "log", "-1", "--format=%H", "--", ".", ":!docs", ":!*.md"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def uncommitted() -> str:
    """What is changed and not committed, but docs; "" where nothing is."""
    command = ["git", "status", "--porcelain", "--", ".", ":!docs", ":!*.md"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return ", ".join(line[3:] for line in found.splitlines())


def administered(cluster: Cluster) -> Database:
    return Database("postgres", cluster.superuser_dsn("postgres"))


class Matrix:
    """Executes runs, as many at once as there are slots, in a folder that keeps their results."""

    def __init__(
        self, clusters: Sequence[Cluster], control: Database, folder: Path, storm: Storm | None = None
    ) -> None:
        self.storm = storm
        self.databases = list(zip(("monolith", "service"), clusters, strict=True))
        self.control = control
        self.folder = folder
        self.results: list[Result] = []

    async def execute(self, plans: Sequence[Plan], parallel: int) -> None:
        slots = asyncio.Semaphore(parallel)

        async def one(level: str) -> None:
            for plan in plans:
                if plan.level == level:
                    async with slots:
                        await self.run(plan)

        # one after the other of each level: their slots have the same names
        await asyncio.gather(*(one(level) for level in cells.LEVELS))

    async def complete(self, plans: Sequence[Plan], drawn: Sequence[Cell], seed: str, parallel: int) -> None:
        """Executes them, and tries cells anew that did not happen: what a fault is for does not always come by."""
        await self.execute(plans, parallel)
        while left := [cell for cell in not_reached(self.results, drawn) if tried(self.results)[cell] < TRIES]:
            first = max(result.plan.number for result in self.results) + 1
            say(f"{len(left)} cells did not happen, and are tried again")
            await self.execute(cells.runs(left, f"{seed}/{first}", first), parallel)

    async def run(self, plan: Plan) -> None:
        """One run, in databases of its own; told, counted, and cleaned away where it found nothing."""
        name = f"chaos_{os.getpid()}_{plan.level}_{plan.number}"
        folder = self.folder / f"{plan.level}-{plan.number}"
        remove(folder)
        folder.mkdir(parents=True)
        monolith, target = [
            Database(title, cluster.superuser_dsn(f"{title}_{name}")) for title, cluster in self.databases
        ]
        migration = f"m{plan.number}-{plan.level}".replace("_", "-")
        place = Place(migration, plan.level, self.control, monolith, target, str(folder / "archive"))
        async with AsyncExitStack() as stack:
            async with self._calm():
                for title, cluster in self.databases:
                    await ground.execute(administered(cluster), f"CREATE DATABASE {title}_{name}")
                env = await stack.enter_async_context(place.opened())
            result = await Run(plan, place, folder, env, self.storm.calm if self.storm is not None else None).execute()
        self.results.append(result)
        self._tell(result)
        async with self._calm():
            await self._drop(place)
            if not result.violations:
                for title, cluster in self.databases:
                    await ground.execute(administered(cluster), f"DROP DATABASE IF EXISTS {title}_{name} WITH (FORCE)")
                remove(folder)

    def _calm(self) -> AbstractAsyncContextManager[None]:
        return self.storm.calm() if self.storm is not None else nullcontext()

    async def _drop(self, place: Place) -> None:
        """A run that failed may not leave slots behind, for the next one of its level has the same names."""
        try:
            await ground.drop(place)
        except (CutoverError, asyncpg.PostgresError) as error:
            say(f"    what run {place.migration} leaves could not be dropped: {error}")

    def _tell(self, result: Result) -> None:
        reached = sum(strike.reached for _, strike in result.strikes)
        said = f"{reached} of {len(result.strikes)} cells in {result.seconds:.0f} s"
        say(f"{len(self.results)}: run {result.plan.number} ({result.plan.level}): {said}")
        for cell, strike in result.strikes:
            if not strike.reached:
                say(f"    {strike.harm} faults happened: {cell} ({'; '.join(map(str, strike.sequence))})")
        for violation in result.violations:
            say(f"    VIOLATED: {violation}\n      {result.plan}\n      see {result.folder}")
            say(f"      again: {self._again(result)}")
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(result.as_json()) + "\n")

    def _again(self, result: Result) -> str:
        if self.storm is not None:
            return f"make chaos SEED={result.plan.seed.split('/')[0]} RUN={result.plan.level}/{result.plan.number}"
        return f"make chaos-matrix PLAN='{json.dumps(result.plan.as_json())}'"


def report(results: Sequence[Result], drawn: Sequence[Cell]) -> int:
    """Prints what was tried and what was found; the exit status."""
    turns = [turn for result in results for turn in result.turns]
    missing = not_reached(results, drawn)
    kinds = Counter(cell.kind for result in results for cell, strike in result.strikes if strike.reached)
    happened = len(set(drawn)) - len(missing)
    print(f"{len(results)} runs, {len(drawn)} cells, {happened} of them happened; "
          f"{sum(turn.harm for turn in turns)} faults, cells by their kind: {dict(kinds)}")  # fmt: skip
    for reason, number in sorted(cells.left_out().items()):
        print(f"not reachable: {number} cells: {reason}")
    for cell in sorted(missing):
        print(f"NOT REACHED: {cell}")
    violations = [text for result in results for text in result.violations]
    for text in violations:
        print(f"VIOLATED: {text}")
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    last = {
        "runs": len(results),
        "cells": happened,
        "not_reached": len(missing),
        "faults": sum(turn.harm for turn in turns),
        "switches": sum(result.switches for result in results),
        "late": sum(result.late for result in results),
        "parked": sum(len(turn.parked) for turn in turns),
        "violations": len(violations),
        "operations": dict(counts),
    }
    print(json.dumps(last))
    return 1 if violations or missing else 0


async def prepared(cluster: Cluster) -> Database:
    """A control database there."""
    name = f"control_{os.getpid()}_{uuid4().hex[:6]}"
    await ground.execute(administered(cluster), f"CREATE DATABASE {name}")
    database = Database("control", cluster.superuser_dsn(name))
    control = await Control.open(database)
    await control.migrate()
    await control.close()
    return database


def _part(plans: list[Plan], part: str) -> list[Plan]:
    """Raises ConfigError."""
    number, _, parts = part.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise ConfigError(f"PART is {part!r}; it has to be like 2/3")
    return plans[int(number) - 1 :: int(parts)]


async def measure(clusters: list[Cluster]) -> int:
    environment = os.environ
    full, only, given = environment.get("FULL") == "1", environment.get("RUN"), environment.get("PLAN")
    parallel = int(environment.get("PARALLEL") or 3)
    code = commit()[:12]
    seed = environment.get("SEED") or code
    drawn = list(cells.every()) if full else cells.chosen(seed, int(environment.get("CELLS") or 500))
    plans = cells.runs(drawn, seed)
    folder = FOLDER / (f"full-{code}-{seed}" if full else f"matrix-{seed}")
    if only or given:
        known = {str(plan.number): plan for plan in plans}
        try:
            numbers = (only or "").split(",")
            plans = [Plan.from_json(json.loads(given))] if given else [known[number] for number in numbers]
        except (KeyError, ValueError) as error:
            raise ConfigError(f"there is no such run; with this SEED, CELLS and FULL: 0 to {len(plans) - 1}") from error
        # with whatever hits each cell there: one is tried anew by itself
        drawn = [cell for plan in plans for cell in plan.cells]
        full, folder = False, FOLDER / f"again-{seed}"
    elif part := environment.get("PART"):
        plans = _part(plans, part)
        drawn = [cell for plan in plans for cell in plan.cells]
        # its own results: the numbers of its second tries are those of other parts' runs
        folder = folder.with_name(f"{folder.name}-{part.replace('/', '-of-')}")
    if full and (changed := uncommitted()):
        raise ConfigError(f"results of FULL=1 are kept under the commit's name; commit first: {changed}")
    folder.mkdir(parents=True, exist_ok=True)
    if not full:
        (folder / "results.jsonl").unlink(missing_ok=True)
    matrix = Matrix(clusters, await prepared(clusters[1]), folder)
    matrix.results = earlier(folder)
    done = {result.plan.number for result in matrix.results}
    say(f"seed {seed}: {len(drawn)} cells; {len(plans)} runs, {len(done)} are done")
    await matrix.complete([plan for plan in plans if plan.number not in done], drawn, seed, parallel)
    return report(matrix.results, drawn)


def _ends() -> list[signal.Signals]:
    """Signals that end a campaign in order, as Ctrl-C does; not one that is to be ignored (nohup)."""
    return [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]


def heed_signals() -> None:
    """What asks to end raises KeyboardInterrupt; to be called before there is anything to be taken away."""
    for number in _ends():
        signal.signal(number, signal.default_int_handler)


async def _until_told(work: Coroutine[Any, Any, int]) -> int:
    """Inside a loop a handler of Python's would raise in the middle of the drivers' own code."""
    task = asyncio.current_task()
    assert task is not None
    loop, ends = asyncio.get_running_loop(), _ends()
    for number in ends:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await work
    finally:
        for number in ends:
            loop.remove_signal_handler(number)
        heed_signals()


def ended(work: Coroutine[Any, Any, int]) -> int:
    """The exit status; Ctrl-C, SIGTERM and SIGHUP end the servers and processes too."""
    try:
        return asyncio.run(_until_told(work))
    except ConfigError as error:
        say(str(error))
        return Exit.WRONG_INPUT
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped")
        return Exit.INTERRUPTED


def main() -> None:
    heed_signals()
    with servers.clusters(("monolith", "services"), {**REPLICATION_SETTINGS, **SETTINGS}, durable=False) as both:
        sys.exit(ended(measure(both)))


if __name__ == "__main__":
    main()
