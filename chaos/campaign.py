"""`make chaos`: faults of all kinds over repeated switches and rollbacks of four services, until the time is over.

    SEED=…       draws everything (default: the hash of the last commit that changes anything but docs)
    MINUTES=60   how long; a run that has begun is ended and checked
    RUN=…        only that run (strong/17), under a storm of the same seed, to see it again

Each service goes through one run after the other: a first copy, then switches and rollbacks with faults at points of
the product and lost slots between them, while a storm kills servers and processes, stops them for a while, fills
disks, changes passwords, makes clocks jump, and ends sessions. Every run ends in a drain, and the history checker has
the word. Prints each run, and as the last line one JSON object; under "left out" it has what this machine does not
allow. Exit status 1 where an invariant was violated. What a failed run leaves stands under .cutover/chaos.
"""

import asyncio
import itertools
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from chaos import cells, servers
from chaos.cells import TURNS, Cell, Level, Plan, where
from chaos.matrix import FOLDER, SETTINGS, Matrix, commit, ended, heed_signals, prepared, say
from chaos.processes import silence
from chaos.results import Result
from chaos.servers import Servers
from chaos.storm import Storm
from cutover.devstack.cluster import REPLICATION_SETTINGS

#: Turns of a run, least and most.
_TURNS = (3, 7)
#: How often the slot of a native stream is lost before a turn.
_SLOT_LOST = 0.25
#: Minutes in which each kind of strike comes by.
_EVERY_KIND = 60.0


def _fits(cell: Cell) -> bool:
    """Cells that need no hand of the harness at the databases, which may be away just then."""
    return where(cell) in ("attempt", "relay", "writer", "copy") and cell.step not in ("relay.hold", "ready.drop")


def plans(level: Level, seed: str) -> Iterator[Plan]:
    """Runs without end, each with faults in about half of its turns."""
    every = [cell for cell in cells.every() if cell.level == level and _fits(cell)]
    for number in itertools.count():
        rng = random.Random(f"{seed}/{level}/{number}")
        turns: list[tuple[Cell, ...]] = []
        for turn in range(rng.randint(*_TURNS)):
            direction = TURNS[turn] if turn < len(TURNS) else TURNS[2 - turn % 2]
            fitting = [cell for cell in every if cell.direction == direction]
            turns.append((rng.choice(fitting),) if rng.random() < 0.5 else ())
        lost = [turn for turn in range(len(turns)) if level == "logical" and rng.random() < _SLOT_LOST]
        yield Plan(number, level, tuple(turns), f"{seed}/{level}/{number}", frozenset(lost))


async def measure(there: Servers) -> int:
    seed = os.environ.get("SEED") or commit()[:12]
    minutes = float(os.environ.get("MINUTES") or 60)
    folder = FOLDER / f"campaign-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    storm = Storm(there, seed, folder / "storm.txt")
    *both, control = there.clusters
    matrix = Matrix(both, await prepared(control), folder, storm)
    end = time.monotonic() + minutes * 60
    say(f"seed {seed}: {minutes:g} minutes; what struck when: {storm.log}")
    for what, why in there.left_out.items():
        say(f"left out: {what}: {why}")

    only = os.environ.get("RUN")

    async def one(level: Level) -> None:
        for plan in plans(level, seed):
            if time.monotonic() > end:
                return
            if only in (None, "", f"{level}/{plan.number}"):
                await matrix.run(plan)
            if only == f"{level}/{plan.number}" or (only and not only.startswith(f"{level}/")):
                return

    async with asyncio.TaskGroup() as group:  # without its storm a campaign proves nothing
        striking = group.create_task(storm.run())
        await asyncio.gather(*(one(level) for level in cells.LEVELS))
        striking.cancel()
    if any(result.violations for result in matrix.results):
        for cluster in there.clusters:
            shutil.copy(cluster.log, folder / f"{cluster.name}.log")
    return report(matrix.results, storm, seed, minutes)


def report(results: Sequence[Result], storm: Storm, seed: str, minutes: float) -> int:
    """Prints what was tried and what was found; the exit status, 1 too where nothing was tried, or too little.

    In an hour each kind of strike comes by that this machine allows.
    """
    turns = [turn for result in results for turn in result.turns]
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    struck = storm.struck + Counter({"slot lost": sum(result.slots_lost for result in results)})
    violations = [f"{result.plan}: {text}" for result in results for text in result.violations]
    for text in violations:
        print(f"VIOLATED: {text}")
    missing = sorted(storm.strikes.keys() - struck.keys()) if minutes >= _EVERY_KIND and results else []
    for what in missing:
        print(f"NEVER STRUCK: {what}")
    if not results:
        print("no run was made")
    print(
        json.dumps(
            {
                "seed": seed,
                "minutes": minutes,
                "runs": len(results),
                "switches": sum(result.switches for result in results),
                "faults": sum(turn.harm for turn in turns) + struck.total(),
                "storm": dict(struck),
                "left out": storm.servers.left_out,
                "operations": dict(counts),
                "violations": len(violations),
            }
        )
    )
    return 1 if violations or missing or not results else 0


def main() -> None:
    silence()
    heed_signals()
    with servers.running(("monolith", "services", "control"), {**REPLICATION_SETTINGS, **SETTINGS}) as there:
        os.environ.update(there.environment)
        sys.exit(ended(measure(there)))


if __name__ == "__main__":
    main()
