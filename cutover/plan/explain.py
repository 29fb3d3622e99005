"""A plan as YAML with every default filled in, and what differs between two plans."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from cutover.plan.models import Plan

_NOTHING: Any = object()


def explain(plan: Plan) -> str:
    """The text of the filled-in plan; read back, it has the same hash, which a comment on top names."""
    yaml = YAML(typ="rt", pure=True)  # keeps the order of the services
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 4096  # long texts stay on one line
    yaml.indent(mapping=2, sequence=4, offset=2)
    out: Any = StringIO()
    yaml.dump(plan.model_dump(mode="json"), out)
    return f"# plan {plan.migration}, hash {plan.hash}\n{out.getvalue()}"


@dataclass(frozen=True)
class Change:
    """One value that differs: its path in the plan, and both values as text (None: not there)."""

    path: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {self.after}"
        if self.after is None:
            return f"- {self.path}: {self.before}"
        return f"~ {self.path}: {self.before} → {self.after}"


def changes(before: Plan, after: Plan) -> list[Change]:
    """The values in which two plans differ, in the order of the plan; empty where their hashes are the same."""
    return list(_differences("", before.model_dump(mode="json"), after.model_dump(mode="json")))


def _differences(path: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            below = f"{path}.{key}" if path else str(key)
            yield from _differences(below, before.get(key, _NOTHING), after.get(key, _NOTHING))
    elif before is _NOTHING or after is _NOTHING or before != after:
        yield Change(path, _text(before), _text(after))


def _text(value: Any) -> str | None:
    """A value on one line; a whole mapping (a service, a table) by its keys."""
    if value is _NOTHING:
        return None
    if isinstance(value, dict):
        return "{" + ", ".join(map(str, value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)
