"""A sample of the crash matrix, another one for each commit: processes, faults, traffic, and the checker's word."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chaos import cells
from chaos.cells import LEVELS, TURNS, Cell, Direction, Level, Plan, slot
from chaos.injection import Fault, Injector
from chaos.matrix import Matrix, commit, prepared, report
from chaos.results import Result, earlier, not_reached, tried
from chaos.strikes import Strike
from chaos.turns import Turn, Violation
from tests.servers import Clusters


def sample(level: Level, seed: str) -> Plan:
    """A switch, a rollback and a second switch, each with faults in two of the processes and activities that it has."""
    rng = random.Random(f"{seed}/{level}")
    every = [cell for cell in cells.every() if cell.level == level]

    def drawn(direction: Direction) -> tuple[Cell, ...]:
        found = [cell for cell in every if cell.direction == direction]
        if direction == "switch":  # two more turns follow
            found = [cell for cell in found if slot(cell) != "end"]
        slots = rng.sample(sorted({slot(cell) for cell in found}), 2)
        return tuple(rng.choice([cell for cell in found if slot(cell) == one]) for one in slots)

    return Plan(LEVELS.index(level), level, tuple(map(drawn, TURNS[:3])), f"{seed}/{level}")


@pytest.mark.slow
async def test_a_sample_of_the_matrix_violates_nothing(clusters: Clusters, tmp_path: Path) -> None:
    seed = commit()[:12]
    matrix = Matrix([clusters.monolith, clusters.services], await prepared(clusters.services), tmp_path)
    plans = [sample(level, seed) for level in LEVELS]
    drawn = [cell for plan in plans for cell in plan.cells]
    await matrix.complete(plans, drawn, seed, len(LEVELS))
    assert report(matrix.results, drawn) == 0, plans
    first = matrix.results[: len(LEVELS)]
    assert {result.switches for result in first} == {3}
    assert all(result.counts["switches done"] >= 3 for result in first)
    # and a later call of the same matrix takes them for done
    known = earlier(tmp_path)
    assert [one.plan for one in known] == [one.plan for one in matrix.results]
    assert [one.as_json()["counts"] for one in known] == [one.counts for one in matrix.results]
    assert {cell for one in known for cell, strike in one.strikes if strike.reached} == set(drawn)


CELL = Cell("switch.fence.before", "kill", False, "logical", "switch")
PLAN = Plan(3, "logical", ((CELL,), ()), "x/3")
FAULTS = (Fault(CELL.point, "kill"),) * 2


def turn(happened: int = 0, sequence: Sequence[Fault] = FAULTS, **more: Any) -> Turn:
    """One of that cell, of whose faults so many have happened."""
    return Turn("service", [Strike(CELL, Injector(sequence, Path()), happened)], **more)


def test_a_run_that_violates_something_or_a_cell_that_did_not_happen_ends_with_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = Result(PLAN, turns=[turn(2)])
    half = Result(PLAN, turns=[turn(1)])
    assert report([done], [CELL]) == 0
    assert report([half, done], [CELL]) == 0
    assert report([half], [CELL]) == 1
    assert report([], [CELL]) == 1
    assert report([done, Result(PLAN, ["two writable sides"])], [CELL]) == 1
    said = capsys.readouterr().out
    assert f"NOT REACHED: {CELL}" in said
    assert "VIOLATED: two writable sides" in said


def test_what_a_run_has_found_is_known_to_a_later_call_and_never_made_good_by_it(tmp_path: Path) -> None:
    broken = Result(PLAN, ["sides differ"], [turn(1)], 2.0, 1, counts={"ok": 3})
    clean = Result(PLAN, [], [turn(2)])
    lines = [json.dumps(one.as_json()) for one in (broken, clean)]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    first, second = earlier(tmp_path)
    assert (first.plan, first.violations, first.switches, first.counts) == (PLAN, ["sides differ"], 1, {"ok": 3})
    assert [strike.reached for one in (first, second) for _, strike in one.strikes] == [False, True]
    assert not_reached([first], [CELL]) == [CELL]
    assert not_reached([first, second], [CELL]) == []
    assert tried([first, second])[CELL] == 2
    assert report([first, second], [CELL]) == 1


def test_what_only_lets_a_fault_wait_for_its_moment_is_none() -> None:
    moment = Fault("switch.fence.after", "delay")
    (strike,) = turn(1, (moment, *FAULTS)).strikes
    assert (strike.harm, strike.reached) == (0, False)
    strike.happened = 3
    assert (strike.harm, strike.reached) == (2, True)


def test_a_turn_that_is_undone_without_a_fault_that_explains_it_is_a_violation() -> None:
    undone = {"result": "undone", "reason": "a lock was not obtained", "harm": 1}
    again = turn(1, outcomes=[undone, {"result": "done", "reason": ""}])
    again.judge(stormy=False)
    again.outcomes.append(undone)
    again.judge(stormy=True)
    with pytest.raises(Violation, match="undone 2 times, and 1 of them no fault explains"):
        again.judge(stormy=False)
    early = {**undone, "harm": 0}
    with pytest.raises(Violation, match="1 of them no fault explains: behind 0 faults: a lock"):
        turn(1, outcomes=[early, {"result": "done", "harm": 1}]).judge(stormy=False)
    late = {"result": "undone", "reason": "step 'fence' did not end within the pause's limit of 2 s", "harm": 0}
    slow = turn(outcomes=[late])
    slow.judge(stormy=False)
    assert slow.late
    with pytest.raises(Violation, match="undone 2 times"):
        turn(outcomes=[late, late]).judge(stormy=False)
    differing = {"result": "undone", "reason": "keys differ inside the fence (t: 1)", "harm": 2}
    with pytest.raises(Violation, match="keys differ"):
        turn(2, outcomes=[differing]).judge(stormy=True)
    with pytest.raises(Violation, match="a run would have stopped: Conflict"):
        turn(parked=["Conflict: nothing to switch"]).judge(stormy=False)
