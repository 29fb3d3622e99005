"""docs/plan.md names every key and every item that exists."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cutover.plan.checklist import ITEMS
from cutover.plan.durations import format_duration
from cutover.plan.load import load_text
from cutover.plan.models import Plan

DOCS = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        annotation: Any = field.annotation
        for inner in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _keys(inner)


def test_every_key_is_documented() -> None:
    named = set(re.findall(r"[`.](\w+)(?=[`.])", DOCS))
    assert [key for key in _keys(Plan) if key not in named] == []


def test_every_item_of_the_strategys_lists_is_documented_as_it_is() -> None:
    for item in ITEMS:
        who = "the programme" if item.kind == "automatic" else "people"
        row = f"| {item.text} | `{item.key}` | {item.phase} | {who} | {item.owner}, {format_duration(item.duration)} |"
        assert row in DOCS


def test_the_smallest_plan_of_the_page_is_a_plan() -> None:
    text = DOCS.split("```yaml\n", 1)[1].split("```", 1)[0]
    assert load_text(text).migration == "shop"
