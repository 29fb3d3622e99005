"""The log that a client keeps of its writes, from which it is later known what the databases must hold.

One JSON line for each event of each write:

    {"op": "c1-7.0", "tx": "c1-7", "at": 1767225600.123456, "event": "invoke", "service": "trading_engine",
     "table": "trades", "action": "update", "key": 17, "revision": 4}

* `invoke` is in the file before the statement is sent; `ok`, `fail` (certainly not done), `fenced` (not done: this
  side is not the writable one) and `unknown` follow. A client that was killed leaves an invoke alone: unknown as well.
* `key` is the primary key (a list where it has several columns); an insert that lets the server choose it has it in
  `ok` only, and `token`, the row's unique text of the application's own, from the beginning.
* `revision` is the row's after the write. `tx` is shared by the writes of one transaction: all or none.
* `cascade` of a delete: [table, key] of each row that goes with it for certain (a foreign key inside the service);
  `may_cascade`: of each that goes or stays (the key may be gone while services live apart).
* `stale-read`: a read of a row of the client's own gave an older revision (or none: -1) than one acknowledged.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from examples.ai_trader.tables import OWNERS, Key

Event = Literal["invoke", "ok", "fail", "fenced", "unknown", "stale-read"]
Action = Literal["insert", "update", "delete"]

#: (table, key) of another row.
Reference = tuple[str, Key]


@dataclass
class Write:
    """One write of one row. `key` is None until an insert's answer brings it."""

    table: str
    action: Action
    key: Key | None
    revision: int
    token: str = ""
    cascade: Sequence[Reference] = ()
    may_cascade: Sequence[Reference] = ()
    op: str = ""


@dataclass
class SyncedLines:
    """A file of JSON lines that is only appended to; concurrent tasks share one fsync, which each of them waits for."""

    path: Path
    #: Prefix of every op; unique for each life of each client.
    run: str
    #: Seconds in which lines gather for one fsync.
    gather: float = 0.015

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # a life before this one was killed inside a line
        self._number = 0
        self._synced: asyncio.Future[None] | None = None
        self._flusher: asyncio.Task[None] | None = None

    def next_name(self) -> str:
        """A name that no other operation has."""
        self._number += 1
        return f"{self.run}-{self._number}"

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Hands the lines to the system: a killed process does not take them along, a machine that fails may."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        os.write(self._file, text.encode())

    async def synced(self) -> None:
        """Returns once all that was appended is on the disk. Raises OSError."""
        if self._synced is None:
            self._synced = asyncio.get_running_loop().create_future()
            self._flusher = asyncio.create_task(self._sync(self._synced))
        await asyncio.shield(self._synced)

    def sync_now(self) -> None:
        """The same for a process without an event loop."""
        os.fsync(self._file)

    async def _sync(self, waiting: asyncio.Future[None]) -> None:
        await asyncio.sleep(self.gather)
        self._synced = None  # what is appended from here on waits for the next one
        try:
            await asyncio.to_thread(os.fsync, self._file)
        except OSError as error:
            waiting.set_exception(error)
            return
        waiting.set_result(None)

    async def close(self) -> None:
        if self._flusher is not None:
            await self._flusher
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)


@dataclass
class OpLog(SyncedLines):
    """A client's log of its writes.

    An invoke is handed to the system before its statement is sent, so a killed process cannot take it along; it
    reaches the disk no later than the outcome does.
    """

    counts: dict[str, int] = field(default_factory=dict)

    def invoke(self, writes: Sequence[Write]) -> str:
        """Name the writes and note them; gives the transaction's name."""
        tx = self.name(writes)
        self._append("invoke", tx, writes)
        return tx

    def name(self, writes: Sequence[Write]) -> str:
        """A name for a transaction that is not noted yet."""
        tx = self.next_name()
        for index, write in enumerate(writes):
            write.op = f"{tx}.{index}"
        return tx

    async def outcome(self, event: Event, tx: str, writes: Sequence[Write], reason: str = "") -> None:
        """Note how the writes ended; returns once that is on the disk."""
        self._append(event, tx, writes, reason)
        await self.synced()

    def outcome_now(self, event: Event, tx: str, writes: Sequence[Write], reason: str = "") -> None:
        """The same for a process without an event loop."""
        self._append(event, tx, writes, reason)
        self.sync_now()

    def _append(self, event: Event, tx: str, writes: Iterable[Write], reason: str = "") -> None:
        at = time.time()
        lines = []
        for write in writes:
            line: dict[str, Any] = {"op": write.op, "tx": tx, "at": at, "event": event}
            line |= {"service": OWNERS[write.table], "table": write.table, "action": write.action}
            line |= {"key": write.key, "revision": write.revision}
            if write.token:
                line["token"] = write.token
            if event == "invoke" and write.cascade:
                line["cascade"] = list(write.cascade)
            if event == "invoke" and write.may_cascade:
                line["may_cascade"] = list(write.may_cascade)
            if reason:
                line["reason"] = reason
            lines.append(line)
            self.counts[event] = self.counts.get(event, 0) + 1
        self.append(lines)
