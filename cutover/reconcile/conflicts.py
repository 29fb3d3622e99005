"""Mending confirmed differences by the table's rule, on the side that is not the primary (design 5.4).

A plan first, then the deed. `source-wins`: the primary's row is written over the other side's. `last-write-wins`: the
same, unless the other side's timestamp is newer; the primary would have to change then, so it is a case for a person (a
tie or a missing time: the primary wins). `manual`: always a case. What a person decided about a case is applied here,
with the next pass, to the very rows that it was about.

Nothing is written over a row that changed since it was confirmed, and nothing newer is overwritten beside the stream:

* update, delete: the sink's row is locked and checked first, and only then the primary is read. A change that the
  stream brings waits for the lock, and is newer than what was read.
* insert: there is no row to lock at the sink, so the primary's row is held against change (FOR SHARE) while a marker
  goes through the stream. An insert on its way has arrived by then, and no deletion can happen until the row is there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

import asyncpg

from cutover.control import conflicts as cases
from cutover.control.conflicts import Case
from cutover.control.database import Control
from cutover.control.reports import Difference
from cutover.errors import GateClosed, NotYet
from cutover.plan.models import Table
from cutover.postgres import compare, repair
from cutover.postgres.applier import applier_session
from cutover.postgres.databases import Direction, Pair
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key, key_from_json
from cutover.postgres.shapes import Shape, shapes
from cutover.reconcile.sides import both_sides

Action = Literal["insert", "update", "delete", "case", "skip"]

#: Rows written in one transaction: small, for their locks are held meanwhile.
BATCH = 200
#: Seconds that the primary's rows may be held while a marker goes through the stream, and that a lock is waited for.
HOLD = 3.0
LOCK_TIMEOUT = "2s"

#: Errors of a single row that another row or a rule of the table causes; the row goes to a person.
_BLOCKED = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.GeneratedAlwaysError)


@dataclass(frozen=True)
class Step:
    """What is to be done about one key, by which rule, and why. `outcome` is empty in a dry run."""

    key: Key
    difference: Difference
    action: Action
    reason: str
    outcome: str = ""


@dataclass
class Resolution:
    """The steps of a repair and what became of them, in counts of keys."""

    steps: list[Step] = field(default_factory=list)
    repaired: int = 0
    cases: int = 0
    skipped: int = 0
    #: Written, and different again when looked at: the next pass decides.
    still_different: int = 0


class _Inexact(Exception):
    """A value did not arrive as it was read; the transaction is rolled back."""


@dataclass(frozen=True)
class _Repair:
    """Everything that writing one table needs."""

    pair: Pair
    direction: Direction
    source: asyncpg.Connection
    sink: asyncpg.Connection
    source_shape: Shape
    sink_shape: Shape
    settle: Callable[[], Awaitable[None]]


async def resolve(
    pair: Pair,
    direction: Direction,
    table: TableName,
    rules: Table,
    differences: Sequence[Difference],
    control: Control,
    stream_settle: Callable[[], Awaitable[None]],
    *,
    dry_run: bool = False,
    actor: str = "reconciliation",
    alert: Callable[[str], Awaitable[None]] | None = None,
) -> Resolution:
    """Repairs confirmed differences at the sink of `direction`, or opens cases; may be run again at any time.

    `stream_settle` is `run_pass`'s `settle`. `alert` is told in one sentence (no keys) where the table's rule wants it.
    With `dry_run` nothing is written anywhere. Raises what `run_pass` raises, and NotYet while another repair writes.
    """
    resolution = Resolution()
    async with both_sides(pair, direction, f"repair/{pair.service}") as (source, sink):
        source_shape, sink_shape = await shapes(source, sink, table, pair.passes_over(table))
        if not source_shape.keyed_by:
            raise GateClosed(
                f"table {table} has no key, so its rows cannot be told apart and none can be mended: add a primary key"
            )
        work = _Repair(pair, direction, source, sink, source_shape, sink_shape, stream_settle)
        decided = (
            await cases.decided(control, pair.migration, pair.service, differences[0].table) if differences else {}
        )
        for start in range(0, len(differences), BATCH):
            steps = await _plan(work, rules, differences[start : start + BATCH], decided)
            if not dry_run:
                steps = await _act(work, control, actor, rules, steps)
                if rules.alert_on_conflict and alert:
                    await _tell(alert, pair, table, rules, steps)
            _count(resolution, steps)
    return resolution


async def _plan(
    work: _Repair, rules: Table, differences: Sequence[Difference], decided: Mapping[str, Case]
) -> list[Step]:
    keys = [key_from_json(d.key_json) for d in differences]
    left, right = await asyncio.gather(
        compare.look(work.source, work.source_shape, keys), compare.look(work.sink, work.sink_shape, keys)
    )
    newer = await _newer_at_sink(work, rules, keys)
    steps: list[Step] = []
    for key, difference, (_, here), (_, there) in zip(keys, differences, left, right, strict=True):
        action: Action = "skip"
        primary_wins: Action = "delete" if here.digest is None else "insert" if there.digest is None else "update"
        case = decided.get(difference.key_json)
        if here.digest == there.digest:
            reason = "equal by now"
        elif not difference.confirmed:
            reason = "not confirmed"
        elif (here.digest, there.digest) != (difference.source_hash, difference.target_hash):
            reason = "changed since it was confirmed"
        elif case and case.lets_primary_win(difference, work.direction):
            action, reason = primary_wins, f"{case.decided_by} decided that the primary's row holds"
        elif rules.conflict == "manual":
            action, reason = "case", "the rule is manual"
        elif newer.get(key):
            action, reason = "case", "the other side is newer, so the primary would have to change"
        else:
            action = primary_wins
            reason = "no newer side can be told, so the source wins" if key in newer else "the source wins"
            if rules.conflict == "last-write-wins" and newer.get(key) is False:
                reason = "the source is newer"
        steps.append(Step(key, difference, action, reason))
    return steps


async def _newer_at_sink(work: _Repair, rules: Table, keys: Sequence[Key]) -> dict[Key, bool | None]:
    """For last-write-wins: True where the sink's row is newer, False where the source's is, None where unknown."""
    if rules.conflict != "last-write-wins" or not rules.timestamp:
        return {}
    left, right = await asyncio.gather(
        repair.timestamps(work.source, work.source_shape, keys, rules.timestamp),
        repair.timestamps(work.sink, work.sink_shape, keys, rules.timestamp),
    )
    newer: dict[Key, bool | None] = {}
    for key, here, there in zip(keys, left, right, strict=True):
        if here is None or there is None or Decimal(here) == Decimal(there):
            newer[key] = None
        else:
            newer[key] = Decimal(there) > Decimal(here)
    return newer


async def _act(work: _Repair, control: Control, actor: str, rules: Table, steps: list[Step]) -> list[Step]:
    outcome: dict[Key, str] = {}
    # deletions first: an extra row may hold the unique value that another one needs
    for action, write in (("delete", _delete), ("update", _update), ("insert", _insert)):
        chosen = [s for s in steps if s.action == action]
        if chosen:
            outcome.update(await _in_one_or_singly(work, write, chosen))
    left, right = await asyncio.gather(
        compare.look(work.source, work.source_shape, [s.key for s in steps]),
        compare.look(work.sink, work.sink_shape, [s.key for s in steps]),
    )
    done: list[Step] = []
    for step, (_, here), (_, there) in zip(steps, left, right, strict=True):
        result = outcome.get(step.key, step.action)
        if result == "written":
            result = "repaired" if here.digest == there.digest else "different again"
        if result.startswith("blocked"):
            step = Step(step.key, step.difference, "case", result)
            result = "case"
        if step.action == "case":
            await cases.open_case(
                control, migration=work.pair.migration, service=work.pair.service, table=step.difference.table,
                key_json=step.difference.key_json, kind=step.difference.kind, rule=rules.conflict,
                detail={"reason": step.reason, "direction": work.direction,
                        "source_hash": step.difference.source_hash, "target_hash": step.difference.target_hash},
                actor=actor,
            )  # fmt: skip
        done.append(Step(step.key, step.difference, step.action, step.reason, result))
    if repaired := [s.difference for s in done if s.outcome == "repaired"]:
        keys = [difference.key_json for difference in repaired]
        await cases.close_repaired(
            control, work.pair.migration, work.pair.service, repaired[0].table, keys, actor=actor
        )
    written = sum(s.outcome in ("repaired", "different again") for s in done)
    if written:
        detail = {
            "table": str(work.sink_shape.table),
            "rows": written,
            "rule": rules.conflict,
            "direction": work.direction,
        }
        async with control.acting(
            actor, "repair", migration=work.pair.migration, service=work.pair.service, detail=detail
        ):
            pass
    return done


Write = Callable[[_Repair, asyncpg.Connection, Sequence[Step]], Awaitable[dict[Key, str]]]


async def _in_one_or_singly(work: _Repair, write: Write, steps: Sequence[Step]) -> dict[Key, str]:
    """All rows in one transaction; where one of them cannot be written, each in its own."""
    async with applier_session(work.pair.sink(work.direction), work.pair.service, "repair") as writer:
        await compare.read_alike(writer)
        await writer.execute("SELECT pg_catalog.set_config('lock_timeout', $1, false)", LOCK_TIMEOUT)
        outcome: dict[Key, str] = {}
        groups: list[Sequence[Step]] = [steps]
        while groups:
            group = groups.pop()
            try:
                outcome.update(await write(work, writer, group))
            except (*_BLOCKED, _Inexact) as error:
                if len(group) > 1:
                    groups.extend([step] for step in group)
                else:
                    outcome[group[0].key] = (
                        f"blocked: the row cannot be written as it is ({type(error).__name__.lstrip('_')})"
                    )
            except asyncpg.LockNotAvailableError:
                outcome.update({step.key: "the row was busy" for step in group})
        return outcome


async def _update(work: _Repair, writer: asyncpg.Connection, steps: Sequence[Step]) -> dict[Key, str]:
    outcome = {step.key: "changed since it was confirmed" for step in steps}
    async with writer.transaction():
        seen = await repair.lock_rows(writer, work.sink_shape, [s.key for s in steps])
        still = [s.key for s, look in zip(steps, seen, strict=True) if look.digest == s.difference.target_hash]
        found = await repair.read_rows(work.source, work.source_shape, still, lock=False)
        expected = {s.key: s.difference.source_hash for s in steps}
        chosen = {still[n]: row for n, row in found.items() if row.look.digest == expected[still[n]]}
        digests = await repair.update_rows(writer, work.sink_shape, list(chosen), list(chosen.values()))
        for key, row in chosen.items():
            if digests.get(row.key) != row.look.digest:
                raise _Inexact
            outcome[key] = "written"
    return outcome


async def _delete(work: _Repair, writer: asyncpg.Connection, steps: Sequence[Step]) -> dict[Key, str]:
    outcome = {step.key: "changed since it was confirmed" for step in steps}
    async with writer.transaction():
        seen = await repair.lock_rows(writer, work.sink_shape, [s.key for s in steps])
        still = [s.key for s, look in zip(steps, seen, strict=True) if look.digest == s.difference.target_hash]
        present = await compare.look(work.source, work.source_shape, still)
        chosen = [key for key, (_, look) in zip(still, present, strict=True) if look.digest is None]
        await repair.delete_rows(writer, work.sink_shape, chosen)
        outcome.update(dict.fromkeys(chosen, "written"))
    return outcome


async def _insert(work: _Repair, writer: asyncpg.Connection, steps: Sequence[Step]) -> dict[Key, str]:
    outcome = {step.key: "changed since it was confirmed" for step in steps}
    expected = {s.key: s.difference.source_hash for s in steps}
    keys = list(expected)
    primary = work.pair.source(work.direction)
    settings = {**compare.TEXT_SETTINGS, "lock_timeout": LOCK_TIMEOUT}
    async with primary.session(f"cutover-repair/{work.pair.service}", **settings) as holder, holder.transaction():
        found = await repair.read_rows(holder, work.source_shape, keys, lock=True)
        held = {keys[n]: row for n, row in found.items() if row.look.digest == expected[keys[n]]}
        try:
            await asyncio.wait_for(work.settle(), HOLD)
        except (TimeoutError, NotYet):
            return {step.key: "the stream is too far behind" for step in steps}
        async with writer.transaction():
            seen = await compare.look(writer, work.sink_shape, list(held))
            absent = {k: row for (k, row), (_, look) in zip(held.items(), seen, strict=True) if look.digest is None}
            digests = await repair.insert_rows(writer, work.sink_shape, list(absent.values()))
            for key, row in absent.items():
                if row.key not in digests:
                    outcome[key] = "blocked: another row holds one of its unique values"
                elif digests[row.key] != row.look.digest:
                    raise _Inexact
                else:
                    outcome[key] = "written"
    return outcome


async def _tell(
    alert: Callable[[str], Awaitable[None]], pair: Pair, table: TableName, rules: Table, steps: Sequence[Step]
) -> None:
    repaired = sum(s.outcome == "repaired" for s in steps)
    opened = sum(s.action == "case" for s in steps)
    if repaired or opened:
        await alert(
            f"{pair.service}.{table}: {repaired} rows repaired on the side that is not the primary, "
            f"{opened} cases opened for a person (rule {rules.conflict})"
        )


def _count(resolution: Resolution, steps: Sequence[Step]) -> None:
    resolution.steps.extend(steps)
    for step in steps:
        resolution.repaired += step.outcome == "repaired"
        resolution.still_different += step.outcome == "different again"
        resolution.cases += step.action == "case"
        resolution.skipped += step.action != "case" and step.outcome not in ("repaired", "different again", "")
