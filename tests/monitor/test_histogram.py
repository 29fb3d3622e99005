"""Quantiles out of buckets, and breaches that last."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.monitor.histogram import BOUNDS, BUCKETS, add, bucket_of, quantile
from cutover.monitor.sustained import Sustained


def counted(durations: list[float]) -> list[int]:
    counts = [0] * BUCKETS
    for seconds in durations:
        counts[bucket_of(seconds)] += 1
    return counts


@given(st.lists(st.floats(0.0003, 15), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_quantile_is_right_within_one_bucket(durations: list[float], share: float) -> None:
    exact = sorted(durations)[max(0, -(-len(durations) * share // 1).__int__() - 1)]
    found = quantile(counted(durations), share)
    assert found is not None
    assert abs(bucket_of(found) - bucket_of(exact)) <= 1


def test_a_fifth_more_is_seen_at_two_milliseconds() -> None:
    rng = random.Random(1)
    base = [rng.gauss(0.002, 0.0002) for _ in range(2000)]
    before, after = quantile(counted(base), 0.95), quantile(counted([d * 1.2 for d in base]), 0.95)
    assert before is not None
    assert after is not None
    assert after / before == pytest.approx(1.2, abs=0.05)


def test_edges() -> None:
    assert quantile([0] * BUCKETS, 0.95) is None
    assert quantile(counted([100.0]), 0.95) == BOUNDS[-1]
    assert sum(add(counted([1.0]), counted([2.0]))) == 2


def test_a_breach_counts_from_the_third_sample_in_a_row() -> None:
    watch = Sustained()
    assert watch.observe(["a"]) == ()
    assert watch.observe(["a", "b"]) == ()
    assert watch.observe(["b", "a"]) == ("a",)
    assert watch.observe(["b"]) == ("b",)
    assert watch.observe([]) == ()
    assert watch.observe(["b"]) == ()
    handed_on = Sustained(counts={"b": 2})
    assert handed_on.observe(["b"]) == ("b",)
    with pytest.raises(ValueError, match="at least one"):
        Sustained(0)
