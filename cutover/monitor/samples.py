"""One look at a service's thresholds, as plain values: they travel through workflow histories, so no row data here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

ThresholdName = Literal[
    "write_latency_increase",
    "mismatch_rate",
    "secondary_failure_rate",
    "reconciliation_lag",
    "fences",
    "read_error_rate",
    "read_p95_increase",
]


class StreamFacts(BaseModel):
    """What the stream says of its work at the other side within the window (`cutover.monitor.work`).

    `unknown` says why failures cannot be counted, or that the stream does not run: a breach. `first`: nothing was
    counted before this look, so there is no window yet.
    """

    model_config = ConfigDict(frozen=True)

    attempts: int
    failures: int
    seconds: float = 0.0
    unknown: str = ""
    first: bool = False


class Reading(BaseModel):
    """One threshold's value beside its limit.

    Shares are 0..1, `reconciliation_lag` is in seconds. Exactly one of these holds: within the limit (no flag),
    `breached` (also where it cannot be read: value None), `waiting` (too little was seen yet: nothing passes on it,
    nothing is rolled back for it), `not_applicable`.
    """

    model_config = ConfigDict(frozen=True)

    value: float | None
    limit: float
    breached: bool = False
    waiting: bool = False
    not_applicable: bool = False
    detail: str = ""

    @property
    def passes(self) -> bool:
        return not (self.breached or self.waiting)


class Sample(BaseModel):
    """All readings of one service at one moment."""

    model_config = ConfigDict(frozen=True)

    migration: str
    service: str
    values: dict[str, Reading]

    @property
    def breached(self) -> tuple[str, ...]:
        """Names of the thresholds that are breached, in a fixed order."""
        return tuple(sorted(name for name, reading in self.values.items() if reading.breached))

    @property
    def waiting(self) -> tuple[str, ...]:
        """Names of the thresholds that have seen too little."""
        return tuple(sorted(name for name, reading in self.values.items() if reading.waiting))

    @property
    def passes(self) -> bool:
        """Whether nothing is breached and nothing is still waited for."""
        return all(reading.passes for reading in self.values.values())

    @property
    def text(self) -> str:
        """What stands in the way, for a person; empty where all is well."""
        return "; ".join(
            f"{name}: {reading.detail}" for name, reading in sorted(self.values.items()) if not reading.passes
        )
