"""Durations and percentages read back to exactly what they were."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.plan.durations import LONGEST, format_duration, format_percentage, parse_duration, parse_percentage


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("14d", 1209600), ("1h", 3600), ("5m", 300), ("1s", 1), ("500ms", 0.5), ("1h30m", 5400), ("1.5h", 5400),
     ("2w", 1209600), ("0s", 0), ("10us", 0.00001), (" 1s ", 1)],
)  # fmt: skip
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("5", "is a number without a unit"), ("", "is not a duration"), ("5 minutes", "is not a duration"),
     ("-5m", "is not a duration"), ("m", "is not a duration"), ("0.1us", "is finer than a microsecond"),
     ("9999d", "is longer than ten years"), ("\u0665m", "is not a duration"), ("1M", "is not a duration")],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        parse_duration(text)


@given(st.timedeltas(timedelta(0), LONGEST))
def test_every_duration_survives_its_text(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(("text", "share"), [("0.1%", 0.001), ("20%", 0.2), ("1000 %", 10.0), ("0%", 0.0)])
def test_a_percentage_is_read(text: str, share: float) -> None:
    assert parse_percentage(text) == share


@pytest.mark.parametrize("text", ["0.1", "%", "-1%", "1e3%", "ten%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is a number without %|is not a percentage"):
        parse_percentage(text)


@given(st.decimals(0, 100_000, places=6).map(lambda percent: f"{percent}%"))
def test_every_percentage_survives_its_text(text: str) -> None:
    share = parse_percentage(text)
    assert parse_percentage(format_percentage(share)) == share
