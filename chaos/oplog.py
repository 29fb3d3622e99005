"""The log that each client of the harness keeps, from which it is known later what the databases must hold.

One JSON line for each event; `at` is the machine's monotonic clock in seconds (one clock for all processes, and no
fault turns it back), `wall` the time of day for people:

    {"event": "invoke", "op": "c1.77.19a-7", "at": 812.1, "wall": 1767225600.1, "service": "strong", "epoch": 2,
     "writes": [{"table": "items", "kind": "update", "key": 17, "version": 4}]}
    {"event": "ok", "op": "c1.77.19a-7", "at": 812.2, "wall": …, "service": "strong", "side": "service", "epoch": 2,
     "answers": [4]}

* `invoke` is on the disk before anything is sent, its outcome before the client goes on: `ok`, `fail` (certainly not
  done), `fenced` (the same, because the fence refused it) or `unknown`. A client that was killed leaves an invoke
  alone: unknown as well. The writes of one operation are one transaction.
* `answers` are what the database gave back for each write: an item's version, an event's id; null where the answer
  was lost though the write was done. A value is not logged: `tables.value_of` makes it from `op` and key.
* `version` is the row's after the write, and rises with a delete too; an increment's is known by its answer only.
  An event has a `token`.
* `missed` of a `fail`: the key of the row that was not as this client, its only writer, had been told.
* `side` of an `ok` is what the database itself said, of an `invoke` the one that a bypass writer (`by`) goes to.
  `epoch` is the client's route, where it was the same before and after.
* A read is `look` (`read` is its class, `keys`), then `seen` ([key, version, origin] of each row that was there) or
  `fail`; it is not waited for on the disk.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cutover.dualwrite.routing import ReadClass
from cutover.postgres.databases import Side
from examples.ai_trader.oplog import SyncedLines

Outcome = Literal["ok", "fail", "fenced", "unknown"]
EventName = Literal["invoke", "ok", "fail", "fenced", "unknown", "look", "seen"]
TableKind = Literal["items", "events"]
Kind = Literal["insert", "update", "delete", "increment"]
#: (key, version, origin) of a row that a read gave.
Seen = tuple[int, int, str | None]


@dataclass(frozen=True, slots=True)
class Write:
    """One write of one row. `version` is None for an event, and for an increment."""

    table: TableKind
    kind: Kind
    key: int
    version: int | None = None
    token: str = ""

    @property
    def present(self) -> bool:
        """Whether the row is there once the write is done."""
        return self.kind != "delete"

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass
class Log(SyncedLines):
    """A client's log; `counts` by event."""

    gather: float = 0.004
    clock: Callable[[], float] = time.monotonic
    by: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    async def invoke(
        self, op: str, service: str, writes: Sequence[Write], *, side: Side | None = None, epoch: int | None = None
    ) -> None:
        """Notes what is about to be sent; returns once that is on the disk."""
        self.note("invoke", op, service, writes=[write.as_json() for write in writes], side=side, epoch=epoch)
        await self.synced()

    async def outcome(
        self,
        outcome: Outcome,
        op: str,
        service: str,
        *,
        answers: Sequence[int | None] | None = None,
        side: Side | None = None,
        epoch: int | None = None,
        reason: str | None = None,
        missed: int | None = None,
    ) -> None:
        """Notes how it ended; returns once that is on the disk."""
        self.note(outcome, op, service, answers=answers, side=side, epoch=epoch, reason=reason or None, missed=missed)
        await self.synced()

    def look(self, op: str, service: str, read: ReadClass, keys: Sequence[int]) -> None:
        """Notes that a read begins."""
        self.note("look", op, service, read=read, keys=keys)

    def seen(self, op: str, service: str, rows: Sequence[Seen]) -> None:
        """Notes what it gave."""
        self.note("seen", op, service, seen=rows)

    def note(self, event: EventName, op: str, service: str, **more: Any) -> None:
        """Appends one line; what is None is left out."""
        self.counts[event] = self.counts.get(event, 0) + 1
        at = {"event": event, "op": op, "at": round(self.clock(), 7), "wall": round(time.time(), 3)}
        by = {"by": self.by} if self.by else {}
        known = {name: value for name, value in more.items() if value is not None}
        self.append([{**at, **by, "service": service, **known}])
