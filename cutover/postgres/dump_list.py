"""Which entries of a `pg_dump` archive one service needs, worked out from the archive's own dependencies.

`pg_restore --list --verbose` gives, for each entry, its dump id, the catalog object it stands for (class and
object id) and the dump ids it depends on. Names never have to be parsed, so that any identifier is safe.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cutover.errors import Conflict

PG_CLASS, PG_CONSTRAINT, PG_REWRITE, PG_TRIGGER = 1259, 2606, 2618, 2620

#: Kinds that belong to a table: taken along when all tables they depend on are.
_OF_A_TABLE = (
    "CHECK CONSTRAINT", "FK CONSTRAINT", "CONSTRAINT", "DEFAULT", "INDEX ATTACH", "INDEX", "TABLE ATTACH", "STATISTICS",
    "RULE", "TRIGGER", "ROW SECURITY", "POLICY", "SEQUENCE OWNED BY", "SEQUENCE", "COMMENT",
)  # fmt: skip
#: Kinds that hold rows or show them: a service's entry must not need one that stays behind.
_RELATIONS = ("TABLE", "FOREIGN TABLE", "MATERIALIZED VIEW", "VIEW")
#: The longer kind first, as one may begin with another.
_OTHERS = (
    "SCHEMA", "EXTENSION", "TYPE", "DOMAIN", "SHELL TYPE", "FUNCTION", "PROCEDURE", "AGGREGATE", "COLLATION",
    "OPERATOR CLASS", "OPERATOR FAMILY", "OPERATOR", "CAST",
)  # fmt: skip
_KINDS = sorted((*_OF_A_TABLE, *_RELATIONS, *_OTHERS), key=len, reverse=True)

_LINE = re.compile(r"^(\d+); (\d+) (\d+) (.*)$")
_DEPENDS = re.compile(r"^;\tdepends on:((?: \d+)+)")


@dataclass
class Entry:
    """One line of the archive's list."""

    id: int
    object: tuple[int, int]
    kind: str
    text: str
    line: str
    depends: set[int] = field(default_factory=set)


@dataclass
class Selection:
    """What to restore, in the archive's order; what was left out, in words."""

    entries: list[Entry]
    left_out: list[str]


def parse(listing: str) -> dict[int, Entry]:
    """The entries of `pg_restore --list --verbose`, by dump id, in order."""
    entries: dict[int, Entry] = {}
    last: Entry | None = None
    for line in listing.splitlines():
        if match := _LINE.match(line):
            text = match[4]
            kind = next((k for k in _KINDS if text.startswith(k + " ")), text.partition(" ")[0])
            last = Entry(int(match[1]), (int(match[2]), int(match[3])), kind, text, line)
            entries[last.id] = last
        elif last and (match := _DEPENDS.match(line)):
            last.depends |= {int(number) for number in match[1].split()}
    return entries


class Selector:
    """Picks entries by following dependencies from the wanted tables."""

    def __init__(self, entries: dict[int, Entry], tables: Iterable[int], excluded: Iterable[tuple[int, int]]) -> None:
        """`tables`: oids of the wanted tables with descendants; `excluded`: objects that are ours."""
        self._entries = entries
        self._excluded = set(excluded)
        wanted = {(PG_CLASS, oid) for oid in tables}
        self._tables = {e.id for e in entries.values() if e.kind == "TABLE" and e.object in wanted}
        self._chosen: set[int] = set()
        self.left_out: list[str] = []

    def _relations(self, entry: Entry) -> set[int]:
        return {i for i in entry.depends if i in self._entries and self._entries[i].kind in _RELATIONS}

    def _need(self, start: int) -> set[int]:
        """The entry with all it depends on. Raises Conflict where that is a table or view that stays behind."""
        found, todo = set[int](), [start]
        while todo:
            entry = self._entries[todo.pop()]
            found.add(entry.id)
            for i in entry.depends - found - self._chosen:
                if i not in self._entries:
                    continue
                if self._entries[i].kind in _RELATIONS and i not in self._tables:
                    if entry.kind == "SEQUENCE":
                        continue  # drawn from by a wanted default, owned by a table elsewhere: comes without its owner
                    raise Conflict(
                        f"{entry.text} needs {self._entries[i].text}, which does not belong to the service: "
                        "add it to the service's tables, or take the dependency away"
                    )
                todo.append(i)
        return found

    def select(self, calls: Callable[[set[int]], set[int]]) -> Selection:
        """The whole selection; `calls` tells, for chosen entries, further ones that their function bodies name."""
        for i in self._tables:
            self._chosen |= self._need(i)
        for entry in self._entries.values():  # archive order: owners come before what belongs to them
            self._take_along(entry)
        while named := calls(self._chosen) - self._chosen:
            before = set(self._chosen)
            for i in named:
                try:
                    self._chosen |= self._need(i)
                except Conflict as e:
                    self.left_out.append(f"named in a function body, but not taken along: {e}")
            if before == self._chosen:
                break
        for entry in self._entries.values():
            if entry.kind == "COMMENT":
                self._take_along(entry)
            elif entry.kind in ("VIEW", "MATERIALIZED VIEW") and self._relations(entry) & self._tables:
                self.left_out.append(f"{entry.text} stays behind; it reads a table that leaves")
        return Selection([e for e in self._entries.values() if e.id in self._chosen], self.left_out)

    def _take_along(self, entry: Entry) -> None:
        if entry.kind not in _OF_A_TABLE or entry.id in self._chosen or entry.object in self._excluded:
            return
        owners = {i for i in entry.depends if i in self._entries}
        relations = self._relations(entry)
        if entry.kind in ("COMMENT", "SEQUENCE OWNED BY"):
            about_extension = any(self._entries[i].kind == "EXTENSION" for i in owners)  # needs its owner's rights
            foreign = any(self._relations(self._entries[i]) - self._tables for i in owners)
            if owners and owners <= self._chosen and not about_extension and not foreign:
                self._chosen.add(entry.id)
            return
        if not relations & self._tables:
            return
        if relations <= self._tables:
            self._chosen |= self._need(entry.id)
        elif entry.kind != "FK CONSTRAINT":  # keys that cross services are recorded by the caller
            self.left_out.append(f"{entry.text} also needs a table that does not belong to the service")
