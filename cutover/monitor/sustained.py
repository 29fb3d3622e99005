"""Whether a breach lasts: the same threshold breached in N samples in a row. No clock, no I/O: safe in a workflow."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

#: Samples in a row from which a breach counts.
SAMPLES = 3


@dataclass
class Sustained:
    """Counts breaches in a row per threshold. `counts` is all its state: hand it on at a continue-as-new."""

    needed: int = SAMPLES
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.needed < 1:
            raise ValueError(f"a breach needs at least one sample, not {self.needed}")

    def observe(self, breached: Collection[str]) -> tuple[str, ...]:
        """Takes the thresholds that one sample found breached; gives those that are breached for long enough.

        One sample within the limit begins the count anew.
        """
        self.counts = {name: self.counts.get(name, 0) + 1 for name in sorted(breached)}
        return tuple(name for name, count in self.counts.items() if count >= self.needed)
