"""Whether the final databases hold what the clients were told: every acknowledged write, no older row, no deleted one.

    python -m examples.ai_trader.check --log traffic-0.jsonl --log psql.jsonl

Where a service's rows must be is read from the control database, or said with --moved. Exit status 1: a violation.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from cutover.control.database import Control
from cutover.errors import ConfigError, CutoverError
from cutover.flags import store
from cutover.postgres.databases import Database
from cutover.settings import CONTROL, Settings
from examples.ai_trader.history import ABSENT, Fault, History, Op, State, read
from examples.ai_trader.tables import OWNERS, SERVICES, TABLES, Key

#: What may be wrong, and what it means.
KINDS: Mapping[str, str] = {
    "lost": "an acknowledged row is not there",
    "stale": "a row is older than the last acknowledged write of it",
    "resurrected": "a deleted row is there",
    "unexplained": "a row is at a revision that nobody wrote",
    "failed write is there": "an insert that was refused is there",
    "torn transaction": "of a transaction with an unknown outcome a part is there and a part is not",
    "key given twice": "two inserts were given the same key",
    "lost update": "a client's next write did not meet its last one",
    "stale read": "a client read an older row than it had been acknowledged",
}

_BATCH = 5_000
_SHOWN = 50
#: So that both sides print a row alike, whatever a role or database has set.
_AS_TEXT = {"TimeZone": "UTC", "DateStyle": "ISO", "IntervalStyle": "postgres", "extra_float_digits": "1"}


@dataclass
class Verdict:
    """What was checked and what was wrong; `violations` counts all, `shown` holds the first fifty."""

    writes: dict[str, int]
    rows_checked: int = 0
    unknown_done: int = 0
    unknown_not_done: int = 0
    torn_lines: int = 0
    violations: dict[str, int] = field(default_factory=dict)
    shown: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations

    def add(self, fault: Fault) -> None:
        self.violations[fault.kind] = self.violations.get(fault.kind, 0) + 1
        if len(self.shown) < _SHOWN:
            self.shown.append(fault)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True)
class Found:
    """Rows of one table as they are now."""

    revisions: Mapping[Key, State]
    tokens: Mapping[Key, str]
    keys: Mapping[str, Key]


@dataclass(frozen=True)
class Comparison:
    """One table at both sides; None rows where the table is not there (archived)."""

    rows_monolith: int | None
    rows_service: int | None
    equal: bool


async def check(
    logs: Sequence[Path], monolith: Database, owners: Mapping[str, str], sides: Mapping[str, Database]
) -> Verdict:
    """Compares the logs with the databases that are primary now.

    `owners`: table → service; `sides`: service → the database that is its primary, the monolith where it is not
    named. To be called when no client runs any more. Raises ConfigError for an unusable log, Unreachable.
    """
    history = await asyncio.to_thread(read, list(logs))
    found: dict[str, Found] = {}
    for name in TABLES:
        keys = [row.key for (table, _), row in history.rows.items() if table == name]
        tokens = [op.token for op in history.inserts if op.table == name and op.token]
        found[name] = await _find(sides.get(owners[name], monolith), name, keys, tokens)
    return judge(history, found)


def judge(history: History, found: Mapping[str, Found]) -> Verdict:
    """The comparison itself, with what was found in each table."""
    verdict = Verdict(dict(sorted(history.counts.items())), torn_lines=history.torn_lines)
    for fault in history.faults:
        verdict.add(fault)
    for (table, key), row in history.rows.items():
        verdict.rows_checked += 1
        state = found[table].revisions.get(key, ABSENT)
        token = found[table].tokens.get(key)
        if state != ABSENT and row.token and token != row.token:
            verdict.add(Fault("lost", table, key, row.inserted_by, "its key belongs to another row now"))
        elif not row.allows(state):
            known = [ABSENT if row.acknowledged is None else row.acknowledged, *(op.effect for op in row.unknown)]
            verdict.add(Fault(_kind(state, known), table, key, row.last_op, f"is {_say(state)}, {_expected(known)}"))
        for op in row.unknown[-1:]:
            verdict.unknown_done += state == op.effect
            verdict.unknown_not_done += state != op.effect
    for op in history.inserts:
        verdict.rows_checked += 1
        there = op.token in found[op.table].keys
        if op.outcome == "unknown":
            verdict.unknown_done += there
            verdict.unknown_not_done += not there
        elif there and not _inserted_later(history, op):
            verdict.add(Fault("failed write is there", op.table, found[op.table].keys[op.token], op.op, op.reason))
    for tx, ops in history.unknown_transactions.items():
        done = {fate for op in ops if (fate := _fate(history, found, op)) is not None}
        if len(done) > 1:
            verdict.add(Fault("torn transaction", ops[0].table, None, tx, f"{len(ops)} writes"))
    return verdict


def _kind(state: State, known: Sequence[State]) -> str:
    present = [revision for revision in known if revision != ABSENT]
    if state == ABSENT:
        return "lost"
    if not present:
        return "resurrected"
    return "stale" if state < min(present) else "unexplained"


def _say(state: State) -> str:
    return "absent" if state == ABSENT else f"at revision {state}"


def _expected(known: Sequence[State]) -> str:
    return "not " + " or ".join(_say(state) for state in dict.fromkeys(known))


def _inserted_later(history: History, op: Op) -> bool:
    """Whether the same token was inserted by another, acknowledged write (a text key that was tried again)."""
    return any(row.token == op.token and row.inserted_by != op.op for row in history.rows.values() if row.token)


def _fate(history: History, found: Mapping[str, Found], op: Op) -> bool | None:
    """Whether an unknown write was done; None where its row does not tell."""
    if op.key is None or op.action == "insert":
        return op.token in found[op.table].keys
    row = history.rows[(op.table, op.key)]
    if row.may_be_gone or op not in row.unknown or row.acknowledged == op.effect:
        return None  # taken along by another delete, overwritten since, or the same either way
    return found[op.table].revisions.get(op.key, ABSENT) == op.effect


async def _find(database: Database, name: str, keys: Sequence[Key], tokens: Sequence[str]) -> Found:
    table = TABLES[name]
    revisions: dict[Key, State] = {}
    names: dict[Key, str] = {}
    async with database.session("ai-trader check") as connection:
        records: list[asyncpg.Record] = []
        try:
            for batch in _batches(table.lookup(keys)):
                records += await connection.fetch(table.by_key, batch)
            for batch in _batches(tokens):
                records += await connection.fetch(table.by_token, batch)
        except asyncpg.UndefinedTableError:
            raise ConfigError(
                f"database {database.name!r} has no table {name!r}: is it really the primary of {table.service}?"
            ) from None
    for record in records:
        key = table.key(record["key"])
        revisions[key], names[key] = record["revision"], record["token"]
    return Found(revisions, names, {token: key for key, token in names.items()})


def _batches(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _BATCH):
        yield list(values[start : start + _BATCH])


async def compare_sides(
    monolith: Database, sides: Mapping[str, Database], owners: Mapping[str, str] = OWNERS, *, within: float = 10.0
) -> dict[str, Comparison]:
    """Rows and digest of each table at the monolith and at its service's database (`sides`: service → database).

    For two sides that a stream keeps alike while nobody writes; unequal tables are looked at again for `within`
    seconds. A table that one side has not is not unequal.
    """
    deadline = time.monotonic() + within
    compared: dict[str, Comparison] = {}
    wanted = [name for name in TABLES if owners[name] in sides]
    while wanted:
        for name in wanted:
            ours, theirs = await asyncio.gather(_digest(monolith, name), _digest(sides[owners[name]], name))
            equal = ours is None or theirs is None or ours == theirs
            compared[name] = Comparison(ours[0] if ours else None, theirs[0] if theirs else None, equal)
        wanted = [name for name in wanted if not compared[name].equal]
        if time.monotonic() >= deadline:
            break
        if wanted:
            await asyncio.sleep(0.25)
    return compared


async def _digest(database: Database, name: str) -> tuple[int, str] | None:
    async with database.session("ai-trader check", **_AS_TEXT) as connection:
        try:
            record = await connection.fetchrow(TABLES[name].digest)
        except asyncpg.UndefinedTableError:
            return None
    return (record[0], record[1]) if record is not None else None


async def primaries(settings: Settings, migration: str, moved: Sequence[str]) -> dict[str, Database]:
    """service → its database, for each service whose primary it is: `moved`, or what the control database says."""
    unknown = sorted(set(moved) - set(SERVICES) - {"all", "none"})
    if unknown:
        raise ConfigError(f"--moved {unknown[0]}: there is no such service; there are {', '.join(SERVICES)}")
    if not moved:
        control = await Control.open(settings.database(CONTROL))
        try:
            routes = await store.all(control, migration)
        finally:
            await control.close()
        moved = [service for service, route in routes.items() if route.primary_side == "service"]
    return {service: settings.database(name) for service, name in SERVICES.items() if {service, "all"} & set(moved)}


async def _main(options: argparse.Namespace) -> bool:
    settings = Settings.from_environment()
    monolith = settings.database("monolith")
    sides = await primaries(settings, options.migration, options.moved)
    verdict = await check(options.log, monolith, OWNERS, sides)
    report = verdict.as_json()
    equal = True
    if options.compare:
        services = {service: settings.database(name) for service, name in SERVICES.items()}
        compared = await compare_sides(monolith, services)
        report["sides"] = {name: asdict(comparison) for name, comparison in compared.items()}
        equal = all(comparison.equal for comparison in compared.values())
    print(json.dumps(report, indent=2))
    return verdict.ok and equal


def main() -> int:
    """The command: the verdict as JSON; exit status 1 for a violation, 2 if it could not be checked."""
    parser = argparse.ArgumentParser(description="Compare the clients' logs with the final databases.")
    parser.add_argument("--log", type=Path, action="append", required=True)
    parser.add_argument("--moved", action="append", default=[], help="a service that has moved, `all` or `none`")
    parser.add_argument("--migration", default="ai-trader")
    parser.add_argument("--compare", action="store_true", help="compare all rows of the two sides as well")
    try:
        return 0 if asyncio.run(_main(parser.parse_args())) else 1
    except CutoverError as error:
        print(f"check: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
