"""A sample of the crash matrix, another one for each commit: processes, faults, traffic, and the checker's word."""

import random
from pathlib import Path

import pytest

from chaos import cells
from chaos.cells import LEVELS, TURNS, Cell, Level, Plan
from chaos.matrix import Matrix, commit, earlier, prepared, report
from chaos.run import Result
from chaos.turns import where
from tests.servers import Clusters


def sample(level: Level, seed: str) -> Plan:
    """A switch, a rollback and a second switch, each with a fault in the process that performs it."""
    rng = random.Random(f"{seed}/{level}")
    every = [cell for cell in cells.every() if cell.level == level and where(cell) == "attempt" and not cell.again]
    turns: list[Cell | None] = [rng.choice([c for c in every if c.direction == turn]) for turn in TURNS[:3]]
    return Plan(LEVELS.index(level), level, tuple(turns), f"{seed}/{level}")


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
async def test_a_sample_of_the_matrix_violates_nothing(clusters: Clusters, tmp_path: Path, level: Level) -> None:
    seed = commit()[:12]
    matrix = Matrix([clusters.monolith, clusters.services], await prepared(clusters.services), tmp_path)
    plan = sample(level, seed)
    await matrix.run(plan)
    [result] = matrix.results
    assert result.violations == [], plan
    assert result.switches == 3
    assert all(turn.happened for turn in result.turns), plan
    assert result.counts["switches done"] >= 3
    # and a later call of the same matrix takes it for done
    [known] = earlier(tmp_path, [plan])
    assert known.as_json()["counts"] == result.counts
    assert [turn.cell for turn in known.turns] == [turn.cell for turn in result.turns]


def test_a_run_that_violates_something_or_misses_a_pair_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(0, "logical", (), "x")
    assert report([Result(plan)], set()) == 0
    assert report([Result(plan)], {("switch.fence.before", "kill")}) == 1
    assert report([Result(plan, ["two writable sides"])], set()) == 1
    said = capsys.readouterr().out
    assert "NOT REACHED: switch.fence.before × kill" in said
    assert "VIOLATED: two writable sides" in said
