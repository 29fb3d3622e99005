"""When each service may be switched: weekdays and times in the plan's time zone.

Times of a run with `compress` are the plan's own: `planned_now` says what day it "is" for such a run.
All functions are pure; callers pass the present moment in (a workflow its own clock).
"""

from datetime import UTC, datetime, timedelta

from cutover.plan.fields import parse_at, zone
from cutover.plan.models import Plan, Window


def planned_now(plan: Plan, start: datetime, now: datetime) -> datetime:
    """The plan's time of a run that began at `start`: real time, stretched by `compress`."""
    return start + (now - start) * plan.compress


def next_opening(window: Window, after: datetime, timezone: str) -> datetime:
    """The first moment (UTC) not before `after` at which the window is open; `after` itself where it is open.

    `after` must know its zone. A local time that a change of clocks skips or repeats is taken once, at the
    offset before the change.
    """
    if window.at is None:
        return after.astimezone(UTC)
    weekday, hour, minute = parse_at(window.at)
    local_zone = zone(timezone)
    local = after.astimezone(local_zone)
    # From two weeks back: a window may be longer than a week, and an opening before `after` may still be open.
    monday = (local - timedelta(days=local.weekday() + 14)).date()
    for week in range(5):
        day = monday + timedelta(weeks=week, days=weekday)
        opening = datetime(day.year, day.month, day.day, hour, minute, tzinfo=local_zone).astimezone(UTC)
        if opening >= after or after < opening + window.window:
            return max(opening, after.astimezone(UTC))
    raise AssertionError("five weeks hold every weekday")


def openings(plan: Plan, start: datetime) -> dict[str, datetime]:
    """The first opening (UTC, the plan's time) of each service, one after the other in the plan's order.

    A service never opens before the one ahead of it: after `friday`, a `monday` is the Monday that follows.
    """
    moments: dict[str, datetime] = {}
    moment = start
    for name, service in plan.services.items():
        moment = next_opening(service.switchover, moment, plan.timezone)
        moments[name] = moment
    return moments
