"""Figures of many switches: percentiles, the table, and the goals that they are held against."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.switch_traffic import Traffic
from cutover.switch.models import SwitchOutcome

PERCENTILES = (50, 95, 99)
#: Figure → the most that it may be.
GOALS: dict[str, float] = {
    "pause_p50_ms": 20, "pause_p99_ms": 100, "pause_to_floor": 6, "wait_p50_ms": 60, "wait_p99_ms": 300,
    "failed_requests": 0, "lost_writes": 0,
}  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured. Raises ValueError without values."""
    if not values:
        raise ValueError("there is no percentile of nothing: no switch was measured")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass
class Measured:
    """What the switches of one stream have shown; times in milliseconds."""

    stream: str
    outcomes: list[SwitchOutcome] = field(default_factory=list)
    #: Attempts that were taken back before their journal; the next attempt followed.
    undone: list[SwitchOutcome] = field(default_factory=list)
    #: One lock, one marker through the stream, one unlock; one before each switch.
    floors: list[float] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    #: Acknowledged writes that are not in the primary, and rows in which the sides differ after the drain.
    lost: int = 0
    differing: int = 0

    @property
    def pauses(self) -> list[float]:
        """From the first lock attempt of the fence to the commit of the unfence."""
        return [outcome.write_pause_ms - _after_commit(outcome) for outcome in self.outcomes]

    @property
    def announced(self) -> list[float]:
        """From the announcement to the flip; of an attempt that was taken back, to the end of the pause."""
        return [outcome.pause_ms for outcome in [*self.outcomes, *self.undone] if outcome.pause_ms]

    def steps(self) -> dict[str, list[float]]:
        """The milliseconds of each step, in the order in which the steps are taken."""
        found: dict[str, list[float]] = {}
        for outcome in self.outcomes:
            for step in outcome.steps:
                found.setdefault(step.name, []).append(step.ms)
        return found

    def figures(self) -> dict[str, float]:
        """What has goals. Of the two measures of a client's wait, the switch's and the writers', the longer counts."""

        def waited(percent: float) -> float:
            return max(percentile(values, percent) for values in (self.announced, self.traffic.waits) if values)

        pause = percentile(self.pauses, 50)
        return {
            "pause_p50_ms": round(pause, 2),
            "pause_p99_ms": round(percentile(self.pauses, 99), 2),
            "pause_to_floor": round(pause / percentile(self.floors, 50), 2),
            "wait_p50_ms": round(waited(50), 2),
            "wait_p99_ms": round(waited(99), 2),
            "failed_requests": self.traffic.failed,
            "lost_writes": self.lost,
        }

    def table(self) -> str:
        """All that was measured, for a person."""
        rows = {
            "write pause: first lock attempt to commit": self.pauses,
            "floor: lock, marker, unlock": self.floors,
            "announced pause: announcement to flip": self.announced,
            "writers: latency of a request that was held": self.traffic.waits,
            "writers: of that, held": self.traffic.held,
            **{f"  step {name}": values for name, values in self.steps().items()},
        }
        titles = "".join(f"{f'p{p}':>9}" for p in PERCENTILES)
        lines = [f"{self.stream + ' (ms)':<46}{titles}{'max':>9}{'n':>8}"]
        for title, values in rows.items():
            shown = [percentile(values, p) for p in PERCENTILES] + [max(values)] if values else []
            lines.append(f"{title:<46}{''.join(f'{value:9.2f}' for value in shown)}{len(values):8d}")
        traffic = self.traffic
        lines.append(
            f"requests {traffic.requests} ({traffic.per_second:.0f} a second, p50 {traffic.p50_ms:.2f} ms), "
            f"held {len(traffic.held)}, tried again {traffic.retried}, "
            f"failed {traffic.failed} {traffic.failures or ''}".rstrip()
        )
        lines.append(
            f"switches {len(self.outcomes)}, taken back and repeated {len(self.undone)}, keys compared p50 "
            f"{percentile([outcome.compared_keys for outcome in self.outcomes], 50):.0f}, lost writes {self.lost}, "
            f"rows that differ after the drain {self.differing}"
        )
        lines += [f"taken back: {reason}" for reason in sorted({outcome.reason or "" for outcome in self.undone})]
        return "\n".join(lines)


def _after_commit(outcome: SwitchOutcome) -> float:
    """Milliseconds of the steps behind the commit of the unfence."""
    names = [step.name for step in outcome.steps]
    return sum(step.ms for step in outcome.steps[names.index("commit") + 1 :])


def result(found: Sequence[Measured]) -> dict[str, float]:
    """The figures of all streams together: of each the worse one; requests, writes and switches are added up."""
    each = [measured.figures() for measured in found]
    worst = {name: max(figures[name] for figures in each) for name in each[0]}
    for name in ("failed_requests", "lost_writes"):
        worst[name] = sum(figures[name] for figures in each)
    return {**worst, "cycles": sum(len(measured.outcomes) for measured in found)}


def report(found: Sequence[Measured]) -> str:
    """Tables, goals, and as the last line one JSON object."""
    figures = result(found)
    goals = [
        f"{name:<18}{figures[name]:10.2f}  goal {goal:6.2f}  {'reached' if figures[name] <= goal else 'MISSED'}"
        for name, goal in GOALS.items()
    ]
    return "\n\n".join([*(measured.table() for measured in found), "\n".join(goals), json.dumps(figures)])


def whole(found: Sequence[Measured]) -> bool:
    """Whether nothing was lost, no request failed, and both sides are equal."""
    return not any(measured.lost or measured.differing or measured.traffic.failed for measured in found)
