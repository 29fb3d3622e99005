"""The checker finds writes that one writable side at any instant cannot explain; each history is made by hand."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import Verdict, check
from chaos.sides import Switch, Window, both_shut, timed
from cutover.errors import ConfigError
from cutover.postgres.databases import Side, other
from tests.chaos.stories import SERVICE, TO_MONOLITH, TO_SERVICE, Story, event, rows, taken, verdict, wrong


def test_writes_that_follow_the_switches_pass(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 2)
    story.accepted("service", 3, 4)
    story.accepted("monolith", 5, 6)
    found = verdict(path, taken(1, 3, 5), TO_SERVICE, TO_MONOLITH)
    assert found.ok
    assert found.counts["switches proved by writes"] == 2


def test_accepted_at_the_target_before_any_switch_is_found(story: Story, path: Path) -> None:
    op = story.accepted("service", 1, 2)
    found = verdict(path, taken(1))
    assert wrong(found) == ["accepted at a fenced side"]
    assert (found.shown[0].op, found.shown[0].key) == (op, "t10")
    assert verdict(path, taken(1), TO_SERVICE).ok


def test_accepted_at_both_sides_without_a_switch_in_between_is_found(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 2)
    witness = story.accepted("service", 3, 4)
    rogue = story.accepted("monolith", 5, 6)
    found = verdict(path, taken(1, 3, 5), TO_SERVICE)
    assert wrong(found) == ["two writable sides"]
    assert (found.shown[0].op, found.shown[0].witness) == (rogue, witness)
    assert len(found.shown[0].around) == 4


def test_writes_that_overlap_prove_nothing(story: Story, path: Path, tmp_path: Path) -> None:
    late = Story(tmp_path / "late.jsonl", "c1")
    old = late.begin(event("t90"), at=1)
    story.accepted("service", 2, 3)
    late.end("ok", old, 90, at=4, side="monolith")  # it may have been committed before the other one began
    assert verdict(path, taken(2, 9), TO_SERVICE, logs=[late.log.path]).ok


def test_a_switch_may_have_been_as_late_as_the_end_of_the_first_write_after_it(
    story: Story, path: Path, tmp_path: Path
) -> None:
    late = Story(tmp_path / "late.jsonl", "c1")
    story.accepted("service", 3, 6)
    late.accepted("monolith", 5.5, 7)  # committed at 5.6, and the other one at 5.9
    logs, left = [late.log.path], taken(3, 5.5)
    assert verdict(path, left, TO_SERVICE, logs=logs).ok
    late.accepted("monolith", 8, 9)
    assert wrong(verdict(path, taken(3, 5.5, 8), TO_SERVICE, logs=logs)) == ["two writable sides"]


def test_the_time_of_a_switch_proves_what_the_order_alone_does_not(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 2)
    story.accepted("monolith", 12, 13)
    story.accepted("service", 14, 15)
    left = taken(1, 12, 14)
    assert verdict(path, left, TO_SERVICE).ok
    assert verdict(path, left, Switch(1, "service", begun=5, ended=13.5)).ok
    after = verdict(path, left, Switch(1, "service", begun=5, ended=11))
    assert (wrong(after), after.shown[0].key) == (["accepted at a fenced side"], "t120")
    before = verdict(path, left, Switch(1, "service", begun=16, ended=17))
    assert (wrong(before), before.shown[0].key) == (["accepted at a fenced side"], "t140")


@pytest.mark.parametrize("rogue", [None, *range(12)])
def test_one_rogue_write_among_many_switches_is_found(story: Story, path: Path, rogue: int | None) -> None:
    """Three writes between any two switches; one of them, the middle one, at the wrong side."""
    sides: list[Side] = ["monolith", "service"] * 6
    for turn, side in enumerate(sides):
        for step in range(3):
            at = turn * 10 + step * 2 + 1.0
            story.accepted(other(side) if turn == rogue and step == 1 else side, at, at + 1)
    done = [Switch(number, side) for number, side in enumerate(sides) if number]
    found = verdict(path, taken(*(turn * 10 + step * 2 + 1.0 for turn in range(12) for step in range(3))), *done)
    assert found.ok == (rogue is None), found.violations


def test_every_history_of_one_writable_side_passes(path: Path, story: Story) -> None:
    """Commits inside of their turns, with ends and begins that reach far into the neighbouring ones."""
    commits: list[tuple[float, Side]] = []
    for turn, side in enumerate(itertools.islice(itertools.cycle(("monolith", "service")), 6)):
        commits += [(turn * 10 + step, side) for step in (1.0, 4.0, 8.0)]  # type: ignore[misc]
    lines: list[tuple[float, str]] = []
    for number, (commit, side) in enumerate(commits):
        token, op = f"t{number}", f"c0-{number}"
        for name, at in (("invoke", commit - number % 7 * 1.5), ("ok", commit + number % 5 * 2.5)):
            line: dict[str, Any] = {"event": name, "op": op, "at": at, "service": SERVICE}
            line |= (
                {"writes": [event(token).as_json()]} if name == "invoke" else {"answers": [number + 1], "side": side}
            )
            lines.append((at, json.dumps(line)))
    path.write_text("".join(f"{text}\n" for _, text in sorted(lines, key=lambda line: line[0])))
    done = [Switch(turn, "service" if turn % 2 else "monolith", turn * 10 - 1, turn * 10) for turn in range(1, 6)]
    assert verdict(path, rows(events={f"t{number}": number + 1 for number in range(len(commits))}), *done).ok


def test_switches_that_do_not_follow_from_one_another_are_refused(story: Story, path: Path) -> None:
    story.tx("fail", event("a"))
    with pytest.raises(ConfigError, match="writable already"):
        verdict(path, rows(), TO_SERVICE, Switch(2, "service"))
    with pytest.raises(ConfigError, match="its rows there are not given"):
        check([path], {SERVICE: {"monolith": rows()}}, {SERVICE: [TO_SERVICE]})


def test_a_write_that_lies_between_a_fence_and_what_opens_a_side_again_is_found(story: Story, path: Path) -> None:
    story.accepted("monolith", 1, 3)  # it may have been committed before the fence
    inside = story.accepted("monolith", 4, 5)
    story.accepted("monolith", 6, 9)  # or after the undo
    done: dict[str, list[Switch]] = {SERVICE: []}

    def found(*shut: Window) -> Verdict:
        return check([path], {SERVICE: {"monolith": taken(1, 4, 6)}}, done, shut={SERVICE: shut})

    assert found().ok
    assert found(Window(2, 4.5), Window(4.6, 8)).ok
    broken = found(Window(2, 8))
    assert wrong(broken) == ["accepted at a fenced side"]
    assert broken.shown[0].op == inside


def test_both_sides_are_shut_from_the_fence_s_commit_to_the_next_step_that_opens_one() -> None:
    first = [
        (1.0, "switch.fence.before"),
        (2.0, "switch.fence-commit.after"),
        (3.0, "switch.marker.before"),
        (4.0, "undo.open.before"),
        (5.0, "switch.unfence.before"),  # of an attempt that slept
        (6.0, "switch.fence-commit.after"),
        (7.0, "switch.unfence.before"),
    ]
    second = [(8.0, "switch.fence-commit.after")]  # and the run was ended
    assert both_shut([second, first]) == [Window(2.0, 4.0), Window(6.0, 7.0)]


def test_a_switch_is_as_late_as_the_first_step_behind_its_last_fence_that_opens_the_new_side() -> None:
    undone = [(2.0, "switch.fence-commit.after"), (4.0, "undo.open.before"), (5.0, "switch.unfence.before")]
    done = [(6.0, "switch.fence-commit.after"), (7.0, "switch.unfence.before"), (7.5, "complete.open.before")]
    back = [(11.0, "switch.fence-commit.after"), (12.0, "complete.open.before"), (13.0, "switch.unfence.before")]
    mended = [(9.0, "mend.fences.before")]
    switches = [Switch(2, "monolith"), Switch(1, "service")]
    assert timed(switches, [back, mended, undone + done]) == [
        Switch(1, "service", 7.0, 7.0),
        Switch(2, "monolith", 12.0, 12.0),
    ]
    slept = [(7.2, "undo.resume.after"), (7.3, "switch.journal.after"), (7.6, "undo.shut.before")]
    assert timed(switches[1:], [undone + done[:2] + slept]) == [Switch(1, "service", 7.0, 7.0)]
    for turns in ([back], [undone, back], [back, done, [(t + 20, point) for t, point in done]]):
        with pytest.raises(ConfigError, match="2 switches were done, and in"):
            timed(switches, turns)


def test_a_write_at_the_old_side_behind_the_opening_of_the_new_one_is_found_before_the_new_one_has_any(
    story: Story, path: Path, tmp_path: Path
) -> None:
    rogue = story.accepted("monolith", 8, 9)
    beside = Story(tmp_path / "other.jsonl", "c1")
    beside.accepted("service", 8.5, 10)
    logs, left = [beside.log.path], taken(8, 8.5)
    assert verdict(path, left, TO_SERVICE, logs=logs).ok, "the order of the writes alone does not show it"
    found = verdict(path, left, replace(TO_SERVICE, begun=7.0, ended=7.0), logs=logs)
    assert wrong(found) == ["accepted at a fenced side"]
    assert found.shown[0].op == rogue
    assert found.counts["switches proved by writes"] == 1
