"""`python -m workers`: a worker by the environment's settings."""

import asyncio
import logging
import sys

from cutover.errors import CutoverError
from cutover.settings import Settings
from cutover.telemetry.logs import configure_logging
from cutover.telemetry.setup import setup
from workers.worker import run_worker


def main() -> int:
    """0 after a good end; 1 with one line for a person where the surroundings are wrong."""
    settings = Settings.from_environment()
    level = logging.getLevelNamesMapping().get(settings.get("CUTOVER_LOG_LEVEL", "INFO").upper(), logging.INFO)
    configure_logging(settings.get("CUTOVER_LOG_FORMAT") == "json", level=level)
    try:
        telemetry = setup("cutover-worker")
        try:
            asyncio.run(run_worker(settings))
        finally:
            telemetry.shutdown()
    except CutoverError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
