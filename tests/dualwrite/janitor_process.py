"""A janitor to be killed: `python -m tests.dualwrite.janitor_process STEP`, DSNs in its environment.

It looks once at all branches, however young, and ends itself as kill -9 would when it has reached the step.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from cutover import pairs
from cutover.postgres import two_phase
from cutover.postgres.databases import Database
from cutover.streams.outbox.janitor import Janitor
from tests.dualwrite.both_sides import SERVICE, plan

#: Before the first decision, between a decision and what it decides on, and between two branches.
STEPS = ("found", "decided", "ended")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(step: str) -> None:
    """Changes the step's function so that it does not return."""
    decide, end = two_phase.decide, two_phase.end

    async def decides(*about: Any) -> two_phase.Decision:
        if step == "found":
            die()
        decision = await decide(*about)
        if step == "decided":
            die()
        return decision

    async def ends(*about: Any) -> bool:
        ended = await end(*about)
        die()
        return ended

    vars(two_phase).update(decide=decides, end=ends)


async def main(step: str) -> None:
    databases = {
        "monolith": Database("monolith", os.environ["BOTH_MONOLITH"]),
        "service_db": Database("service_db", os.environ["BOTH_SERVICE"]),
    }
    kill_at(step)
    await Janitor(pairs.pair(plan(), SERVICE, databases.__getitem__)).resolve(older_than=0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
