"""Which cells of the crash matrix are drawn, and how they come into runs."""

from chaos import cells
from chaos.cells import TURNS, Cell
from cutover import faults


def test_a_drawn_sample_holds_every_reachable_pair_and_is_the_same_for_the_same_seed() -> None:
    drawn = cells.chosen("a seed", 500)
    assert len(drawn) >= 500
    assert len(set(drawn)) == len(drawn)
    assert {pair for cell in drawn for pair in cell.pairs} == cells.pairs()
    assert drawn == cells.chosen("a seed", 500)
    assert drawn != cells.chosen("another seed", 500)


def test_each_cell_comes_into_one_run_of_its_level_at_a_turn_of_its_direction() -> None:
    drawn = cells.chosen("a seed", 500)
    plans = cells.runs(drawn, "a seed")
    found: list[Cell] = []
    for plan in plans:
        for direction, turn in zip(TURNS, plan.turns, strict=False):
            assert {(cell.level, cell.direction) for cell in turn} <= {(plan.level, direction)}
            assert len({cells.slot(cell) for cell in turn}) == len(turn)
            found += turn
        assert all(cell.group not in cells.AT_THE_END for turn in plan.turns[:-1] for cell in turn)
    assert sorted(found) == sorted(drawn)
    # a turn holds what it can: what comes by most often makes the number of runs
    first = [cell for cell in drawn if cell.direction == "switch" and cells.slot(cell) == "section"]
    assert len(plans) <= 1.5 * len(first)


def test_every_point_is_either_reached_by_some_cell_or_left_out_with_a_reason() -> None:
    reached = {cell.point for cell in cells.every()}
    for point in set(faults.points()) - reached:
        assert cells.unreachable(Cell(point, "kill", False, "strong", "switch")), point
    assert all(len(reason) > 20 for reason in cells.left_out())
