"""The clients' logs read back: what each row must be now, from what was acknowledged and what is unknown."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutover.errors import ConfigError
from examples.ai_trader.oplog import Action, Reference
from examples.ai_trader.tables import TABLES, Key

#: A row's state: its revision, or ABSENT.
State = int
ABSENT: State = -1


@dataclass
class Op:
    """One write as its log tells it; `outcome` is `unknown` until a line says otherwise."""

    op: str
    tx: str
    at: float
    table: str
    action: Action
    key: Key | None
    revision: int
    token: str
    outcome: str = "unknown"
    reason: str = ""
    cascade: tuple[Reference, ...] = ()
    may_cascade: tuple[Reference, ...] = ()

    @property
    def effect(self) -> State:
        """The row's state if the write was done."""
        return ABSENT if self.action == "delete" else self.revision


@dataclass
class Fault:
    """Something that must not be; `kind` is one of the words of `check.KINDS`."""

    kind: str
    table: str
    key: Key | None
    op: str
    detail: str


@dataclass
class Expected:
    """What one row may be. `acknowledged` is None for a row of the generator that nothing was done to yet."""

    table: str
    key: Key
    acknowledged: State | None = None
    inserted_by: str = ""
    token: str = ""
    #: Unknown writes since the last acknowledged one, in their order.
    unknown: list[Op] = field(default_factory=list)
    #: A delete elsewhere may have taken it along.
    may_be_gone: bool = False
    last_op: str = ""

    def allows(self, state: State) -> bool:
        if self.may_be_gone and state == ABSENT:
            return True
        if any(op.effect == state for op in self.unknown):
            return True
        return self.acknowledged == state or (self.acknowledged is None and self._before(state))

    def _before(self, state: State) -> bool:
        """Whether an unknown first write of the generator's row can have met that state."""
        first = self.unknown[0] if self.unknown else None
        if first is None:
            return True
        return state == (first.revision - 1 if first.action == "update" else first.revision)


@dataclass
class History:
    """All logs together. `inserts` are those whose key is not known, by (table, token)."""

    rows: dict[Reference, Expected] = field(default_factory=dict)
    inserts: list[Op] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    #: Unknown transactions of more than one write.
    unknown_transactions: dict[str, list[Op]] = field(default_factory=dict)
    torn_lines: int = 0


def read(logs: Sequence[Path]) -> History:
    """The history of all writes in these logs. Raises ConfigError for a file that is missing or not such a log."""
    history = History()
    ops: dict[str, Op] = {}
    for path in logs:
        try:
            with path.open(encoding="utf-8") as lines:
                _read_lines(path, lines, ops, history)
        except OSError as error:
            raise ConfigError(f"log {path} cannot be read: {error.strerror}") from None
    for op in sorted(ops.values(), key=lambda op: op.at):
        name = f"{op.outcome} {op.action}"
        history.counts[name] = history.counts.get(name, 0) + 1
        _apply(history, op)
    transactions: dict[str, list[Op]] = {}
    for op in ops.values():
        if op.outcome == "unknown":
            transactions.setdefault(op.tx, []).append(op)
    history.unknown_transactions = {tx: parts for tx, parts in transactions.items() if len(parts) > 1}
    return history


def _read_lines(path: Path, lines: Iterable[str], ops: dict[str, Op], history: History) -> None:
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            # A client that was killed inside a line. What it was about was not sent yet, or has no outcome.
            history.torn_lines += 1
            continue
        try:
            _take(line, ops, history)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}:{number}: not a line of a client's log: {type(error).__name__} {error}"
            ) from None


def _take(line: dict[str, Any], ops: dict[str, Op], history: History) -> None:
    event, name = line["event"], line["table"]
    table = TABLES[name]
    key = None if line["key"] is None else table.key(line["key"])
    if event == "stale-read":
        history.faults.append(Fault("stale read", name, key, line["op"], line.get("reason", "")))
    elif event == "invoke":
        ops[line["op"]] = Op(
            line["op"],
            line["tx"],
            line["at"],
            name,
            line["action"],
            key,
            line["revision"],
            line.get("token", ""),
            cascade=_references(line.get("cascade", ())),
            may_cascade=_references(line.get("may_cascade", ())),
        )
    elif event in ("ok", "fail", "fenced", "unknown"):
        op = ops[line["op"]]
        op.outcome, op.reason = event, line.get("reason", "")
        op.key = key if key is not None else op.key
    else:
        raise KeyError(f"event {event!r}")


def _references(pairs: Iterable[Sequence[Any]]) -> tuple[Reference, ...]:
    return tuple((name, TABLES[name].key(key)) for name, key in pairs)


def _apply(history: History, op: Op) -> None:
    """Takes one write, later than all before it, into what is expected."""
    if op.key is None or (op.action == "insert" and op.outcome != "ok"):
        history.inserts.append(op)
        return
    row = history.rows.setdefault((op.table, op.key), Expected(op.table, op.key))
    if op.outcome in ("fail", "fenced"):
        if op.reason == "LostUpdate" and not row.unknown and not row.may_be_gone:
            history.faults.append(Fault("lost update", op.table, op.key, op.op, f"to revision {op.revision}"))
        return
    row.last_op = op.op
    if op.outcome == "unknown":
        row.unknown.append(op)
    else:
        if op.action == "insert":
            if row.inserted_by:
                text = f"also given to {row.inserted_by}"
                history.faults.append(Fault("key given twice", op.table, op.key, op.op, text))
            row.inserted_by, row.token = op.op, op.token
        row.acknowledged = op.effect
        row.unknown.clear()
    for reference in op.cascade:
        child = history.rows.setdefault(reference, Expected(*reference))
        child.last_op = op.op
        if op.outcome == "ok":
            child.acknowledged = ABSENT
            child.unknown.clear()
        else:
            child.may_be_gone = True
    for reference in op.may_cascade:
        history.rows.setdefault(reference, Expected(*reference)).may_be_gone = True
