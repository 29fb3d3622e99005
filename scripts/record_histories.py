"""Record a history of every workflow in every state of `tests/replay/states.py`.

    python -m scripts.record_histories [--only PATTERN] [FOLDER]

The runs are those of the tests' world in memory on a real Temporal server. Record from the commit that
is deployed, never from a change under test: `tests/replay` then shows what the change would break.
All states are recorded anew and files of states that are no more are deleted; with `--only`, names that
match (`switchover-soak`, `cleanup-*`) are, and nothing else is touched. Exit status 1 names what failed.
"""

import argparse
import asyncio
import fnmatch
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cutover.devstack.temporal import ensure
from tests.replay import scenarios, scenarios_switchover
from tests.replay.recorder import Recorder
from tests.replay.states import STATES
from tests.workflows.conftest import start_skipping

FOLDER = Path(__file__).parent.parent / "tests" / "replay" / "histories"
#: Events after which the hasty server suggests to continue as new.
CONTINUE_AFTER = 60
AT_ONCE = 4

Scenario = Callable[[Recorder], Awaitable[None]]
SCENARIOS: dict[str, tuple[Scenario, ...]] = {
    "switchover": (
        scenarios_switchover.reads,
        scenarios_switchover.writes,
        scenarios_switchover.back,
        scenarios_switchover.later_runs,
    ),
    "cleanup": (scenarios.cleanup,),
    "migration": (scenarios.migration,),
    "replication": (scenarios.replication,),
    "preparation": (scenarios.preparation,),
    "reconciliation": (scenarios.reconciliation,),
    "monitor": (scenarios.monitor,),
}


async def record(folder: Path, only: str) -> list[str]:
    """All scenarios that can bring about what is wanted; what went wrong, in words."""
    wanted = [name for name in STATES if fnmatch.fnmatch(name, only)]
    if not wanted:
        return [f"no state is called {only!r}; there are: {', '.join(STATES)}"]
    chosen = [one for name, ones in SCENARIOS.items() if any(w.startswith(f"{name}-") for w in wanted) for one in ones]
    places = asyncio.Semaphore(AT_ONCE)
    problems: list[str] = []
    cli = ensure()
    async with (
        await start_skipping(cli) as environment,
        await start_skipping(cli, continue_after=CONTINUE_AFTER) as hasty,
    ):
        recorder = Recorder(environment, hasty, folder, only)

        async def play(scenario: Scenario) -> None:
            async with places:
                try:
                    await scenario(recorder)
                except Exception as error:
                    problems.append(f"scenario {scenario.__name__!r}: {type(error).__name__}: {error}")

        await asyncio.gather(*(play(one) for one in chosen))
    for name in sorted(recorder.events):
        print(f"{name}: {recorder.events[name]} events")
    missing = [name for name in wanted if name not in recorder.recorded]
    return problems + ([f"not recorded: {', '.join(missing)}"] if missing else [])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.record_histories", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of states to record, with * and ?")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)  # the world's faults are on purpose
    begun = time.monotonic()
    problems = asyncio.run(record(given.folder, given.only))
    if not problems and given.only == "*":
        for path in sorted(given.folder.glob("*.json")):
            if path.stem not in STATES:
                path.unlink()
                print(f"{path.name}: deleted, no such state")
    print("\n".join(f"FAILED: {one}" for one in problems) or f"recorded in {time.monotonic() - begun:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # The SDK's own threads may still call into an interpreter that is shutting down, which aborts it.
    os._exit(status)
