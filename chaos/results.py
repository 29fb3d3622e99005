"""What became of runs: kept as one JSON line each, so that a later call knows what was tried and what it found."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos.cells import Cell, Plan
from chaos.injection import Fault, Injector
from chaos.strikes import Strike
from chaos.turns import Turn


@dataclass
class Result:
    """What became of a run."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    seconds: float = 0.0
    switches: int = 0
    slots_lost: int = 0
    #: Switches that a busy machine has undone.
    late: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def strikes(self) -> list[tuple[Cell, Strike]]:
        """What was tried of each cell."""
        return [(strike.cell, strike) for turn in self.turns for strike in turn.strikes if strike.cell is not None]

    def as_json(self) -> dict[str, Any]:
        turns = [
            {"turn": turn.number, "calls": turn.calls, "seconds": round(turn.seconds, 2),
             "outcomes": [f"{one['result']} {one.get('reason') or ''}".strip() for one in turn.outcomes],
             "parked": turn.parked, "strikes": [_strike_as_json(one) for one in turn.strikes]}
            for turn in self.turns
        ]  # fmt: skip
        return {**self.plan.as_json(), "turns": turns, "switches": self.switches, "late": self.late,
                "seconds": round(self.seconds, 1), "violations": self.violations,
                "counts": self.counts}  # fmt: skip

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Result":
        """What `as_json` has kept, as far as a report needs it."""
        plan = Plan.from_json(found)
        turns = []
        for one in found["turns"]:
            strikes = [_strike_from_json(strike) for strike in one["strikes"]]
            turns.append(Turn("service", strikes, one["turn"], parked=one["parked"]))
        return cls(plan, found["violations"], turns, found["seconds"], found["switches"], late=found["late"],
                   counts=found["counts"])  # fmt: skip


def _strike_as_json(strike: Strike) -> dict[str, Any]:
    cell = asdict(strike.cell) if strike.cell is not None else None
    return {"cell": cell, "happened": strike.harm, "reached": strike.reached,
            "faults": [str(one) for one in strike.sequence],
            "cut": [" ".join(sql.split())[:80] for sql in strike.cut]}  # fmt: skip


def _strike_from_json(found: dict[str, Any]) -> Strike:
    cell = Cell(**found["cell"]) if found["cell"] is not None else None
    # of which faults it was does not matter any more
    sequence = (Fault("", "kill"),) * (found["happened"] + (not found["reached"]))
    return Strike(cell, Injector(sequence, Path()), found["happened"])


def earlier(folder: Path) -> list[Result]:
    """The runs that were made in this folder, whatever they found."""
    path = folder / "results.jsonl"
    return [Result.from_json(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def tried(results: Sequence[Result]) -> Counter[Cell]:
    """How often each cell was tried."""
    return Counter(cell for result in results for cell, _ in result.strikes)


def not_reached(results: Sequence[Result], drawn: Sequence[Cell]) -> list[Cell]:
    """The cells of which no run has seen all faults happen."""
    reached = {cell for result in results for cell, strike in result.strikes if strike.reached}
    return [cell for cell in drawn if cell not in reached]
