"""Durations and percentages as a plan writes them: `14d`, `1h30m`, `500ms`; `0.1%`."""

import re
from datetime import timedelta
from decimal import Decimal

#: Microseconds in each unit, the longest first.
UNITS = {"w": 604_800_000_000, "d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000,
         "ms": 1_000, "us": 1}  # fmt: skip
LONGEST = timedelta(days=3650)
RIGHT_DURATION = "write a number with its unit: w, d, h, m, s or ms, as in 14d, 1h30m or 500ms"
RIGHT_PERCENTAGE = "write a number with a percent sign, as in 20% or 0.1%"

_PART = r"(\d{1,15}(?:\.\d{1,6})?)(ms|us|w|d|h|m|s)"
_WHOLE = re.compile(f"(?:{_PART})+", re.ASCII)
_PERCENTAGE = re.compile(r"(\d{1,9}(?:\.\d{1,18})?)\s*%", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """The duration that `text` writes, exact to the microsecond. Raises ValueError with what is wrong."""
    text = text.strip()
    if not _WHOLE.fullmatch(text):
        raise ValueError("is a number without a unit" if _is_number(text) else "is not a duration")
    microseconds = sum(Decimal(number) * UNITS[unit] for number, unit in re.findall(_PART, text))
    if microseconds != int(microseconds):
        raise ValueError("is finer than a microsecond")
    if microseconds > LONGEST // timedelta(microseconds=1):
        raise ValueError("is longer than ten years")
    return timedelta(microseconds=int(microseconds))


def format_duration(duration: timedelta) -> str:
    """The text that `parse_duration` reads back to the same duration: the longest units first, no weeks."""
    rest = duration // timedelta(microseconds=1)
    parts = []
    for unit, size in UNITS.items():
        count, left = divmod(rest, size)
        if count and unit != "w":  # "14d" is what people write, and what the migration strategy says
            parts.append(f"{count}{unit}")
            rest = left
    return "".join(parts) or "0s"


def parse_percentage(text: str) -> float:
    """The share (1.0 is 100 %) that `text` writes. Raises ValueError with what is wrong."""
    found = _PERCENTAGE.fullmatch(text.strip())
    if not found:
        raise ValueError("is a number without %" if _is_number(text.strip()) else "is not a percentage")
    return float(Decimal(found[1]) / 100)


def format_percentage(share: float) -> str:
    """The text that `parse_percentage` reads back to the same share."""
    return f"{(Decimal(repr(share)) * 100).normalize():f}%"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d*)?", text, re.ASCII) is not None
