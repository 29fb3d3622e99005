"""Whether the acknowledged writes of one service can have been made with one writable side at any instant.

What is known of a write is that it was committed between its begin and its end, at one side. The writable side changes
at the switches only, in their order, each within its window. The writes are taken in the order of their ends, and
every switch is put as late as the writes so far allow, which allows the most to those that follow: so a write that
fits nowhere then fits nowhere at all. Only the present turn has to be remembered.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chaos.injection import Passes
from cutover.control import switches
from cutover.control.database import Control
from cutover.errors import ConfigError
from cutover.postgres.databases import Side


@dataclass(frozen=True)
class Switch:
    """A switch that was done: from some instant between `begun` and `ended` on, `side` was the writable one.

    Times on the machine's monotonic clock, in seconds (`time.monotonic`); without them the order of the writes alone
    has to prove that the switch was not yet, or not any more, to come.
    """

    epoch: int
    side: Side
    begun: float = -math.inf
    ended: float = math.inf


@dataclass(frozen=True)
class Window:
    """Times of the monotonic clock between which no write may lie as a whole: neither side takes any."""

    begun: float
    ended: float


#: The point at which a side was shut, and those behind which one may be opened.
_SHUT = "switch.fence-commit.after"
_OPENED = (
    "switch.unfence.before", "complete.open.before", "undo.open.before", "undo.reopen.before", "mend.fences.before",
)  # fmt: skip


#: The new side is about to be opened, in a transaction that is committed once the switch has been journaled.
_OPENING = "switch.unfence.before"
#: It has been.
_JOURNALED = ("switch.journal.after", "complete.open.before")


def both_shut(turns: Sequence[Passes]) -> list[Window]:
    """The windows of one service in which both its sides had to refuse, from the passes of all turns."""
    found: list[Window] = []
    begun: float | None = None
    for at, point in heapq.merge(*turns):
        if point == _SHUT:
            begun = at
        elif point in _OPENED and begun is not None:
            found.append(Window(begun, at))
            begun = None
    return found


def timed(done: Sequence[Switch], turns: Sequence[Passes]) -> list[Switch]:
    """The switches of one service with the instants at which their passes say that the new side was opened.

    By then the old one was shut. Raises ConfigError where a switch was done that no turn's passes tell of.
    """
    opened = []
    for passes in turns:
        begun = at = 0.0
        for time, point in passes:
            if point == _OPENING:
                begun = time
            elif point in _JOURNALED:
                at = at or begun or time  # what an attempt that slept still comes to is in vain
        opened += [at] if at else []
    if len(opened) != len(done):
        raise ConfigError(f"{len(done)} switches were done, and in {len(opened)} turns a new side was opened")
    ordered = zip(sorted(done, key=lambda one: one.epoch), sorted(opened), strict=True)
    return [replace(switch, begun=at, ended=at) for switch, at in ordered]


async def done_switches(control: Control, migration: str) -> dict[str, list[Switch]]:
    """Each service's switches that were done, as the control database has recorded them; without times."""
    found: dict[str, list[Switch]] = {}
    for outcome in await switches.outcomes(control, migration):
        if outcome["result"] == "done":
            found.setdefault(outcome["service"], []).append(Switch(outcome["epoch"], outcome["to_side"]))
    return found


@dataclass(frozen=True)
class Breach:
    """An acknowledged write that one writable side at any instant does not explain. `witness`: the other of a pair."""

    name: str
    detail: str
    witness: str = ""


class WritableSide:
    """The turns of one service's sides, checked against its acknowledged writes in the order of their ends."""

    def __init__(self, service: str, done: Sequence[Switch], shut: Sequence[Window] = ()) -> None:
        self.shut = shut
        self.switches = sorted(done, key=lambda switch: switch.epoch)
        side: Side = "monolith"
        before = -math.inf
        for switch in self.switches:
            if switch.side == side:
                raise ConfigError(f"{service}: switch {switch.epoch} leads to the {side}, which was writable already")
            if not before <= switch.begun <= switch.ended:
                raise ConfigError(
                    f"{service}: switch {switch.epoch} ends before it begins, or before the one before it"
                )
            side, before = switch.side, switch.begun
        self.last: Side = side
        #: Turns in which an acknowledged write was made at their side.
        self._used: set[int] = set()
        self._turn = 0
        #: The latest instant at which the present turn can have begun, and the write that says so.
        self._since = -math.inf
        self._witness = ""

    @property
    def proved(self) -> int:
        """Switches that acknowledged writes prove to have been done."""
        return len(self._used - {0})

    @property
    def _side(self) -> Side:
        return self.switches[self._turn - 1].side if self._turn else "monolith"

    @property
    def _ended(self) -> float:
        return self.switches[self._turn - 1].ended if self._turn else -math.inf

    def accepted(self, op: str, side: Side, begun: float, ended: float) -> Breach | None:
        """Takes the next acknowledged write; what is wrong with it, or None."""
        for window in self.shut:
            if window.begun <= begun and ended <= window.ended:
                return Breach("accepted at a fenced side", f"accepted at the {side} while both sides were shut")
        while (following := self._following()) is not None and following.ended <= ended:
            self._next_turn(following.ended, "")
        if side == self._side:
            self._used.add(self._turn)
            return None
        if begun <= self._since:
            return None
        if following is not None and ended >= following.begun:
            self._next_turn(ended, op)
            self._used.add(self._turn)
            return None
        detail = f"accepted at the {side} while the {self._side} was the writable side"
        if begun > self._ended or not self._witness:
            return Breach("accepted at a fenced side", detail)
        return Breach("two writable sides", f"{detail}, as an accepted write there shows", self._witness)

    def _following(self) -> Switch | None:
        return self.switches[self._turn] if self._turn < len(self.switches) else None

    def _next_turn(self, since: float, witness: str) -> None:
        self._turn += 1
        self._since, self._witness = since, witness
