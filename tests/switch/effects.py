"""Effects of a protocol on a database, found in the source, and whether each stands between two fault points.

A call of an effect is *bare* where it stands in no `async with faults.step(…)`, and neither do all calls of the
function that it stands in: that function is then an effect too, as far up as there are callers.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


def _of(package: str, **modules: str) -> set[str]:
    return {f"{package}.{module}.{name}" for module, names in modules.items() for name in names.split()}


#: Functions with an effect, by their full names.
FUNCTIONS = frozenset(
    _of(
        "cutover.postgres",
        applier="drop_origins",
        changes="ensure_slot advance",
        epoch="install remove raise_token end_older_sessions set_epoch put_marker",
        export="export load",
        fence="install make_always ensure remove",
        foreign_keys="drop restore",
        giving_way="install remove",
        loose_keys="install_loose_key remove_loose_key process_loose_keys",
        outbox_capture="install remove raise_above",
        outbox_copy="copy_next sweep_next",
        outbox_gap="give_way",
        outbox_lease="start stop give_up_nothing close_gap",
        outbox_quarantine="hold retry skip",
        outbox_schema="install carry_over remove_source remove_versions remove_sink",
        outbox_sink="apply apply_open sweep prune hold",
        outbox_source="forget put_marker",
        own_schema="drop_if_unused",
        repair="delete_rows insert_rows update_rows",
        replication="ensure_publication drop_publication create_slot drop_slot move_slot_to_now create_subscription "
        "disable leave_slot drop_subscription end_worker set_enabled",
        retire="retire drop_retired",
        sequences="raise_planned raise_sequences",
        two_phase="prepare end decide decide_own",
    )
    | _of("cutover.control", crossing="set_detached", rebuilds="begin end", switches="raise_token begin advance")
    | _of("cutover.flags", store="set_read_from_new set_percentage announce_pause lift_pause flip drop")
)
#: Statements that are effects where they are executed.
STATEMENTS = frozenset(_of("cutover.postgres", fence="create_sql close_sql open_sql"))
#: Methods with an effect, of objects that are called so; and the modules that define them.
METHODS = frozenset((
    "prepare", "start", "stop", "drop", "put_marker", "put_marker_on", "give_up_nothing", "close_gap", "arm",
    "disable_on", "enable_on", "move_to_now_on", "drop_slot_on", "create_slot_on", "forget_proof_on", "adopt",
    "retry", "skip", "apply", "end", "drop_slot",
))  # fmt: skip
_OBJECTS = re.compile(r"(stream|changed|turns|branch)\b|(^|\.)(old|new)$")
_HOMES = ("cutover.streams.", "cutover.reconcile.changed", "cutover.dualwrite.branch")


@dataclass(frozen=True)
class Bare:
    """A call outside of every step: the function it stands in, and what it calls (its last name)."""

    module: str
    function: str
    called: str


@dataclass(frozen=True)
class _Use:
    """A function is called or handed on. `called`: its full name, or the expression that is called."""

    module: str
    function: str
    called: str
    inside: bool
    executed: bool
    #: Not handed on.
    is_call: bool

    @property
    def bare(self) -> Bare:
        return Bare(self.module, self.function, self.called.rpartition(".")[2])


def _words(node: ast.expr) -> str:
    """The expression; of a method that is none of METHODS, on what is no name, its own name alone."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name() | ast.Attribute() as object_, attr=name):
            return f"{_words(object_)}.{name}"
        case ast.Attribute(value=object_, attr=name):
            return f"{ast.unparse(object_) if name in METHODS else '?'}.{name}"
    return ast.unparse(node)


class Source:
    """The modules of some source, by their full names."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._trees = {name: ast.parse(text) for name, text in texts.items()}
        self._functions = {
            name: {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            for name, tree in self._trees.items()
        }
        self._named = Counter(
            node.name
            for tree in self._trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )

    @classmethod
    def under(cls, root: Path, *rooms: str) -> "Source":
        paths = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
        return cls({".".join(path.relative_to(root).with_suffix("").parts): path.read_text() for path in paths})

    def bare(self, exempt: frozenset[Bare] = frozenset()) -> set[Bare]:
        """Bare calls in functions that nobody calls, or whose callers cannot be told."""
        return {use.bare for use in self._sites(exempt) if not self._known & self._keys(use)}

    def bare_sites(self) -> set[Bare]:
        """All bare calls, of functions too that are an effect by what they call."""
        return {use.bare for use in self._sites(frozenset())}

    def _sites(self, exempt: frozenset[Bare]) -> set[_Use]:
        grown: set[str] = set()
        found: set[_Use] = set()
        while new := {use for use in self._outside if self._has_effect(use, grown)} - found:
            found |= {use for use in new if use.bare not in exempt}
            if not (keys := {key for use in found for key in self._keys(use)}) - grown:
                break
            grown |= keys
        return found

    @cached_property
    def _outside(self) -> list[_Use]:
        """Uses that stand in no step, and not in an effect's own definition."""
        return [use for use in self._uses if not use.inside and not self._is_effect(use)]

    @cached_property
    def _known(self) -> set[str]:
        """Names by which some function is used."""
        return {use.called for use in self._uses} | {f"?.{use.bare.called}" for use in self._uses if use.is_call}

    @cached_property
    def _uses(self) -> list[_Use]:
        return [use for name in self._trees for use in self._uses_in(name)]

    def _keys(self, use: _Use) -> set[str]:
        """The names by which the function is called that a use stands in."""
        if not use.function:
            return set()
        if use.function in self._functions[use.module]:
            return {f"{use.module}.{use.function}"}
        return {f"{use.module}.self.{use.function}"} | (
            {f"?.{use.function}"} if self._named[use.function] == 1 else set()
        )

    def _has_effect(self, use: _Use, grown: set[str]) -> bool:
        if use.called in FUNCTIONS or use.called in grown or (use.executed and use.called in STATEMENTS):
            return True
        object_, _, name = use.called.rpartition(".")
        if not object_ or not use.is_call:
            return False
        if use.called.startswith(("cutover.", "activities.")):
            return name in METHODS and object_.endswith(".self") and object_.startswith(_HOMES)
        return f"?.{name}" in grown or (name in METHODS and _OBJECTS.search(object_) is not None)

    @staticmethod
    def _is_effect(use: _Use) -> bool:
        """Whether it stands in an effect's own definition, whose calls are looked for by themselves."""
        if f"{use.module}.{use.function}" in FUNCTIONS:
            return True
        return use.module.startswith(_HOMES) and use.function in METHODS

    def _uses_in(self, module: str) -> Iterator[_Use]:
        imported = self._imported(module)
        callees: set[ast.expr] = set()

        def walk(node: ast.AST, function: str, inside: bool, executed: bool) -> Iterator[_Use]:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    function = function or name
                case ast.AsyncWith(items=items):
                    steps = ("faults.step(" in ast.unparse(item.context_expr) for item in items)
                    inside = inside or any(steps)
                case ast.Call(func=function_called):
                    callees.add(function_called)
                    executed = executed or getattr(function_called, "attr", "") == "execute"
                case ast.Attribute(ctx=ast.Load()) | ast.Name(ctx=ast.Load()):
                    called = _words(node)
                    head, dot, rest = called.partition(".")
                    called = f"{module}.{called}" if head == "self" and "." not in rest else called
                    called = f"{imported[head]}{dot}{rest}" if head in imported else called
                    yield _Use(module, function, called, inside, executed, node in callees)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, function, inside, executed)

        yield from walk(self._trees[module], "", False, False)

    def _imported(self, module: str) -> dict[str, str]:
        """Full names of the names that a module imports, or defines as a function."""
        found = {name: f"{module}.{name}" for name in self._functions[module]}
        for node in ast.walk(self._trees[module]):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        return found
