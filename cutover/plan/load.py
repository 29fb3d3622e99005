"""Reading a plan file. Every problem is found at once, with its line, its field and what would be right."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError

from cutover.errors import PlanError
from cutover.plan import rules
from cutover.plan.document import read_document
from cutover.plan.dsn import missing_dsns
from cutover.plan.models import Plan, near
from cutover.plan.rules import Path

#: What pydantic found, in words; `{}` is filled from the error's own context.
_WORDS = {
    "missing": ("the key is missing", "add it"),
    "string_type": ("this is not text", "write text, in quotes if it looks like a number"),
    "int_type": ("this is not a whole number", "write a whole number, as in 1000"),
    "int_from_float": ("this is not a whole number", "write a whole number, as in 1000"),
    "float_type": ("this is not a number", "write a number, as in 1 or 2.5"),
    "finite_number": ("this is not a finite number", "write a number, as in 1 or 2.5"),
    "bool_type": ("this is not true or false", "write true or false"),
    "list_type": ("this is not a list", "write a list, as in [one, two]"),
    "dict_type": ("this is not a mapping", "write `key: value` lines below the key, indented"),
    "model_type": ("this is not a mapping", "write `key: value` lines below the key, indented"),
    "literal_error": ("this is not one of the choices", "write one of {expected}"),
    "greater_than_equal": ("the number is too small", "write at least {ge}"),
    "less_than_equal": ("the number is too large", "write at most {le}"),
    "too_short": ("this is empty", "write at least one entry"),
    "string_unicode": ("the text holds half of a surrogate pair", "write the character itself"),
    "string_too_short": ("the text is empty", "write some text"),
    "string_too_long": ("the text is too long", "write at most {max_length} characters"),
}

#: Names of the migration strategy that mean another key here.
_STRATEGY = {
    "strategy": "write `conflict`",
    "timestampField": "write `timestamp`",
    "alertOnConflict": "write `alert_on_conflict`",
    "frequency": "write `reconcile: {every: …}`",
    "secondary": "write `database`",
    "primary": "leave it out: the monolith is the primary until the switch",
    "consistency_check": "leave it out: every table is reconciled",
}
_EXAMPLES = {
    "database": "a name, as in `database: trading_engine_db`",
    "tables": "the tables, as in `tables: {trades: {}}`",
}


@dataclass(frozen=True)
class Finding:
    """One problem of a plan file, for a person to mend."""

    file: str
    line: int
    field: str
    what: str
    right: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.what}; {self.right}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class UnreadableError(PlanError):
    """The file is not a text that can be read; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def examine(
    text: str, name: str = "plan.yaml", has_dsn: Callable[[str], bool] | None = None
) -> tuple[Plan | None, list[Finding]]:
    """The plan, if the text is one, and all problems by line. With `has_dsn`, missing DSNs are problems too.

    The plan is also given where missing DSNs are the only problems.
    """
    document = read_document(text)
    found = list(document.problems)
    plan = None
    if isinstance(document.data, dict):
        try:
            plan = Plan.model_validate(document.data, context={"file": name})
        except ValidationError as error:
            found += [(document.line(p.path), p) for p in _translated(error, document.data)]
        broken = rules.problems(document.data)
        if found or broken:
            plan = None
        if has_dsn is not None:
            broken += missing_dsns(document.data, has_dsn)
        found += [(document.line(problem.path), problem) for problem in broken]
    unique = dict.fromkeys(
        Finding(name, line, _printable(_field(p.path)), _printable(p.what), _printable(p.right)) for line, p in found
    )
    return plan, sorted(unique, key=lambda finding: finding.line)


def examine_file(
    path: FilePath | str, has_dsn: Callable[[str], bool] | None = None
) -> tuple[Plan | None, list[Finding]]:
    """`examine` for a file; a file that cannot be read is a finding as well."""
    try:
        text = read_text(path)
    except UnreadableError as error:
        return None, [error.finding]
    return examine(text, str(path), has_dsn)


def load_text(text: str, name: str = "plan.yaml") -> Plan:
    """The plan in a YAML text. Raises PlanError whose text lists every problem as `FILE:LINE: field: what; right`."""
    plan, findings = examine(text, name)
    if plan is None or findings:
        raise PlanError("\n".join(map(str, findings)))
    return plan


def read_text(path: FilePath | str) -> str:
    """The text of a plan file. Raises UnreadableError where it is missing, unreadable, or not UTF-8 text."""
    try:
        content = FilePath(path).read_bytes()
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file", "write the path of a plan file") from None
    except IsADirectoryError:
        raise _unreadable(path, "this is a folder", "write the path of a plan file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise _unreadable(path, f"the file cannot be read: {reason}", "check its path and permissions") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, "the file is not UTF-8 text", "save it as UTF-8", line) from None
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise _unreadable(path, "the file is binary, not text", "write the path of a plan file", line)
    return text


def load(path: FilePath | str) -> Plan:
    """The plan in a file. Raises PlanError as `read_text` and `load_text` do."""
    return load_text(read_text(path), str(path))


def _unreadable(path: FilePath | str, what: str, right: str, line: int = 1) -> UnreadableError:
    return UnreadableError(Finding(_printable(str(path)), line, "file", what, right))


def _translated(error: ValidationError, data: object) -> list[rules.Problem]:
    problems = []
    for entry in error.errors(include_url=False, include_input=False):
        path: Path = tuple(part for part in entry["loc"] if part != "[key]")
        context = entry.get("ctx", {})
        if entry["type"] == "extra_forbidden":
            problems.append(_unknown_key(path, data))
            continue
        if entry["type"] == "plan":
            what, right = context["what"], context["right"]
        else:
            what, right = _WORDS.get(entry["type"], (entry["msg"], "see docs/plan.md"))
            right = right.format(**context)
        if entry["type"] == "missing":
            right = f"add {_EXAMPLES.get(str(path[-1]), f'`{path[-1]}: …`')}"
        problems.append(rules.Problem(path, what, right))
    return problems


def _unknown_key(path: Path, data: object) -> rules.Problem:
    key = str(path[-1])
    if len(path) == 2 and path[0] == "dual_write" and isinstance(_at(data, path), Mapping):
        right = f"list the tables of {key} under `services: {{{key}: …}}` (docs/plan.md maps the strategy's blocks)"
    elif key in _STRATEGY:
        right = _STRATEGY[key]
    else:
        known = list(_model_at(path[:-1]).model_fields)
        right = near(key, known)
    return rules.Problem(path, "unknown key", right)


def _at(data: object, path: Path) -> object:
    for part in path:
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _model_at(path: Path) -> type[BaseModel]:
    """The model whose keys stand at a path of the plan."""
    model: Any = Plan
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        else:  # dict[name, Model]
            model = model.__args__[1]
    found: type[BaseModel] = model
    return found


def _field(path: Path) -> str:
    """`services.x.tables.trades`, `switchover.order[2]`; a part with other characters stands in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            short = part if len(part) <= 80 else part[:79] + "…"
            plain = re.fullmatch(r"[\w-]+", short)
            text += ("." if text else "") + (short if plain else repr(short))
    return text or "plan"


def _printable(text: str) -> str:
    """`text` on one line, without control characters, and without what looks like a DSN or a password."""
    text = re.sub(r"[\w+]+://[^\s'\"]*|\bpassword\s*=\s*('[^']*'|[^\s'\"]+)", "…", text, flags=re.IGNORECASE)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
