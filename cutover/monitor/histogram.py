"""Durations counted in buckets: cheap to keep, to add up over instances, and to take a quantile of.

OpenTelemetry's bounds for a database client are too coarse to see a fifth more at 2 ms (1 ms, 5 ms, …),
so the control database's buckets grow by 2^(1/4), about 19 %, and quantiles are interpolated inside one.
"""

import operator
from bisect import bisect_left
from collections.abc import Sequence

#: Upper bounds in seconds, 0.25 ms to 16 s; one bucket more holds what is slower.
BOUNDS: tuple[float, ...] = tuple(0.00025 * 2 ** (step / 4) for step in range(65))
BUCKETS = len(BOUNDS) + 1


def bucket_of(seconds: float) -> int:
    """The index of the bucket that counts this duration."""
    return bisect_left(BOUNDS, seconds)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The duration in seconds below which that share of the counted ones lies; None where nothing was counted."""
    total = sum(counts)
    if total == 0:
        return None
    wanted = share * total
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            if index >= len(BOUNDS):
                return BOUNDS[-1]
            low = BOUNDS[index - 1] if index else 0.0
            return low + (BOUNDS[index] - low) * (wanted - below) / count
        below += count
    return BOUNDS[-1]


def add(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Both histograms in one."""
    if len(left) != len(right):
        raise ValueError(f"histograms of {len(left)} and {len(right)} buckets cannot be added")
    return list(map(operator.add, left, right))
