"""What a stream did within a window, from counters that all workers share: failures beside attempts.

`logical` counts at its sink: an attempt is a row written to the service's tables there (markers, the first copy and our
own repairs included) or a failed attempt of apply or first copy, which the server tries again every few seconds.
"""

from datetime import timedelta

from cutover.control import stream_counts
from cutover.control.database import Control
from cutover.control.stream_counts import Count
from cutover.monitor.samples import StreamFacts
from cutover.postgres.databases import Direction, Pair
from cutover.streams.base import Stream

#: For so long a reset of the counters stands for failures that nobody can count any more.
UNKNOWN_AFTER_RESET = timedelta(minutes=1)


async def stream_facts(
    control: Control, pair: Pair, direction: Direction, stream: Stream, window: timedelta
) -> StreamFacts:
    """One look, kept for the next one of any worker. Raises Unreachable and what a lost connection raises."""
    health, work = await stream.health(), await stream.work()
    if work is None:
        return StreamFacts(attempts=0, failures=0, unknown=health.detail or "the stream's counters cannot be read")
    count = Count(work.stream, work.since, work.read_at, work.failures, work.applied)
    span = await stream_counts.note(control, pair.migration, pair.service, direction, count, window)
    unknown = "" if health.ok else health.detail
    if not unknown and span.reset_age is not None and span.reset_age < UNKNOWN_AFTER_RESET:
        unknown = f"the server's counters began anew {span.reset_age.total_seconds():.0f} s ago"
    return StreamFacts(
        attempts=span.applied + span.failures,
        failures=span.failures,
        seconds=span.seconds,
        unknown=unknown,
        first=span.seconds == 0,
    )
