"""Deadlines that a plan's durations set, by the names under which they are shown; another plan moves them."""

from collections.abc import Callable
from datetime import datetime, timedelta

from activities.models import Rules

DWELL = "dual-write at least until"
SOAK = "soak ends"
DEPRECATION = "rollback possible at least until"
QUIET = "nobody has read or written the renamed tables until"

#: How long each of them lasts by a plan's rules.
LENGTHS: dict[str, Callable[[Rules], timedelta]] = {
    DWELL: lambda rules: rules.dual_write_at_least,
    SOAK: lambda rules: rules.soak,
    DEPRECATION: lambda rules: rules.deprecation,
    QUIET: lambda rules: rules.quiet_for,
}


def moved(deadlines: dict[str, datetime], former: Rules, rules: Rules) -> dict[str, datetime]:
    """The deadlines as they would stand had the new rules held when each of them began."""
    return {
        name: end + (LENGTHS[name](rules) - LENGTHS[name](former) if name in LENGTHS else timedelta())
        for name, end in deadlines.items()
    }
