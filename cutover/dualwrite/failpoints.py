"""Named steps at which a test ends its own process, as kill -9 would: CUTOVER_DUALWRITE_KILL_AT names one of them."""

import os
import signal

#: The steps of a strong write, each reached when what its name says has been done.
STEPS = ("read", "applied", "prepared", "decided", "ended")
_KILL_AT = os.environ.get("CUTOVER_DUALWRITE_KILL_AT", "")


def reached(step: str) -> None:
    """Does nothing, unless the environment has named the step when the process began."""
    if step == _KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
