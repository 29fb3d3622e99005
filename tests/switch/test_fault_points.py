"""Each effect of a protocol has a fault point before it and one after it, and each point that is listed exists."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cutover import faults
from cutover.cli.main import app
from cutover.errors import Exit
from cutover.switch.steps import SECTION

ROOT = Path(faults.__file__).parents[1]
ROOMS = [path for room in ("cutover", "activities") for path in sorted((ROOT / room).rglob("*.py"))]

#: What has an effect on a database, by the module that performs a protocol's steps. Each call stands in a step.
EFFECTS = {
    "cutover/switch/section.py": {"begin"},
    "cutover/switch/forward.py": {"perform", "advance"},
    "cutover/switch/attempt.py": {"raise_token", "end_older_sessions"},
    "cutover/switch/recovery.py": {"advance", "set_fence", "flip", "lift_pause", "await_marker_on"},
    "cutover/switch/turn.py": {"disable_on", "enable_on", "move_to_now_on", "put_marker_on", "forget_proof_on"},
    "cutover/switch/reverse.py": {"drop", "prepare", "arm", "start", "give_up_nothing", "put_marker"},
    "cutover/switch/finish.py": {"drop", "put_marker"},
    "cutover/switch/rebuild.py": {"begin", "drop", "prepare", "start", "_mend"},
    "cutover/switch/mending.py": {"lift_pause", "set_fence"},
    "cutover/switch/crossing.py": {"restore"},
    "cutover/streams/outbox/backfill.py": {"copy_next", "sweep_next"},
    "cutover/streams/outbox/relay.py": {"carry", "forget", "hold", "prune"},
    "cutover/streams/outbox/janitor.py": {"decide", "end"},
    "cutover/dualwrite/strong.py": {"read_changes", "apply", "prepare"},
    "cutover/reconcile/mending.py": {"write"},
    "cutover/archive/service.py": {"export_table", "restore_test", "retire", "drop_retired"},
    "activities/cleanup.py": {"drop_origins", "remove", "drop_if_unused"},
}
#: Calls that are no effects of a protocol, and the reason.
EXEMPT = {
    ("cutover/switch/forward.py", "_fence", "advance"): "inside the step `fence`, whose point after it is",
    ("cutover/switch/forward.py", "_journal", "advance"): "it is the step `journal`",
    ("activities/cleanup.py", "drop_machinery", "drop_origins"): "between the steps of the streams and of what is ours",
}


def steps_in(path: Path) -> list[str]:
    """The names of the steps in a module; of an f-string its literal beginning with a `*`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.step":
            match node.args[0]:
                case ast.Constant(value=str(name)):
                    found.append(name)
                case ast.JoinedStr(values=[ast.Constant(value=str(beginning)), *_]):
                    found.append(f"{beginning}*")
                case other:
                    raise AssertionError(f"{path}: a step is named by a literal, not by {ast.unparse(other)}")
    return found


def bare_effects(path: Path, names: set[str]) -> Iterator[tuple[str, str]]:
    """Calls of these functions outside of every step: (function that calls, function called)."""

    def walk(node: ast.AST, function: str, inside: bool) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.AsyncWith):
            inside = inside or any("faults.step(" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func).rpartition(".")[2]
            if called in names and not inside:
                yield function, called
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, inside)

    yield from walk(ast.parse(path.read_text()), "", False)


def test_every_step_that_is_listed_is_in_the_code_and_the_other_way_round() -> None:
    found = {name for path in ROOMS for name in steps_in(path)}
    assert "switch.*" in found, "the section's steps are performed in one place"
    found = (found - {"switch.*"}) | {f"switch.{name}" for name in SECTION}
    assert found == set(faults.STEPS)


@pytest.mark.parametrize("module", EFFECTS)
def test_every_effect_stands_between_two_points(module: str) -> None:
    bare = {(module, *found) for found in bare_effects(ROOT / module, EFFECTS[module])}
    assert bare - set(EXEMPT) == set()


def test_an_effect_outside_of_a_step_is_found(tmp_path: Path) -> None:
    path = tmp_path / "protocol.py"
    path.write_text("async def f():\n    async with faults.step('a.b'):\n        await x.flip()\n    await x.flip()\n")
    assert list(bare_effects(path, {"flip"})) == [("f", "flip")]
    assert steps_in(path) == ["a.b"]


async def test_points_are_passed_in_their_order_and_not_after_an_error() -> None:
    passed: list[str] = []

    async def note(point: str) -> None:
        passed.append(point)

    async with faults.step("switch.flip"):
        pass
    with faults.armed(note):
        async with faults.step("switch.flip"):
            passed.append("done")
        with pytest.raises(ZeroDivisionError):
            async with faults.step("switch.commit"):
                raise ZeroDivisionError
    async with faults.step("switch.flip"):
        pass
    assert passed == ["switch.flip.before", "done", "switch.flip.after", "switch.commit.before"]


def test_the_doctor_lists_them() -> None:
    result = CliRunner().invoke(app, ["doctor", "--fault-points", "--json"])
    assert [one["point"] for one in json.loads(result.stdout)] == faults.points()
    assert CliRunner().invoke(app, ["doctor"]).exit_code == Exit.WRONG_INPUT
