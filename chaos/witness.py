"""What the clients' logs say while they are still written: who works just now and where, and what is there to stay.

The checker has the last word, at a run's end, when much may have been brought back by then. The witness is asked after
each turn: whether everybody's writes and reads go on, at the side that was asked for, and for all that was
acknowledged so far.
"""

import asyncio
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from cutover.postgres.databases import Side

#: Seconds between two looks.
_LOOK = 0.1
#: Who does what: ("client-0", 2) is a loop that writes, ("client-0", "write") any of them, ("client-0", "read") one
#: that reads, ("bypass", side) a writer past the library.
Who = tuple[str, int | str]


class Idle(Exception):
    """Somebody does not come to write or read any more."""


class Witness:
    """Follows all logs of a folder. `lane` gives the number of the loop that a key belongs to."""

    def __init__(self, folder: Path, lane: Callable[[int], int]) -> None:
        self._folder = folder
        self._lane = lane
        self._read: dict[Path, int] = {}
        self._begun: dict[str, dict[str, Any]] = {}
        #: Tokens of the events that are acknowledged.
        self.events: set[str] = set()
        #: When the newest operation that went well was begun, and where it was done (reads: None).
        self._newest: dict[Who, tuple[float, Side | None]] = {}

    def look(self) -> None:
        """Reads on; a line that is still being written is left for the next look."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            whole = text.rfind(b"\n") + 1
            self._read[path] = self._read.get(path, 0) + whole
            for line in text[:whole].splitlines():
                self._take(path.stem, line)

    def _take(self, who: str, line: bytes) -> None:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            return  # half a line of a client that was killed, and the next one behind it
        if found["event"] in ("invoke", "look"):
            self._begun[found["op"]] = found
        elif (begun := self._begun.pop(found["op"], None)) is not None:
            if found["event"] == "seen":
                self._newest[who, "read"] = (begun["at"], None)
            elif found["event"] == "ok":
                self._acknowledged(who, begun, found)

    def _acknowledged(self, who: str, begun: dict[str, Any], found: dict[str, Any]) -> None:
        self.events |= {write["token"] for write in begun["writes"] if "token" in write}
        side, key = found.get("side"), begun["writes"][0]["key"]
        if "by" in begun:
            self._newest[begun["by"], begun["side"]] = (begun["at"], side)
        elif key >= 0 and side is not None:
            self._newest[who, self._lane(key)] = self._newest[who, "write"] = (begun["at"], side)

    async def at_work(self, side: Side, everybody: Collection[Who], within: float) -> None:
        """Returns once each of them has done something that was begun after this call; writes at that side.

        Raises Idle, which names who has not.
        """
        since = time.monotonic()
        while True:
            self.look()
            waiting = [who for who in everybody if not self._has_worked(who, since, side)]
            if not waiting:
                return
            if time.monotonic() > since + within:
                names = ", ".join(f"{name} {what}" for name, what in waiting)
                raise Idle(f"nothing was done at the {side} for {within:g} s by: {names}")
            await asyncio.sleep(_LOOK)

    def _has_worked(self, who: Who, since: float, side: Side) -> bool:
        at, where = self._newest.get(who, (0.0, None))
        return at >= since and where in (None, side)
