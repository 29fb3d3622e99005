"""Clients' logs read back, all of them merged by time, a line at a time: an hour of them does not fit in memory."""

import heapq
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.oplog import EventName, Seen, Write
from chaos.tables import SERVICES
from cutover.dualwrite.routing import ReadClass
from cutover.errors import ConfigError
from cutover.postgres.databases import Side

#: What may only be known after it began comes after it, where two clocks say the same.
_ORDER = {"invoke": 0, "look": 0}
_KNOWN = frozenset({"invoke", "ok", "fail", "fenced", "unknown", "look", "seen"})


@dataclass(slots=True)
class Event:
    """One line of a log; `at` is on the machine's monotonic clock. What a kind of event has not is empty."""

    event: EventName
    op: str
    at: float
    service: str
    text: str
    by: str = ""
    side: Side | None = None
    epoch: int | None = None
    writes: tuple[Write, ...] = ()
    answers: Sequence[int | None] = ()
    reason: str = ""
    missed: int | None = None
    read: ReadClass = "read_your_writes"
    keys: Sequence[int] = ()
    seen: Sequence[Seen] = ()

    @property
    def touched(self) -> Collection[int]:
        """The keys that the line names."""
        return {*(write.key for write in self.writes if write.table == "items"), *self.keys}


@dataclass
class Tears:
    """Lines that a killed client left half written: what they were about was not sent yet, or has no outcome."""

    lines: int = 0


def read(logs: Sequence[Path], tears: Tears | None = None) -> Iterator[Event]:
    """The events of all logs in the order of their time.

    Raises ConfigError for a log that is missing, is not such a log, or in which the time goes back.
    """
    tears = tears or Tears()
    return heapq.merge(
        *(_lines(path, tears) for path in logs), key=lambda event: (event.at, _ORDER.get(event.event, 1))
    )


def _lines(path: Path, tears: Tears) -> Iterator[Event]:
    before = float("-inf")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, 1):
                if not text.endswith("\n"):
                    tears.lines += 1
                    return
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    tears.lines += 1
                    continue
                try:
                    event = parse(line, text)
                except (KeyError, TypeError, ValueError) as error:
                    raise ConfigError(
                        f"{path}:{number}: not a line of a client's log: {type(error).__name__} {error}"
                    ) from None
                if event.at < before:
                    raise ConfigError(
                        f"{path}:{number}: the clock went back: the machine was started anew since this log was begun, "
                        "and its times cannot be compared; begin a new log"
                    )
                before = event.at
                yield event
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"log {path} cannot be read ({type(error).__name__})") from None


def parse(line: dict[str, Any], text: str = "") -> Event:
    """One line. Raises KeyError, TypeError or ValueError for what is none."""
    if line["event"] not in _KNOWN:
        raise ValueError(f"event {line['event']!r}")
    if line["service"] not in SERVICES:
        raise ValueError(f"service {line['service']!r}")
    return Event(
        line["event"],
        line["op"],
        line["at"],
        line["service"],
        text.rstrip("\n"),
        line.get("by", ""),
        line.get("side"),
        line.get("epoch"),
        tuple(Write(**write) for write in line.get("writes", ())),
        line.get("answers", ()),
        line.get("reason", ""),
        line.get("missed"),
        line.get("read", "read_your_writes"),
        line.get("keys", ()),
        line.get("seen", ()),
    )
