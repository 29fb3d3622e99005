"""What one loop of a client does: it owns keys, and is the only one who writes them.

So the history of each key is one after the other, and each write knows which version it has to meet. Beside them there
are a few counters that everybody increments. A lane begins by reading the truth of its keys: what an earlier life with
the same log left, and whatever else is there.

After an outcome that nobody knows, the write may still be under way, and a late one must not be taken for a fault. So
its rows are left alone for ever, and the end shows whether it was done, and wholly; fresh keys take their places.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos import history
from chaos.client import Client
from chaos.oplog import Outcome, Write

#: Keys read at once.
_BATCH = 500


@dataclass(slots=True)
class Row:
    """A row of a lane's own, as its writer knows it. `version`: the newest one, a delete's too."""

    version: int = 0
    present: bool = False
    #: A write of unknown outcome: left alone.
    retired: bool = False

    def after(self, write: Write, outcome: Outcome) -> None:
        """Keeps book of one write."""
        assert write.version is not None
        if outcome == "ok":
            self.version, self.present = write.version, write.present
        self.retired |= outcome == "unknown"


def recall(log: Path) -> dict[str, dict[int, Row]]:
    """The rows of each service as an earlier life with this log knew them; none where there is no log yet.

    Raises ConfigError for a file that is not such a log.
    """
    rows: dict[str, dict[int, Row]] = {}
    under_way: dict[str, history.Event] = {}

    def note(begun: history.Event, outcome: Outcome) -> None:
        mine = rows.setdefault(begun.service, {})
        for write in begun.writes:
            if write.version is not None:
                mine.setdefault(write.key, Row()).after(write, outcome)

    for event in history.read([log]) if log.exists() else ():
        if event.event == "invoke":
            under_way[event.op] = event
        elif event.event in ("ok", "fail", "fenced") and (begun := under_way.pop(event.op, None)):
            note(begun, "ok" if event.event == "ok" else "fail")
    for begun in under_way.values():
        note(begun, "unknown")
    return rows


class Lane:
    """One loop's keys: `number`, `number + lanes`, `number + 2 * lanes`, …, of which `keys` are worked on at a time."""

    def __init__(self, client: Client, number: int, lanes: int, *, keys: int, shared: int, seed: int) -> None:
        self._client = client
        self._number, self._lanes, self._keys, self._shared = number, lanes, keys, shared
        self._rng = random.Random(f"{seed}/{client.service}/{number}")
        self._rows: dict[int, Row] = {}
        self._next = 0

    async def begin(self, recalled: Mapping[int, Row]) -> bool:
        """Takes the keys over as they are; False while they cannot be read."""
        mine = {key: row for key, row in recalled.items() if key >= 0 and key % self._lanes == self._number}
        self._next = max((key // self._lanes + 1 for key in mine), default=0)
        self._rows = {key: row for key, row in mine.items() if not row.retired}
        while len(self._rows) < self._keys:
            self._add()
        # the retired ones as well: what is read there must not be gone in the end
        wanted = sorted(self._rows.keys() | mine.keys())
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            seen = await self._client.look(batch)
            if seen is None:
                return False
            there = {key: version for key, version, _ in seen}
            for key in batch:
                if key in self._rows:
                    row = self._rows[key]
                    row.version, row.present = max(row.version, there.get(key, 0)), key in there
        return True

    @property
    def keys(self) -> list[int]:
        """Those that it works on."""
        return list(self._rows)

    def _add(self) -> None:
        self._rows[self._next * self._lanes + self._number] = Row()
        self._next += 1

    async def act(self) -> int:
        """One thing that an application does; gives the rows that it tried to write."""
        op = self._client.log.next_name()
        choice = self._rng.random()
        key = self._rng.choice(list(self._rows))
        if choice < 0.5:
            writes = [self._change(key)]
        elif choice < 0.7:
            writes = self._transaction(op)
        elif choice < 0.9 or not self._shared:
            writes = [Write("events", "insert", key, token=op)]
        else:
            writes = [Write("items", "increment", -self._rng.randint(1, self._shared))]
        outcome = await self._client.perform(op, writes)
        for write in writes:
            if write.version is not None:
                self._after(write, outcome)
        return len(writes)

    def _change(self, key: int) -> Write:
        row = self._rows[key]
        if not row.present:
            return Write("items", "insert", key, row.version + 1)
        return Write("items", "delete" if self._rng.random() < 0.3 else "update", key, row.version + 1)

    def _transaction(self, op: str) -> list[Write]:
        """Several rows and perhaps an event, all or none."""
        keys = self._rng.sample(list(self._rows), min(len(self._rows), self._rng.randint(2, 4)))
        added = [Write("events", "insert", keys[0], token=op)] if self._rng.random() < 0.5 else []
        return [*map(self._change, keys), *added]

    def _after(self, write: Write, outcome: Outcome) -> None:
        row = self._rows[write.key]
        row.after(write, outcome)
        if row.retired:
            del self._rows[write.key]
            self._add()


class Reader:
    """A loop that reads rows of everybody's, mostly so that they have to be up to date.

    Half of what it asks for are the rows that `beside`, the lanes of its own process, work on just now; the others may
    be of any process, or not there yet.
    """

    def __init__(
        self, client: Client, number: int, lanes: int, beside: Sequence[Lane], *, keys: int, shared: int, seed: int
    ) -> None:
        self._client = client
        self._beside = beside
        self._highest, self._shared = 2 * lanes * keys, shared
        self._rng = random.Random(f"{seed}/{client.service}/reader {number}")

    async def act(self) -> None:
        """One read of a few rows."""
        keys = {self._key() for _ in range(self._rng.randint(1, 4))}
        if self._shared and self._rng.random() < 0.3:
            keys.add(-self._rng.randint(1, self._shared))
        await self._client.look(sorted(keys), "stale_ok" if self._rng.random() < 0.2 else "read_your_writes")

    def _key(self) -> int:
        if self._rng.random() < 0.5 and (present := [key for lane in self._beside for key in lane.keys]):
            return self._rng.choice(present)
        return self._rng.randrange(self._highest)
