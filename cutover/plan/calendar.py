"""When each service may be switched: weekdays and times in the plan's time zone.

All functions are pure; callers pass the present moment in (a workflow its own clock).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from cutover.plan.fields import parse_at, zone
from cutover.plan.models import FreezeWindow, Window


def next_opening(window: Window, after: datetime, timezone: str) -> tuple[datetime, datetime]:
    """The first moment (UTC) not before `after` at which the window is open, and when it closes then.

    The moment is `after` itself where the window is open, and what is left of it may be less than its length.
    `after` must know its zone. A local time that a change of clocks skips or repeats is taken once, at the
    offset before the change.
    """
    if window.at is None:
        return after.astimezone(UTC), after.astimezone(UTC) + window.window
    for opening in _weekly(window.at, after, timezone):
        if opening >= after or after < opening + window.window:
            return max(opening, after.astimezone(UTC)), opening + window.window
    raise AssertionError("five weeks hold every weekday")


def _weekly(at: str, around: datetime, timezone: str) -> Iterator[datetime]:
    """The moments (UTC) of five weeks, from two weeks back: a window may be longer than a week, and still be open."""
    weekday, hour, minute = parse_at(at)
    local_zone = zone(timezone)
    local = around.astimezone(local_zone)
    monday = (local - timedelta(days=local.weekday() + 14)).date()
    for week in range(5):
        day = monday + timedelta(weeks=week, days=weekday)
        yield datetime(day.year, day.month, day.day, hour, minute, tzinfo=local_zone).astimezone(UTC)


def frozen_until(windows: Sequence[FreezeWindow], now: datetime, timezone: str) -> datetime | None:
    """The end (UTC) of the freeze that `now` lies in, over windows that follow on each other; None: no freeze."""
    end = now
    for _ in range(len(windows) + 1):
        later = max((_closing(window, end, timezone) for window in windows), default=end)
        if later <= end:
            break
        end = later
    return end.astimezone(UTC) if end > now else None


def _closing(window: FreezeWindow, now: datetime, timezone: str) -> datetime:
    """The end of the window's opening that `now` lies in; `now` itself outside of it."""
    closings = (opening + window.window for opening in _weekly(window.at, now, timezone) if opening <= now)
    return max((closing for closing in closings if closing > now), default=now)
