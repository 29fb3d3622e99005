"""Days and times of the switches, in the plan's zone and in the plan's order."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.plan.calendar import frozen_until, next_opening
from cutover.plan.fields import WEEKDAYS
from cutover.plan.load import load
from cutover.plan.models import FreezeWindow, Window

MONDAY = datetime(2025, 1, 6, tzinfo=UTC)


def test_the_reference_plan_opens_on_thursday_friday_and_the_three_days_of_the_week_after() -> None:
    plan = load(Path(__file__).parents[2] / "examples" / "ai_trader" / "plan.yaml")
    moment, openings = MONDAY, {}
    for name, service in plan.services.items():
        moment, _ = next_opening(service.switchover, moment, plan.timezone)
        openings[name] = f"{moment:%a %d %H:%M}"
    assert openings == {
        "api_gateway": "Thu 09 09:00",
        "orchestrator": "Fri 10 09:00",
        "trading_engine": "Mon 13 09:00",
        "ai_decision": "Wed 15 09:00",
        "analytics": "Fri 17 09:00",
    }


def test_an_open_window_is_used_and_a_passed_one_waits_a_week() -> None:
    window = Window(at="monday 09:00", window=timedelta(hours=4))
    nine = MONDAY + timedelta(hours=9)
    four = timedelta(hours=4)
    assert next_opening(window, MONDAY, "UTC") == (nine, nine + four)
    assert next_opening(window, nine + four, "UTC") == (nine + timedelta(days=7), nine + timedelta(days=7) + four)
    assert next_opening(Window(), nine, "UTC") == (nine, nine + four)


def test_of_a_window_that_is_met_half_way_only_the_rest_is_open() -> None:
    window = Window(at="monday 09:00", window=timedelta(hours=4))
    nine = MONDAY + timedelta(hours=9)
    three = nine + timedelta(hours=3)
    assert next_opening(window, three, "UTC") == (three, nine + timedelta(hours=4))


def test_nine_oclock_is_local_on_both_sides_of_a_change_of_clocks() -> None:
    window = Window(at="monday 09:00")
    before, _ = next_opening(window, datetime(2025, 3, 22, tzinfo=UTC), "Europe/Rome")
    after, _ = next_opening(window, datetime(2025, 3, 30, tzinfo=UTC), "Europe/Rome")
    assert (before.hour, after.hour) == (8, 7)


def test_a_time_that_the_clocks_skip_still_comes() -> None:
    window = Window(at="sunday 02:30", window=timedelta(minutes=1))
    opening, _ = next_opening(window, datetime(2025, 3, 30, tzinfo=UTC), "Europe/Rome")
    assert opening == datetime(2025, 3, 30, 1, 30, tzinfo=UTC)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(WEEKDAYS),
    st.integers(0, 23),
    st.timedeltas(timedelta(minutes=1), timedelta(days=20)),
    st.sampled_from(["UTC", "Europe/Rome", "America/St_Johns", "Pacific/Kiritimati"]),
)
def test_an_opening_comes_within_a_week_and_never_before(
    after: datetime, day: str, hour: int, length: timedelta, timezone: str
) -> None:
    opening, closing = next_opening(Window(at=f"{day} {hour}:00", window=length), after, timezone)
    assert after <= opening <= after + timedelta(days=7, hours=2)
    assert opening < closing <= opening + length


def _freeze(at: str, window: str) -> FreezeWindow:
    return FreezeWindow.model_validate({"at": at, "window": window})


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2025-01-06T14:29", None),  # a Monday
        ("2025-01-06T14:30", "2025-01-06T21:00"),
        ("2025-01-06T20:59", "2025-01-06T21:00"),
        ("2025-01-06T21:00", None),
        ("2025-01-10T17:00", "2025-01-13T07:00"),  # two windows that follow on each other are one freeze
        ("2025-01-12T12:00", "2025-01-13T07:00"),
    ],
)
def test_a_freeze_is_known_by_its_end(now: str, until: str | None) -> None:
    windows = [_freeze("monday 14:30", "390m"), _freeze("friday 17:00", "12h"), _freeze("saturday 05:00", "50h")]
    found = frozen_until(windows, datetime.fromisoformat(now).replace(tzinfo=UTC), "UTC")
    assert found == (datetime.fromisoformat(until).replace(tzinfo=UTC) if until else None)


def test_a_freeze_is_by_the_local_clock() -> None:
    now = datetime(2025, 7, 7, 13, 31, tzinfo=UTC)
    until = datetime(2025, 7, 7, 14, 30, tzinfo=UTC)
    assert frozen_until([_freeze("monday 09:30", "1h")], now, "America/New_York") == until
    assert frozen_until([], now, "UTC") is None
