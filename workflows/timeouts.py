"""Every timeout, retry policy and task queue, by name.

An activity is tried in rounds: within a round by the server (no history), between rounds by the
workflow, which then says what it is waiting for. Rounds grow, so that a day of an outage costs a
few hundred events; the pause between two attempts never passes ten seconds.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from temporalio.common import RetryPolicy

from activities.signatures import Kind

TASK_QUEUE = "cutover"

#: Failures that pass by themselves: waited out for as long as it takes. The last is what the SDK says of an activity
#: whose worker was ended in order: several deploys in a row must not park what takes hours.
TRANSIENT = frozenset({"Unreachable", "NotYet", "WorkerShutdown"})

FIRST_ROUND_ATTEMPTS = 4
LONGEST_ROUND_ATTEMPTS = 36
RETRY_EVERY_AT_MOST = timedelta(seconds=10)

#: An undone write switch is tried again after these pauses, then the run parks (real seconds, never compressed).
SWITCH_RETRY_PAUSES = (timedelta(seconds=5), timedelta(seconds=20), timedelta(seconds=60))

#: However long something is polled for, it is looked at as often as this.
LONGEST_POLL = timedelta(hours=1)
#: A switchover run lets go at once, and says so.
TAKE_OVER_POLL = timedelta(seconds=1)

#: Alerts that must not hold anything up.
BEST_EFFORT_ATTEMPTS = 4

TEXT_LIMIT = 500


@dataclass(frozen=True)
class Options:
    """What `workflow.start_activity` is given for one round."""

    start_to_close: timedelta
    heartbeat: timedelta | None
    retry: RetryPolicy


def retry(attempts: int, first: timedelta = timedelta(milliseconds=200)) -> RetryPolicy:
    """Doubling pauses up to ten seconds."""
    return RetryPolicy(
        initial_interval=first,
        backoff_coefficient=2.0,
        maximum_interval=RETRY_EVERY_AT_MOST,
        maximum_attempts=attempts,
    )


def options(kind: Kind, round_number: int) -> Options:
    """Timeouts and retries of an activity of that kind in its n-th round (0 is the first)."""
    attempts = min(FIRST_ROUND_ATTEMPTS << min(round_number, 8), LONGEST_ROUND_ATTEMPTS)
    match kind:
        case "quick":
            return Options(timedelta(seconds=60), None, retry(attempts))
        case "measure":
            return Options(timedelta(hours=2), timedelta(seconds=30), retry(attempts))
        case "long" | "pass":
            return Options(timedelta(days=3), timedelta(seconds=30), retry(attempts))
        case "relay":
            # the next one is to be at work within the lease of its predecessor's shards
            return Options(timedelta(hours=2), timedelta(seconds=5), retry(0))
        case "section":
            # A second attempt has to start while clients still hold their requests: heartbeat of two seconds
            # (design 5.6), and no pause worth the name before it.
            return Options(
                timedelta(minutes=10), timedelta(seconds=2), retry(LONGEST_ROUND_ATTEMPTS, timedelta(milliseconds=50))
            )
        case _:
            assert_never(kind)


def dwell_interval(length: timedelta, watch_every: timedelta) -> timedelta:
    """How often a dwell looks around: at least 12 times, as often as a stream is watched, never within a second."""
    return max(min(length / 12, watch_every), timedelta(seconds=1))


def soak_interval(soak: timedelta, samples: int) -> timedelta:
    """An hour is sampled every minute; a short soak `samples` times, a long one at least every ten minutes."""
    if soak / 60 < timedelta(seconds=5):
        return max(soak / samples, timedelta(milliseconds=10))
    return min(soak / 60, timedelta(minutes=10))


def gate_interval(hour: timedelta) -> timedelta:
    """How often a gate whose evidence does not hold is measured again (the compressed hour / 12, within limits)."""
    return min(max(hour / 12, timedelta(seconds=1)), timedelta(minutes=5))


def summary_interval(hour: timedelta) -> timedelta:
    """The plan's compressed hour, with a floor of a second."""
    return max(hour, timedelta(seconds=1))


def window_of_run(window: timedelta, compress: float) -> timedelta:
    """How long a window of the calendar is open in a run; a compressed one at least for a minute, to be met at all."""
    return max(window / compress, min(window, timedelta(minutes=1)))


def growing(first: timedelta, waited: timedelta) -> timedelta:
    """The next pause of a poll that may go on for weeks: a tenth of what has been waited, so never late by more."""
    return min(max(first, waited / 10), max(first, LONGEST_POLL))
