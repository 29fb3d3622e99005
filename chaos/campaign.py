"""`make chaos`: faults of all kinds over repeated switches and rollbacks of four services, until the time is over.

    SEED=…       draws everything (default: the commit's hash)
    MINUTES=60   how long; a run that has begun is ended and checked

Each service goes through one run after the other: a first copy, then switches and rollbacks with faults at points of
the product, while a storm kills servers and processes, stops them for a while, and ends sessions. Every run ends in a
drain, and the history checker has the word. Prints each run, and as the last line one JSON object; exit status 1 where
an invariant was violated. What a failed run leaves stands under .cutover/chaos.
"""

import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from bench import ground as servers
from chaos import cells
from chaos.cells import TURNS, Cell, Level, Plan
from chaos.matrix import FOLDER, SETTINGS, Matrix, commit, ended, prepared, say
from chaos.run import Result
from chaos.storm import Storm
from chaos.turns import where
from cutover.devstack.cluster import REPLICATION_SETTINGS, Cluster

#: Turns of a run, least and most.
_TURNS = (3, 7)


def _fits(cell: Cell) -> bool:
    """Cells that need no hand of the harness at the databases, which may be away just then."""
    return where(cell) in ("attempt", "relay", "writer", "copy") and not cell.point.startswith("relay.hold")


def plans(level: Level, seed: str) -> Iterator[Plan]:
    """Runs without end, each with faults in about half of its turns."""
    every = [cell for cell in cells.every() if cell.level == level and _fits(cell)]
    for number in itertools.count():
        rng = random.Random(f"{seed}/{level}/{number}")
        turns: list[Cell | None] = []
        for turn in range(rng.randint(*_TURNS)):
            direction = TURNS[turn] if turn < len(TURNS) else TURNS[1 + turn % 2]
            fitting = [cell for cell in every if cell.direction == direction]
            turns.append(rng.choice(fitting) if rng.random() < 0.5 else None)
        yield Plan(number, level, tuple(turns), f"{seed}/{level}/{number}")


async def measure(clusters: Sequence[Cluster]) -> int:
    seed = os.environ.get("SEED") or commit()[:12]
    minutes = float(os.environ.get("MINUTES") or 60)
    folder = FOLDER / f"campaign-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    storm = Storm(clusters, seed)
    matrix = Matrix(clusters[:2], await prepared(clusters[2]), folder, storm)
    end = time.monotonic() + minutes * 60
    say(f"seed {seed}: {minutes:g} minutes")
    striking = asyncio.create_task(storm.run())

    async def one(level: Level) -> None:
        for plan in plans(level, seed):
            if time.monotonic() > end:
                return
            await matrix.run(plan)

    try:
        await asyncio.gather(*(one(level) for level in cells.LEVELS))
    finally:
        striking.cancel()
        await asyncio.gather(striking, return_exceptions=True)
    return report(matrix.results, storm, seed, minutes)


def report(results: Sequence[Result], storm: Storm, seed: str, minutes: float) -> int:
    """Prints what was tried and what was found; the exit status."""
    turns = [turn for result in results for turn in result.turns]
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    violations = [f"{result.plan}: {text}" for result in results for text in result.violations]
    for text in violations:
        print(f"VIOLATED: {text}")
    print(
        json.dumps(
            {
                "seed": seed,
                "minutes": minutes,
                "runs": len(results),
                "switches": sum(result.switches for result in results),
                "faults": sum(turn.happened for turn in turns) + sum(storm.struck.values()),
                "storm": dict(storm.struck),
                "operations": dict(counts),
                "violations": len(violations),
            }
        )
    )
    return 1 if violations else 0


def main() -> None:
    with servers.clusters(("monolith", "services", "control"), {**REPLICATION_SETTINGS, **SETTINGS}) as all_of_them:
        sys.exit(ended(measure(all_of_them)))


if __name__ == "__main__":
    main()
