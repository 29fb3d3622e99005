"""Every point in the workflows' code at which a run can wait, read from the code itself.

A point is `module.function: kind`: a wait, a sleep, a park, a gate by its name, tasks of people by their
phase, a continue-as-new by its resume point. `states.py` names for each the recorded states that stand there.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

WORKFLOWS = Path(__file__).parents[2] / "workflows"
_OF_A_RUN = ("wait", "sleep", "park", "hand_on")


def waiting_points(folder: Path = WORKFLOWS) -> set[str]:
    """All of them; the second of one kind in a function ends in ` 2`."""
    found: set[str] = set()
    for path in sorted(folder.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                seen: Counter[str] = Counter()
                for kind in _kinds(function):
                    seen[kind] += 1
                    number = f" {seen[kind]}" if seen[kind] > 1 else ""
                    found.add(f"{path.stem}.{function.name}: {kind}{number}")
    return found


def _kinds(function: ast.AST) -> Iterator[str]:
    for call in ast.walk(function):
        if not isinstance(call, ast.Call):
            continue
        match call.func:
            case ast.Attribute(value=ast.Name(id="self" | "run"), attr=attr) if attr in _OF_A_RUN:
                resume = next((_text(one.value) for one in call.keywords if one.arg == "resume"), "")
                yield f"{attr} {resume}".strip()
            case ast.Attribute(value=ast.Name(id="workflow"), attr="wait_condition" | "sleep" | "wait" as attr):
                yield f"workflow.{attr}"
            case ast.Attribute(value=ast.Name(id="asyncio"), attr="sleep" | "wait" | "wait_for" as attr):
                yield f"asyncio.{attr}"
            case ast.Name(id="Gate") if call.args and (name := _text(call.args[0])):
                yield f"gate {name}"
            case ast.Name(id="open_tasks") if len(call.args) > 1:
                yield f"tasks of {_text(call.args[1])}"
            case _:
                continue


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
