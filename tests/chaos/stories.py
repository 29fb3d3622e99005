"""Histories of clients made by hand, for the checker to find what is wrong with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.checker import NAMES, Verdict, check
from chaos.oplog import Kind, Log, Seen, Write
from chaos.sides import Switch
from chaos.tables import Item, Rows, value_of
from cutover.dualwrite.routing import ReadClass
from cutover.postgres.databases import Side

SERVICE = "eventual"
TO_SERVICE = Switch(1, "service")
TO_MONOLITH = Switch(2, "monolith")


class Story:
    """Writes a client's log; the clock is set by hand, and goes on by a second with each event."""

    def __init__(self, path: Path, run: str = "c0", by: str = "") -> None:
        self.log = Log(path, run=run, by=by, clock=lambda: self.now)
        self.now = 0.0

    def begin(self, *writes: Write, at: float | None = None, side: Side | None = None) -> str:
        """A write is sent."""
        self.now = self.now + 1 if at is None else at
        op = self.log.next_name()
        self.log.note("invoke", op, SERVICE, writes=[write.as_json() for write in writes], side=side)
        return op

    def end(self, event: Any, op: str, *answers: int | None, at: float | None = None, **more: Any) -> str:
        """How it ended."""
        self.now = self.now + 1 if at is None else at
        self.log.note(event, op, SERVICE, answers=answers or None, **more)
        return op

    def tx(self, event: Any, *writes: Write, answers: Sequence[int | None] = (), **more: Any) -> str:
        """Both. `event` None: the client was killed before it knew."""
        op = self.begin(*writes)
        if event is None:
            return op
        return self.end(event, op, *answers, **more)

    def accepted(self, side: Side, begun: float, ended: float) -> str:
        """An event that this side took in that time, with its number as its token and id."""
        number = int(begun * 10)
        op = self.begin(event(f"t{number}"), at=begun)
        return self.end("ok", op, number, at=ended, side=side)

    def look(self, *keys: int, read: ReadClass = "read_your_writes") -> str:
        """A read begins."""
        self.now += 1
        op = self.log.next_name()
        self.log.look(op, SERVICE, read, keys)
        return op

    def seen(self, op: str, *rows: Seen) -> None:
        """What it gave."""
        self.now += 1
        self.log.seen(op, SERVICE, rows)


def write(kind: Kind, key: int, version: int | None = None) -> Write:
    return Write("items", kind, key, version)


def event(token: str) -> Write:
    return Write("events", "insert", 1, token=token)


def row(version: int, origin: str, key: int) -> Item:
    return Item(version, origin, value_of(origin, key))


def rows(*found: tuple[int, int, str], events: dict[str, int] | None = None) -> Rows:
    """(key, version, origin) of items, token → id of events."""
    return Rows(
        {key: row(version, origin, key) for key, version, origin in found},
        {token: (number, 1) for token, number in (events or {}).items()},
    )


def taken(*begun: float) -> Rows:
    """The rows that `accepted` leaves."""
    return rows(events={f"t{int(at * 10)}": int(at * 10) for at in begun})


def verdict(
    path: Path, primary: Rows, *switches: Switch, logs: Sequence[Path] = (), before: Rows | None = None
) -> Verdict:
    side: Side = switches[-1].side if switches else "monolith"
    done = {SERVICE: list(switches)}
    return check([path, *logs], {SERVICE: {side: primary}}, done, {SERVICE: before} if before else None)


def wrong(found: Verdict) -> list[str]:
    assert set(found.violations) <= set(NAMES)
    return sorted(found.violations)
