"""What the harness asserts: clients' logs, the rows of the end and the switches that were done say one story.

`check` reads the logs once, in the order of their time, and keeps a little for each row and each event; where
something is wrong it reads them once more, for the lines around it.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos import history
from chaos.history import Event, Tears
from chaos.register import BACK, LOST, UNEXPLAINED, Register, State, Wrong
from chaos.sides import Switch, Window, WritableSide
from chaos.tables import GROUND, MIRRORED, Item, Rows, events
from cutover.errors import ConfigError
from cutover.postgres.databases import SIDES, Side, other

#: What may be wrong, and what it means.
NAMES: Mapping[str, str] = {
    LOST: "a write that its client was told to be done is not there",
    BACK: "a deleted row is there, or stood in the way of making it again",
    "stale read": "a read_your_writes read gave less than was acknowledged before it began, to whomever",
    "versions not monotone": "a later write of a row was given a version that is not higher",
    "lost update": "a row was not as its only writer had been told, or one version was given to two increments",
    "increment done twice": "there are more increments than were sent",
    "row of two writes": "a row's columns come from two writes",
    UNEXPLAINED: "a row is there that no acknowledged or unknown write has made",
    "transaction torn": "of a transaction of unknown outcome a part is there and a part is not",
    "id given twice": "two events were given the same id, or an id that was there already",
    "accepted at a fenced side": "a side accepted a write while the other one was the writable side",
    "two writable sides": "accepted writes show that both sides were writable at one instant",
    "sides differ": "a row is not alike at both sides after the drain",
}

_SHOWN_OF_EACH = 10
_LINES_BEFORE, _LINES_AFTER = 10, 5


@dataclass
class Violation:
    """Something that must not be. `key` is an item's key, or an event's token; `around` the logs' lines about it."""

    name: str
    service: str
    key: int | str | None
    op: str
    at: float
    detail: str
    witness: str = ""
    around: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """What was checked and what was wrong: `violations` counts all, `shown` holds the first ten of each name."""

    counts: dict[str, int] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=dict)
    shown: list[Violation] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def add(self, violation: Violation) -> None:
        self.violations[violation.name] = self.violations.get(violation.name, 0) + 1
        if self.violations[violation.name] <= _SHOWN_OF_EACH:
            self.shown.append(violation)

    def words(self) -> list[str]:
        """Each name once, with how often, and the first key with what was wrong there."""
        first = {one.name: one for one in reversed(self.shown)}
        return [f"{number} × {name} ({first[name].key}: {first[name].detail})"
                for name, number in self.violations.items()]  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def check(
    logs: Sequence[Path],
    rows: Mapping[str, Mapping[Side, Rows]],
    switches: Mapping[str, Sequence[Switch]],
    before: Mapping[str, Rows] | None = None,
    shut: Mapping[str, Sequence[Window]] | None = None,
) -> Verdict:
    """The verdict over the logs of all clients and bypass writers, none of which runs any more.

    `rows`: for each service in the logs the rows of its primary, read after the streams have drained; where the other
    side's are given too, both have to be alike. `switches`: all switches that were done, by service; those of a
    service that is not named: none. `before`: the primary's rows when the logs were begun, where there were any.
    `shut`: windows in which no side may have taken a write. Raises ConfigError for an unusable log, and for switches
    that do not follow from one another.
    """
    verdict = Verdict()
    services = {
        service: _Service(WritableSide(service, done, (shut or {}).get(service, ())), service, verdict, before)
        for service, done in _all(rows, switches).items()
    }
    tears = Tears()
    for event in history.read(logs, tears):
        if event.service not in services:
            raise ConfigError(f"the logs name {event.service}, whose rows of the end are not given")
        services[event.service].take(event)
    verdict.count("torn lines", tears.lines)
    for service, checked in services.items():
        checked.end(rows[service])
    if verdict.shown:
        _look_around(logs, verdict.shown)
    return verdict


def _all(
    rows: Mapping[str, Mapping[Side, Rows]], switches: Mapping[str, Sequence[Switch]]
) -> dict[str, Sequence[Switch]]:
    found = {service: switches.get(service, ()) for service in rows}
    for service, done in found.items():
        last = WritableSide(service, done).last
        if last not in rows[service]:
            raise ConfigError(f"{service} is writable at the {last}: its rows there are not given")
    return found


@dataclass(slots=True)
class _UnderWay:
    """An operation without an outcome so far, and the floors of its rows when it began."""

    begun: Event
    floors: dict[int, State] = field(default_factory=dict)


class _Service:
    """The history of one service."""

    def __init__(self, side: WritableSide, service: str, verdict: Verdict, before: Mapping[str, Rows] | None) -> None:
        self._service = service
        self._verdict = verdict
        self._told_before = service in (before or {})
        self._before = (before or {}).get(service, Rows())
        self._side = side
        self._registers: dict[int, Register] = {}
        self._open: dict[str, _UnderWay] = {}
        #: Acknowledged events by token, with their id (0: the answer was lost).
        self._events: dict[str, int] = {}

    def _register(self, key: int) -> Register:
        found = self._registers.get(key)
        if found is None:
            found = self._registers[key] = Register.of(self._before.items.get(key), mirrored=self._service in MIRRORED)
        return found

    def _wrong(self, wrong: Wrong, key: int | str | None, event: Event | None, witness: str = "") -> None:
        op, at = (event.op, event.at) if event else ("", math.inf)
        self._verdict.add(Violation(wrong.name, self._service, key, op, at, wrong.detail, witness))

    def take(self, event: Event) -> None:
        """The next event."""
        match event.event:
            case "invoke":
                self._open[event.op] = _UnderWay(event, {
                    write.key: self._register(write.key).invoked(event.op, write)
                    for write in event.writes if write.table == "items"
                })  # fmt: skip
            case "look":
                self._open[event.op] = _UnderWay(event, {key: self._register(key).floor for key in event.keys})
            case "seen":
                self._seen(self._ended(event), event)
            case "ok":
                self._acknowledged(self._ended(event), event)
            case "fail" | "fenced":
                self._refused(self._ended(event), event)
            case "unknown":
                pass  # it stays open to the end

    def _ended(self, event: Event) -> _UnderWay:
        try:
            return self._open.pop(event.op)
        except KeyError:
            raise ConfigError(f"the logs tell the end of operation {event.op}, and not its begin") from None

    # ------------------------------------------------------------------ outcomes

    def _acknowledged(self, under_way: _UnderWay, event: Event) -> None:
        begun = under_way.begun
        answers = event.answers or [None] * len(begun.writes)
        for write, answer in zip(begun.writes, answers, strict=True):
            self._verdict.count(f"{begun.by or 'client'} ok {write.table} {write.kind}")
            if write.table == "events":
                self._events[write.token] = answer or 0
                continue
            floor = under_way.floors[write.key]
            wrong = self._register(write.key).acknowledged(event.op, write, answer, floor)
            if wrong:
                self._wrong(wrong, write.key, event)
        side = event.side or begun.side
        self._verdict.count(f"{begun.by or 'client'} accepted at {side or 'an unknown side'}")
        if len(begun.writes) > 1:
            self._verdict.count("transactions acknowledged")
        if side is None:
            return
        breach = self._side.accepted(event.op, side, begun.at, event.at)
        if breach:
            key = begun.writes[0].token or begun.writes[0].key
            self._wrong(Wrong(breach.name, breach.detail), key, event, breach.witness)

    def _refused(self, under_way: _UnderWay, event: Event) -> None:
        begun = under_way.begun
        if begun.event == "look":
            self._verdict.count("reads failed")
            return
        for write in begun.writes:
            if write.table == "items":
                self._register(write.key).refused(event.op)
        who = begun.by or "client"
        self._verdict.count(f"{who} {event.event}" + (f" at {begun.side}" if begun.side else f" {event.reason}"))
        if event.missed is not None:
            floor = under_way.floors[event.missed]
            told = f"version {floor.version}" if floor.present else "no row"
            self._wrong(Wrong("lost update", f"its only writer was told {told}, and did not meet it"),
                        event.missed, event)  # fmt: skip
        elif "UniqueViolation" in event.reason:
            self._duplicate(begun, event)

    def _duplicate(self, begun: Event, event: Event) -> None:
        """Every key and token belongs to one writer: what is there already must not be."""
        added = next((write for write in begun.writes if write.table == "events"), None)
        if added is not None and events(self._service) in event.reason:
            self._wrong(Wrong("id given twice", "the id that the server chose was there already"), added.token, event)
            return
        made = next((write for write in begun.writes if write.kind == "insert" and write.table == "items"), None)
        key = made.key if made else None
        self._wrong(Wrong(BACK, "an insert met a row where there had to be none"), key, event)

    def _seen(self, under_way: _UnderWay, event: Event) -> None:
        begun = under_way.begun
        found = {key: State(version, True, origin) for key, version, origin in event.seen}
        self._verdict.count(f"reads {begun.read}")
        self._verdict.count("rows read", len(found))
        for key in begun.keys:
            wrong = self._register(key).read(
                found.get(key, State()), under_way.floors[key], stale_ok=begun.read == "stale_ok"
            )
            if wrong:
                self._wrong(wrong, key, event)

    # ------------------------------------------------------------------ the end

    def end(self, rows: Mapping[Side, Rows]) -> None:
        """Everything that is only known once nobody writes any more."""
        primary = rows[self._side.last]
        self._verdict.count("switches done", len(self._side.switches))
        self._verdict.count("switches proved by writes", self._side.proved)
        self._verdict.count("items checked", len(self._registers))
        self._verdict.count("events checked", len(self._events))
        for key, register in self._registers.items():
            wrong = register.final(key, primary.items.get(key))
            if wrong:
                self._wrong(wrong, key, None)
        for key in (primary.items.keys() | self._before.items.keys()) - self._registers.keys():
            row, was = primary.items.get(key), self._before.items.get(key)
            if was is not None and row != was:
                self._wrong(
                    Wrong(LOST, f"there was {_say(was)} before, and no log names it; now {_say(row)}"), key, None
                )
            elif was is None and row is not None and (self._told_before or row.origin != GROUND):
                self._wrong(Wrong(UNEXPLAINED, f"{_say(row)} is there, and no log names it"), key, None)
        self._end_events(primary)
        for under_way in self._open.values():
            self._unknown(under_way.begun, primary)
        if set(SIDES) <= set(rows):
            self._compare(primary, rows[other(self._side.last)])

    def _end_events(self, primary: Rows) -> None:
        ids = {number: token for token, (number, _) in primary.events.items()}
        expected = {**{token: number for token, (number, _) in self._before.events.items()}, **self._events}
        for token, number in expected.items():
            there = primary.events.get(token)
            if there is None and number in ids:
                self._wrong(Wrong("id given twice", f"id {number} belongs to {ids[number]} now"), token, None)
            elif there is None:
                self._wrong(Wrong(LOST, f"the event with id {number or 'unknown'} is absent"), token, None)
            elif number and there[0] != number:
                self._wrong(Wrong("id given twice", f"its id is {there[0]}, {number} was acknowledged"), token, None)
        maybe = {write.token for op in self._open.values() for write in op.begun.writes if write.token}
        for token, (number, _) in primary.events.items():
            if token not in expected and token not in maybe:
                detail = f"the event with id {number} is there, which was refused or never sent"
                self._wrong(Wrong(UNEXPLAINED, detail), token, None)

    def _unknown(self, begun: Event, primary: Rows) -> None:
        """An operation whose outcome nobody knows: wholly there, or not at all."""
        if not begun.writes:
            return  # a read
        fates: set[bool] = set()
        for write in begun.writes:
            if write.table == "events":
                fates.add(write.token in primary.events)
                continue
            row, floor = primary.items.get(write.key), self._register(write.key).floor
            if write.version is None or floor.version > write.version:
                fates |= {True} if row is not None and row.origin == begun.op else set()
            elif write.present:
                fates.add(row is not None and row.origin == begun.op)
            else:
                fates.add(row is None)
        self._verdict.count(f"{begun.by or 'client'} unknown")
        if len(begun.writes) > 1:
            self._verdict.count("transactions unknown")
        self._verdict.count("unknown done" if True in fates else "unknown not done")
        if len(fates) > 1:
            key = begun.writes[0].token or begun.writes[0].key
            self._wrong(Wrong("transaction torn", f"{len(begun.writes)} writes, {begun.op}"), key, begun)

    def _compare(self, primary: Rows, follower: Rows) -> None:
        self._verdict.count("rows compared", len(primary.items) + len(primary.events))
        for key in sorted(primary.items.keys() | follower.items.keys()):
            self._compare_one(key, _say(primary.items.get(key)), _say(follower.items.get(key)))
        for token in sorted(primary.events.keys() | follower.events.keys()):
            left, right = primary.events.get(token), follower.events.get(token)
            self._compare_one(token, f"(id, key) {left}", f"(id, key) {right}")

    def _compare_one(self, key: int | str, left: str, right: str) -> None:
        if left != right:
            detail = f"the {self._side.last}, which is the primary, has {left}, the other side {right}"
            self._wrong(Wrong("sides differ", detail), key, None)


def _say(row: Item | None) -> str:
    return f"version {row.version} by {row.origin} ({row.value})" if row else "no row"


def _look_around(logs: Sequence[Path], shown: Sequence[Violation]) -> None:
    """Gives each violation the lines of the logs about its row and operations, around its time."""
    ops = [{op for op in (violation.op, violation.witness) if op} for violation in shown]
    lines: list[deque[str]] = [deque(maxlen=_LINES_BEFORE) for _ in shown]
    after = [0] * len(shown)
    for event in history.read(logs):
        touched, tokens = event.touched, {write.token for write in event.writes if write.token}
        for number, violation in enumerate(shown):
            if event.service != violation.service:
                continue
            if violation.key in touched or violation.key in tokens:
                ops[number].add(event.op)
            if event.op not in ops[number]:
                continue
            if event.at > violation.at:
                after[number] += 1
                if after[number] > _LINES_AFTER:
                    continue
                violation.around.append(event.text)
            else:
                lines[number].append(event.text)
    for violation, before in zip(shown, lines, strict=True):
        violation.around[:0] = before
