"""What one row of `items` may be, as far as the history has been read.

The versions of a row are its history's order: each write of it has the next one, whoever makes it. `floor` is the
newest version that is known to be there for good, because its writer was told so or a read of the primary gave it
(where reads go to the other side too, one of them may be ahead of what has been acknowledged, and the next one not).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from chaos.oplog import Write
from chaos.tables import Item, value_of


class State(NamedTuple):
    """One version of a row: whether the row was there, and which operation made it so."""

    version: int = 0
    present: bool = False
    origin: str | None = None
    #: Of a pending increment: it was done, and its answer with the version was lost.
    answered: bool = False


class Wrong(NamedTuple):
    """The name of a violation, and what it is about."""

    name: str
    detail: str


LOST = "acknowledged write lost"
BACK = "deleted row back"
STALE = "stale read"
ORDER = "versions not monotone"
UNEXPLAINED = "unexplained row"


@dataclass(slots=True)
class Register:
    """The state of one row. `pending`: writes under way or of unknown outcome, by their operation."""

    floor: State = field(default_factory=State)
    #: The newest version at which the row may have been absent.
    absent: int = 0
    pending: dict[str, State] = field(default_factory=dict)
    #: Of a row that several clients increment: its version before, the increments acknowledged, those without their
    #: version (an answer that was lost) counted in; and which versions were given out, one byte each.
    base: int = 0
    increments: int = 0
    given: bytearray = field(default_factory=bytearray)
    #: Reads are answered by the other side too: what has not been acknowledged need not be there when it is here.
    mirrored: bool = False

    @classmethod
    def of(cls, row: Item | None, *, mirrored: bool = False) -> "Register":
        """The register of a row that was like this before the history began."""
        if row is None:
            return cls(mirrored=mirrored)
        return cls(State(row.version, True, row.origin), base=row.version, mirrored=mirrored)

    def invoked(self, op: str, write: Write) -> State:
        """A write is sent; gives the floor below which its version must not be."""
        self.pending[op] = State(write.version or 0, write.present, op)
        return self.floor

    def refused(self, op: str) -> None:
        """It was certainly not done."""
        self.pending.pop(op, None)

    def acknowledged(self, op: str, write: Write, version: int | None, floor: State) -> Wrong | None:
        """It was done, at that version; `floor` as it was when the write was sent."""
        state = self.pending.pop(op, State(0, write.present, op))
        wrong = None
        if write.kind == "increment":
            self.increments += 1
            if version is None:
                self.pending[op] = state._replace(answered=True)
                return None
            wrong = self._given_out(version)
        elif version is not None and version != write.version:
            wrong = Wrong(ORDER, f"version {version} came back for a write of version {write.version}")
        known = write.version or version or 0
        if wrong is None and known <= floor.version:
            wrong = Wrong(ORDER, f"version {known} was given after version {floor.version} was there")
        self._settle(State(known, write.present, op))
        return wrong

    def _given_out(self, version: int) -> Wrong | None:
        place = version - self.base - 1
        if place < 0:
            return None  # older than all of the history: said by the order of the versions
        self.given.extend(bytes(max(0, place + 1 - len(self.given))))
        twice = self.given[place]
        self.given[place] = 1
        return Wrong("lost update", f"version {version} was given to two increments") if twice else None

    def _settle(self, state: State) -> None:
        if state.version <= self.floor.version:
            return
        self.floor = state
        if not state.present:
            self.absent = state.version
        for op, pending in list(self.pending.items()):
            # an increment's version is not known (0): any of them may still be it
            if 0 < pending.version <= state.version:
                del self.pending[op]
                if not pending.present:
                    self.absent = max(self.absent, pending.version)

    # reads -------------------------------------------------------------------------------------

    def read(self, seen: State, begun: State, *, stale_ok: bool) -> Wrong | None:
        """A read gave this state; `begun` is the floor as it was when the read began."""
        wrong = self._read_present(seen, begun) if seen.present else self._read_absent(begun)
        if stale_ok:
            # it may be behind, but what it gives must have been written
            return wrong if wrong is not None and wrong.name == UNEXPLAINED else None
        if wrong is None:
            self._observed(seen)
        return wrong

    def _read_present(self, seen: State, begun: State) -> Wrong | None:
        if seen.version < begun.version:
            what = "was there" if begun.present else "was deleted"
            return Wrong(STALE, f"version {seen.version} was read after version {begun.version} {what}")
        if seen.version == begun.version and not begun.present:
            return Wrong(UNEXPLAINED, f"version {seen.version} was read, which is that of a delete")
        if seen.version > self.floor.version and not self._may_become(seen):
            return Wrong(UNEXPLAINED, f"version {seen.version} was read, which nobody has written")
        return None

    def _read_absent(self, begun: State) -> Wrong | None:
        deleted = self.absent > begun.version or any(not state.present for state in self.pending.values())
        if begun.present and not deleted:
            return Wrong(STALE, f"the row was read as absent after version {begun.version} was there")
        return None

    def _observed(self, seen: State) -> None:
        """What a read of the primary gave is committed there: no later one may give less."""
        if self.mirrored:
            return
        if seen.present:
            self._settle(seen)
            return
        for state in list(self.pending.values()):
            if not state.present and self.floor.present and state.version > self.floor.version:
                self._settle(state)

    def _may_become(self, seen: State) -> bool:
        """Whether a write under way, or of unknown outcome, explains a state newer than the floor."""
        state = self.pending.get(seen.origin or "")
        return state is not None and state.present and state.version in (0, seen.version)

    # the end -----------------------------------------------------------------------------------

    def final(self, key: int, row: Item | None) -> Wrong | None:
        """The row as it is in the end."""
        if row is None:
            maybe = not self.floor.present or any(not state.present for state in self.pending.values())
            return None if maybe else Wrong(LOST, f"the row is absent, version {self.floor.version} is not")
        if row.value != value_of(row.origin or "", key):
            return Wrong("row of two writes", f"version {row.version} holds a value of another operation")
        seen = State(row.version, True, row.origin)
        if self.increments:
            return self._final_count(seen)
        if seen == self.floor or (row.version > self.floor.version and self._may_become(seen)):
            return None
        if not self.floor.present and row.version < self.floor.version:
            return Wrong(BACK, f"version {row.version} is there, deleted as version {self.floor.version}")
        if self.floor.present and row.version <= self.floor.version:
            by = "" if row.version < self.floor.version else " of another operation"
            return Wrong(LOST, f"version {row.version}{by} is there, acknowledged was {self.floor.version}")
        return Wrong(UNEXPLAINED, f"version {row.version} by {row.origin} is there, which was refused or never sent")

    def _final_count(self, seen: State) -> Wrong | None:
        answers_lost = sum(state.answered for state in self.pending.values())
        least = max(self.base + self.increments, self.floor.version)
        most = self.base + self.increments + len(self.pending) - answers_lost
        if seen.version < least or (seen.version == self.floor.version and seen.origin != self.floor.origin):
            return Wrong(LOST, f"version {seen.version} is there, acknowledged increments lead to {least}")
        if seen.version > most:
            return Wrong("increment done twice", f"version {seen.version} is there, the increments sent lead to {most}")
        if seen.version > self.floor.version and not self._may_become(seen):
            return Wrong(UNEXPLAINED, f"increment {seen.version} by {seen.origin}, which was refused or never sent")
        return None
