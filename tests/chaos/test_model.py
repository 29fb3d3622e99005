"""The model of the switch: clean as the code has it, every wrong variant caught, its parts those of the code."""

import ast
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.model import bounds, program
from chaos.model.effects import Rules
from chaos.model.explorer import backwards, explore
from chaos.model.mutants import LAYERS, MUTANTS, Mutant, moved
from chaos.model.program import BEGIN, END, build
from chaos.model.recovery import COMPLETE, UNDO
from chaos.model.section import ACTIONS, Part
from chaos.model.state import Attempt, Broken, Left, State, shown
from cutover.switch.steps import SECTION, STEPS, Step

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("left", bounds.QUICK, ids=str)
def test_no_invariant_breaks_in_any_state(left: Left) -> None:
    result = explore(build(), left)
    assert result.violation is None
    assert result.good > 0
    assert result.states > 10_000


def test_the_comparison_never_has_to_close_the_gate() -> None:
    def compare(state: State, attempt: Attempt, rules: Rules) -> State | None:
        if shown(state, 0) != shown(state, 1):
            raise Broken("it finds a difference")
        return state

    assert explore(build(actions={**ACTIONS, "compare": (compare,)}), Left(2, 1, 0, 1)).violation is None
    early = build(moved(STEPS, "compare", "fence"), {**ACTIONS, "compare": (compare,)})
    assert explore(early, Left(2, 1, 0, 1)).violation is not None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_variant_is_caught_with_a_counterexample(mutant: Mutant) -> None:
    violation = mutant.run().violation
    assert violation is not None
    print(violation.text, *violation.trace, sep="\n  ")
    assert violation.trace[0].startswith("run begins a switch")


def test_the_counterexample_is_a_shortest_one_and_ends_with_the_move_that_breaks_it() -> None:
    early = next(mutant for mutant in MUTANTS if mutant.name == "the unfence committed before the journal")
    violation = early.run().violation
    assert violation is not None
    section = [line.removeprefix("attempt 1 ").split(" (")[0] for line in violation.trace if line.startswith("attempt")]
    assert list(dict.fromkeys(section)) == [
        "clear the way", "begin", "announce-pause", "fence", "marker", "sequences", "compare", "unfence", "commit",
    ]  # fmt: skip
    # beside the attempt's own parts: the run's four, an acknowledgement, and one apply for the marker
    assert len(violation.trace) == len(section) + 4 + 1 + 1


def test_liveness_alone_catches_an_undo_that_never_ends() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "undo that does not note its end")
    violation = mutant.run().violation
    assert violation is not None
    assert violation.text.startswith("liveness")
    assert explore(mutant.make(), mutant.left, liveness=False).violation is None


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_second_layer_alone_can_be_missing(layer: Mutant) -> None:
    assert layer.run().violation is None


def test_a_step_moved_in_the_list_is_a_step_moved_in_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explore(build(rules=Rules(compare=False)), Left(1, 0, 0, 1)).violation is None
    monkeypatch.setattr(program, "STEPS", moved(STEPS, "journal", "marker"))
    swapped = build(rules=Rules(compare=False))
    assert names(swapped).index("journal") < names(swapped).index("marker")
    violation = explore(swapped, Left(1, 0, 0, 1)).violation
    assert violation is not None
    assert violation.text.startswith("nothing slow after the journal")


def test_a_move_that_does_no_harm_is_clean() -> None:
    assert explore(build(moved(STEPS, "compare", "sequences")), Left(1, 1, 0, 1)).violation is None


def names(built: program.Program) -> list[str]:
    """The section's steps in the order in which an attempt takes them."""
    found, label = [], built.after[BEGIN]
    while label != END:
        found.append(label.split(" (")[0])
        label = built.after[label]
    return list(dict.fromkeys(found))


def test_an_attempt_takes_the_steps_of_the_section_in_their_order() -> None:
    assert names(build()) == [name for name in SECTION if ACTIONS[name]]


def test_a_name_that_only_list_or_model_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="the model does not know: lunch"):
        build((*STEPS, Step("lunch", "section", "wait an hour")))
    with pytest.raises(ValueError, match="the list does not name: fence"):
        build([step for step in STEPS if step.name != "fence"])


def test_states_that_stand_for_others_leave_nothing_out() -> None:
    """What databases, flags and writers show is the same with and without the reduction."""

    def collected(reduced: bool) -> tuple[set[object], int]:
        seen: set[object] = set()

        def collect(state: State) -> None:
            shows = (state.closed, state.rows, state.queue, state.sequence, state.epoch, state.acked)
            seen.add((shows, state.route, state.truth, state.library, state.bypass))

        result = explore(build(), Left(1, 1, 1, 1), collect, liveness=False, reduced=reduced)
        return seen, result.states

    fewer, kept = collected(True)
    every, all_of_them = collected(False)
    assert fewer == every
    assert kept < all_of_them


def test_backward_search_leaves_faults_out() -> None:
    fault = 1 << 31
    # 0 → 1 → 2 (good); 3 → 2 by a fault only
    edges, offsets = array("I", [1, 2, 2 | fault]), array("Q", [0, 1, 2, 2, 3])
    assert list(backwards([False, False, True, False], edges, offsets)) == [1, 1, 1, 0]


def test_without_an_attempt_after_the_kill_nothing_ends_well() -> None:
    """Liveness is no accident: a recovery part that waits for ever is seen."""

    def waits(state: State, attempt: Attempt, rules: Rules) -> State | None:
        return None

    stuck = build(undo={**UNDO, "shut the other side": waits})
    violation = explore(stuck, Left(0, 0, 0, 1)).violation
    assert violation is not None
    assert violation.text.startswith("liveness")


# The order inside recovery and inside a step of two parts has no list in the code: it is read from the source.


def calls(file: str, function: str) -> Iterator[str]:
    """The calls of that function in the order of the text, each with the words that tell it apart."""
    tree = ast.parse((ROOT / "cutover/switch" / file).read_text())
    found = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    )
    inside = [node for node in ast.walk(found) if isinstance(node, ast.Call)]
    for call in sorted(inside, key=lambda node: (node.lineno, node.col_offset)):
        name = ast.unparse(call.func).rsplit(".", 1)[-1]
        words = [ast.unparse(one).replace("row.", "").strip("'") for one in call.args]
        words += [f"{one.arg}={ast.unparse(one.value)}" for one in call.keywords if one.arg in ("closed",)]
        yield " ".join([name, *(word for word in words if word in ("from_side", "to_side") or word in KEPT)])


KEPT = frozenset({"undoing", "undone", "done", "fenced", "journaled", "closed=True", "closed=False"})

#: What each part of the model is in the text of `recovery.py`.
IN_THE_CODE = {
    "note that it is undone": "advance undoing",
    "open the old primary": "set_fence from_side closed=False",
    "lift the pause": "lift_pause",
    "shut the other side": "set_fence to_side closed=True",
    "end as undone": "_ended",
    "await the marker again": "await_marker_on",
    "open the new primary": "set_fence to_side closed=False",
    "flip the flags": "flip",
    "shut the old primary": "set_fence from_side closed=True",
    "end as done": "_ended",
}


@pytest.mark.parametrize(("function", "parts"), [("undo", UNDO), ("complete", COMPLETE)])
def test_recovery_of_the_model_has_the_order_of_the_code(function: str, parts: dict[str, Part]) -> None:
    wanted = [IN_THE_CODE[label] for label in parts]
    assert [call for call in calls("recovery.py", function) if call in set(IN_THE_CODE.values())] == wanted


@pytest.mark.parametrize(
    ("file", "function", "wanted"),
    [
        ("forward.py", "_announce", ["announce_pause", "await_acknowledged"]),
        (
            "forward.py",
            "_fence",
            ["effect", "lock_within_sql", "ensure closed=True", "set_epoch to_side", "advance fenced"],
        ),
        ("forward.py", "_carry_marker", ["put_marker_on", "await_marker_on"]),
        ("forward.py", "_raise_sequences", ["effect", "raise_planned"]),
        ("forward.py", "_unfence", ["hold_token", "ensure closed=False", "set_epoch to_side"]),
        ("forward.py", "_journal", ["advance journaled"]),
        ("forward.py", "clear_the_way", ["seize", "_require_stream", "_require_way_back"]),
        ("section.py", "_attempt", ["clear_the_way", "begin", "run"]),
        ("section.py", "_take_back", ["roll_back_unfence", "_recover", "reopen"]),
        ("finish.py", "finish", ["await_marker", "between_switches", "drop"]),
        ("reverse.py", "take_back", ["between_switches", "drop"]),
    ],
)
def test_a_step_of_several_parts_has_them_in_the_order_of_the_code(file: str, function: str, wanted: list[str]) -> None:
    found = [call for call in calls(file, function) if call in wanted]
    assert list(dict.fromkeys(found)) == list(dict.fromkeys(wanted))


def test_the_bounds_of_the_mutants_are_enough_of_everything_and_no_more() -> None:
    """A sleeping attempt is what the mutants of token and epoch need."""
    for name in ("no token is asked for", "a flip that does not ask for the epoch"):
        mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
        assert explore(mutant.make(), mutant.left._replace(sleeps=0), mutant.check).violation is None
