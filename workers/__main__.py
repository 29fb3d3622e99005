"""`python -m workers`: a worker by the environment's settings."""

import asyncio
import logging
import sys

from cutover.errors import CutoverError, Exit, exit_status
from cutover.settings import Settings
from cutover.telemetry.logs import configure_logging
from cutover.telemetry.setup import setup
from workers.worker import run_worker

_log = logging.getLogger(__name__)


def main() -> int:
    """0 after a good end; else one line for a person, and the exit status that a command would end with."""
    try:
        settings = Settings.from_environment()
        level = logging.getLevelNamesMapping().get(settings.get("CUTOVER_LOG_LEVEL", "INFO").upper(), logging.INFO)
        configure_logging(settings.get("CUTOVER_LOG_FORMAT") == "json", level=level)
        telemetry = setup("cutover-worker")
        try:
            asyncio.run(run_worker(settings))
        finally:
            telemetry.shutdown()
    except CutoverError as error:
        print(f"worker: {error}", file=sys.stderr)
        return exit_status(error)
    except Exception as error:
        # the filter of `configure_logging` keeps values out of it; the bare text could hold anything
        _log.exception("the worker ended in a way nobody expected")
        print(f"worker: a mistake in cutover itself: {type(error).__name__}", file=sys.stderr)
        return Exit.MISTAKE
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
