"""`python -m workers`: a worker by the environment's settings."""

import asyncio
import logging
import sys

from cutover.errors import CutoverError
from cutover.settings import Settings
from workers.worker import run_worker


def main() -> int:
    """0 after a good end; 1 with one line for a person where the surroundings are wrong."""
    settings = Settings.from_environment()
    logging.basicConfig(
        level=settings.get("CUTOVER_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        asyncio.run(run_worker(settings))
    except CutoverError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
