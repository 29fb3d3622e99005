"""Mending confirmed differences by the table's rule, on the side that is not the primary (design 5.4).

A plan first, then the deed. `source-wins`: the primary's row is written over the other side's. `last-write-wins`: the
same, unless the other side's timestamp is newer; the primary would have to change then, so it is a case for a person (a
tie or a missing time: the primary wins, with an alert). `manual`: always a case. What a person decided about a case is
applied here, with the next pass, to the very rows that it was about.

How rows are written, and why nothing newer is overwritten: `cutover.reconcile.mending`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

from cutover.control import conflicts as cases
from cutover.control import identity
from cutover.control.conflicts import Case
from cutover.control.database import Control
from cutover.control.reports import Difference
from cutover.errors import GateClosed, NotYet
from cutover.plan.models import Table
from cutover.postgres import compare, repair
from cutover.postgres.databases import Direction, Pair
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import Key, key_from_json
from cutover.postgres.shapes import shapes
from cutover.reconcile.mending import BLOCKED, HOLD, WRITTEN, Ground, Wanted, delete, in_one_or_singly, insert, update
from cutover.reconcile.sides import both_sides

Action = Literal["insert", "update", "delete", "case", "skip"]
Settle = Callable[[], Awaitable[None]]

#: Rows written in one transaction: small, for their locks are held meanwhile.
BATCH = 200
#: The reason of a row that last-write-wins could not date: it is written, and told.
UNDATED = "no newer side can be told, so the source wins"
EQUAL = "equal by now"
REPAIRED = "repaired"
AGAIN = "different again"


@dataclass(frozen=True)
class Step(Wanted):
    """What is to be done about one key, by which rule, and why. `outcome` is empty in a dry run."""

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
    #: Repaired though nobody can tell which side was newer.
    undated: int = 0

    def add(self, steps: Sequence[Step]) -> None:
        """Counts a batch, and keeps its steps."""
        self.steps.extend(steps)
        self.count(steps)

    def count(self, steps: Sequence[Step]) -> None:
        """Counts a batch alone."""
        for step in steps:
            self.repaired += step.outcome == REPAIRED
            self.undated += step.outcome == REPAIRED and step.reason == UNDATED
            self.still_different += step.outcome == AGAIN
            self.cases += step.action == "case"
            self.skipped += step.action != "case" and step.outcome not in (REPAIRED, AGAIN, "")

    def told(self, rules: Table) -> str:
        """One sentence (no keys) for an alert where the plan or the rule itself wants one, else ""."""
        if not self.undated and not (rules.alert_on_conflict and (self.repaired or self.cases)):
            return ""
        text = (
            f"{self.repaired} rows repaired on the side that is not the primary, "
            f"{self.cases} cases opened for a person (rule {rules.conflict})"
        )
        if self.undated:
            text += f"; of {self.undated} rows the times are equal or missing, so the source won"
        return text


async def resolve(
    pair: Pair,
    direction: Direction,
    table: TableName,
    rules: Table,
    differences: Sequence[Difference],
    control: Control,
    stream_settle: Settle,
    *,
    dry_run: bool = False,
    actor: str = "reconciliation",
    alert: Callable[[str], Awaitable[None]] | None = None,
) -> Resolution:
    """Repairs confirmed differences at the sink of `direction`, or opens cases; may be run again at any time.

    `stream_settle` is `run_pass`'s `settle`. `alert` is told in one sentence (no keys) where the table's rule wants it.
    With `dry_run` nothing is written anywhere. Raises what `run_pass` raises, NotYet while another repair writes,
    Refused where a switch has made the sink the primary, and AnotherServer before anything is written or opened where
    a server is another one than noted.
    """
    resolution = Resolution()

    async def batches() -> AsyncIterator[Sequence[Difference]]:
        yield differences

    work = repairs(pair, direction, table, rules, batches(), control, stream_settle, dry_run=dry_run, actor=actor)
    async with aclosing(work):
        async for steps in work:
            resolution.add(steps)
            if alert and not dry_run and (text := resolution.told(rules)):
                # after each batch, so that a kill loses none; alerts that repeat are counted, not sent
                await alert(f"{pair.service}.{table}: {text}")
    return resolution


async def repairs(
    pair: Pair,
    direction: Direction,
    table: TableName,
    rules: Table,
    differences: AsyncIterable[Sequence[Difference]],
    control: Control,
    settle: Settle,
    *,
    dry_run: bool = False,
    actor: str = "reconciliation",
) -> AsyncGenerator[list[Step], None]:
    """As `resolve`, batch by batch, so that memory does not grow with the number of differences.

    What was yielded is done for good; stopped there and begun again, it finds those rows equal and passes them over.
    """
    known = await identity.noted_of(control, pair)
    async with both_sides(pair, direction, f"repair/{pair.service}") as (source, sink):
        source_shape, sink_shape = await shapes(source, sink, table, pair.passes_over(table))
        if not source_shape.keyed_by:
            raise GateClosed(
                f"table {table} has no key, so its rows cannot be told apart and none can be mended: add a primary key"
            )
        work = Ground(pair, direction, source, sink, source_shape, sink_shape, settle, known)
        decided = await cases.decided(control, pair.migration, pair.service, str(table))
        async for found in differences:
            for start in range(0, len(found), BATCH):
                await work.require_known(source, sink)
                steps = await _plan(work, rules, found[start : start + BATCH], decided)
                yield steps if dry_run else await _act(work, control, actor, rules, steps)


async def _plan(
    work: Ground, rules: Table, differences: Sequence[Difference], decided: Mapping[str, Case]
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
            reason = EQUAL
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
            reason = UNDATED if key in newer else "the source wins"
            if rules.conflict == "last-write-wins" and newer.get(key) is False:
                reason = "the source is newer"
        steps.append(Step(key, difference, action, reason))
    return steps


async def _newer_at_sink(work: Ground, rules: Table, keys: Sequence[Key]) -> dict[Key, bool | None]:
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


async def _act(work: Ground, control: Control, actor: str, rules: Table, steps: list[Step]) -> list[Step]:
    outcome: dict[Key, str] = {}
    audit = _Audit(work, control, actor, rules)
    await audit.begun(steps)
    # deletions first: an extra row may hold the unique value that another one needs
    for action, write in (("delete", delete), ("update", update), ("insert", insert)):
        chosen = [s for s in steps if s.action == action]
        if chosen:
            outcome.update(await in_one_or_singly(work, write, chosen))
    written = [key for key, text in outcome.items() if text == WRITTEN]
    outcome.update(await _looked_at_again(work, written))
    done: list[Step] = []
    for step in steps:
        result = outcome.get(step.key, "" if step.action == "skip" else step.action)
        if result.startswith(BLOCKED):
            step, result = replace(step, action="case", reason=result), "case"
        if step.action == "case":
            await cases.open_case(
                control, migration=work.pair.migration, service=work.pair.service, table=step.difference.table,
                key_json=step.difference.key_json, kind=step.difference.kind, rule=rules.conflict,
                detail={"reason": step.reason, "direction": work.direction,
                        "source_hash": step.difference.source_hash, "target_hash": step.difference.target_hash},
                actor=actor, decide_within=rules.decide_within,
            )  # fmt: skip
        done.append(replace(step, outcome=result or "skip"))
    if repaired := [s.difference for s in done if s.outcome == REPAIRED]:
        keys = [difference.key_json for difference in repaired]
        await cases.close_repaired(
            control, work.pair.migration, work.pair.service, repaired[0].table, keys, actor=actor
        )
    await audit.ended(done)
    return done


async def _looked_at_again(work: Ground, keys: Sequence[Key]) -> dict[Key, str]:
    """What the sides say of rows that were written. One that differs may be on its way: once more, after a marker."""
    found: dict[Key, str] = {}
    left = list(keys)
    for waits in (False, True):
        if waits and left:
            try:
                await asyncio.wait_for(work.settle(), HOLD)
            except (TimeoutError, NotYet):
                break
        here, there = await asyncio.gather(
            compare.look(work.source, work.source_shape, left), compare.look(work.sink, work.sink_shape, left)
        )
        equal = {key for key, (_, a), (_, b) in zip(left, here, there, strict=True) if a.digest == b.digest}
        found.update(dict.fromkeys(equal, REPAIRED))
        left = [key for key in left if key not in equal]
    return {**dict.fromkeys(left, AGAIN), **found}


@dataclass(frozen=True)
class _Audit:
    """A repair in the audit log: what was about to be written, before the first write, and what came of it."""

    work: Ground
    control: Control
    actor: str
    rules: Table

    async def begun(self, steps: Sequence[Step]) -> None:
        counts = {action: sum(s.action == action for s in steps) for action in ("insert", "update", "delete")}
        if any(counts.values()):
            await self._append("repair.begun", {name: count for name, count in counts.items() if count})

    async def ended(self, steps: Sequence[Step]) -> None:
        if written := sum(s.outcome in (REPAIRED, AGAIN) for s in steps):
            await self._append("repair", {"rows": written})

    async def _append(self, action: str, counts: Mapping[str, int]) -> None:
        detail: dict[str, Any] = {
            "table": str(self.work.sink_shape.table),
            **counts,
            "rule": self.rules.conflict,
            "direction": self.work.direction,
            "database": self.work.pair.sink(self.work.direction).name,
        }
        pair = self.work.pair
        async with self.control.acting(
            self.actor, action, migration=pair.migration, service=pair.service, detail=detail
        ):
            pass
