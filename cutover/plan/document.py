"""A YAML text as plain data, with the line of each of its parts. No tags, no objects, no surprises.

YAML 1.2 core types. Anchors, aliases and merge keys (`<<`) are fine; duplicate keys, other tags, keys
that are not text and aliases that expand without bound are problems, each with its line.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from cutover.plan.fields import shown
from cutover.plan.rules import Path, Problem

CORE = "tag:yaml.org,2002:"
_TAGS = {CORE + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")}
MAX_CHARACTERS = 1_000_000
#: Values after aliases are expanded; a plan of a thousand tables has some ten thousand.
MAX_VALUES = 200_000
YAML_PATH: Path = ("YAML",)
_RIGHT_TEXT = "write a YAML file; docs/plan.md and examples/ai_trader/plan.yaml show how"


@dataclass
class Document:
    """What a text holds: `data` (None where it is not YAML), lines (from 1) by path, and problems with lines."""

    data: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    _values: int = 0

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest part around it that is in the text."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def report(self, node: Node | int, path: Path, what: str, right: str) -> None:
        line = node if isinstance(node, int) else node.start_mark.line + 1
        self.problems.append((line, Problem(path, what, right)))

    def convert(self, node: Node, path: Path) -> object:
        """The node as str, int, float, bool, None, list or dict."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise _TooLargeError
        self.lines.setdefault(path, node.start_mark.line + 1)
        if str(node.tag) not in _TAGS:
            self.report(node, path, f"the tag {shown(str(node.tag))} is not allowed", "write the value without a tag")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path) if isinstance(node, ScalarNode) else None

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, object]:
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key, value in node.value:
            if str(key.tag) == CORE + "merge":
                for name, item in self._merge(value, path).items():
                    merged.setdefault(name, item)
            elif not isinstance(key, ScalarNode) or str(key.tag) != CORE + "str":
                text = f"{key.value!r}" if isinstance(key, ScalarNode) else "a list or mapping"
                self.report(key, path, f"the key {text} is not text", "write a key that is text, in quotes if need be")
            elif key.value in own:
                first = self.lines[(*path, key.value)]
                self.report(
                    key, (*path, key.value), f"the key is there twice, first on line {first}", "keep one of them"
                )
            else:
                self.lines[(*path, key.value)] = key.start_mark.line + 1
                own[key.value] = self.convert(value, (*path, key.value))
        return {**merged, **own}

    def _merge(self, node: Node, path: Path) -> dict[str, object]:
        """The keys that `<<: *anchor` or `<<: [*one, *two]` brings; the first one to bring a key wins."""
        keys: dict[str, object] = {}
        for part in node.value if isinstance(node, SequenceNode) else [node]:
            if isinstance(part, MappingNode):
                self._values += 1
                if self._values > MAX_VALUES:
                    raise _TooLargeError
                for name, value in self._mapping(part, path).items():
                    keys.setdefault(name, value)
            else:
                self.report(part, path, "`<<` can merge mappings only", "write `<<: *anchor` of a mapping")
        return keys

    def _scalar(self, node: ScalarNode, path: Path) -> object:
        kind, text = str(node.tag).removeprefix(CORE), node.value
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text.replace("_", ""), 10 if text.lstrip("+-").isdigit() else 0)
            if kind == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            self.report(node, path, f"{shown(text)} cannot be read as {kind}", "write true or false, or a plain number")
            return None
        return text


class _TooLargeError(Exception):
    """Aliases expand to more values than a plan can have."""


def read_document(text: str) -> Document:
    """The data and lines of a YAML text; whatever is wrong with it is in `problems`, never raised."""
    document = Document()
    if len(text) > MAX_CHARACTERS:
        document.report(1, YAML_PATH, f"the text has more than {MAX_CHARACTERS} characters", _RIGHT_TEXT)
        return document
    try:
        node = _compose(text)
        if node is None:
            document.report(1, YAML_PATH, "the file is empty", _RIGHT_TEXT)
        elif not isinstance(node, MappingNode):
            found = "a list" if isinstance(node, SequenceNode) else "a single value"
            document.report(node, YAML_PATH, f"the file holds {found} where a mapping has to be", _RIGHT_TEXT)
        else:
            document.data = document.convert(node, ())
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.report(line, YAML_PATH, f"the file holds a control character (number {error.character})", _RIGHT_TEXT)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context or "").split())
        document.report(
            mark.line + 1 if mark else 1, YAML_PATH, f"this is not YAML: {what}", "mend this line or the one before it"
        )
    except RecursionError:
        document.report(1, YAML_PATH, "the values are nested too deeply, or contain themselves", _RIGHT_TEXT)
    except _TooLargeError:
        document.report(1, YAML_PATH, f"aliases expand to more than {MAX_VALUES} values", _RIGHT_TEXT)
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        # The parser itself stumbles over some malformed texts (found by fuzzing); the text is at fault all the same.
        document.report(1, YAML_PATH, f"this is not YAML ({type(error).__name__})", _RIGHT_TEXT)
    if any(problem.path == YAML_PATH for _, problem in document.problems):
        document.data = None
    return document


def _compose(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return YAML(typ="safe", pure=True).compose(text)
