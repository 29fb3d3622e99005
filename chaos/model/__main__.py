"""Explores the model of the switch, then its mutants; `--traces` prints each mutant's counterexample."""

import json
import sys
import time

from chaos.model import bounds
from chaos.model.explorer import Result, Violation, explore
from chaos.model.mutants import LAYERS, MUTANTS
from chaos.model.program import build

INVARIANTS = (
    "one writable side, and no write accepted by another one than the newest journal names",
    "no acknowledged write lost, no number given twice",
    "no stale write wins",
    "the way back exists no later than the journal, and while its side is writable",
    "nothing slow after the journal: fenced, drained, marker and rows on disk before it",
    "epochs monotone, and never of two sides",
    "settled: no switch under way means one side open, flags that lead there, no pause",
    "liveness: a good quiet end can be reached from everywhere without another fault",
)


def main(arguments: list[str]) -> int:
    """Exit status 1 where an invariant is violated, a mutant survives, or a second layer is none any more."""
    traces = "--traces" in arguments
    began = time.process_time()
    print("the switch as the list of steps has it; checked in every state:")
    for invariant in INVARIANTS:
        print(f"  {invariant}")
    results = [_explored(number) for number in range(len(bounds.FULL))]
    violations = sum(result.violation is not None for result in results)
    caught = 0
    for mutant in MUTANTS:
        found = mutant.run().violation
        caught += found is not None
        print(
            f"{'caught' if found else 'SURVIVED':8}  {mutant.name}" + (f": {found.text}" if found else ""), flush=True
        )
        if found and traces:
            _print(found)
    layers = 0
    for layer in LAYERS:
        found = layer.run().violation
        layers += found is None
        print(f"{'FAILED' if found else 'held by others':14}  without {layer.name}")
        if found:
            _print(found)
    figures = {
        "states": sum(result.states for result in results),
        "transitions": sum(result.transitions for result in results),
        "depth": max(result.depth for result in results),
        "invariants": len(INVARIANTS),
        "violations": violations,
        "mutants": len(MUTANTS),
        "caught": caught,
        "seconds": round(time.process_time() - began, 1),
    }
    print(json.dumps(figures))
    return 0 if not violations and caught == len(MUTANTS) and layers == len(LAYERS) else 1


def _explored(number: int) -> Result:
    left = bounds.FULL[number]
    result = explore(build(), left)
    print(
        f"{left.writes} writes, {left.crashes} kills, {left.sleeps} sleeping attempts, {left.switches} switches: "
        f"{result.states} states, {result.transitions} moves, depth {result.depth}, {result.good} good ends, "
        f"{result.seconds:.1f} s",
        flush=True,
    )
    if result.violation:
        _print(result.violation)
    return result


def _print(violation: Violation) -> None:
    print(f"  violated: {violation.text}")
    for number, line in enumerate(violation.trace, 1):
        print(f"  {number:3}. {line}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
