"""Carrying a batch over: all at once, then with what stands in its way, then ever fewer keys, down to those at fault.

Unique values may change places between rows (`a` gives a name up, `b` takes it). The batch's own rows are deleted
before they are inserted; a row outside of the batch that is in the way has a change that waits as well, whatever its
shard, so its key's intents are read and go along. One without such a change is taken away while the sink lacks changes
(`outbox_gap`). What still fails is halved, until single keys are left that the sink refuses by themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from cutover.postgres import outbox_gap, outbox_sink, outbox_source, outbox_tables
from cutover.postgres.databases import Direction
from cutover.postgres.keys import Key
from cutover.postgres.outbox_source import Batch, Change
from cutover.streams.outbox.sessions import Ends

#: What a sink says of a row, and not of the moment: values and constraints.
_OF_THE_ROW = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,
)
#: Rows in the way of rows in the way: so many times the batch grows before it is halved.
_ROUNDS = 6


@dataclass(frozen=True)
class Refusal:
    """A change that the sink refuses by itself; `reason` names the kind of error and the constraint, no value."""

    change: Change
    sqlstate: str
    reason: str
    #: Whether another row may only be late in making way.
    may_pass: bool


@dataclass
class Outcome:
    """What became of a batch."""

    done: list[tuple[int, int]] = field(default_factory=list)
    applied: int = 0
    refused: list[Refusal] = field(default_factory=list)


class Applier:
    """Carries batches of one direction over, with sessions of its own."""

    def __init__(self, ends: Ends, service: str, direction: Direction) -> None:
        self.ends = ends
        self.service = service
        self.direction = direction
        #: How often in a row a key was refused because another row was in its way.
        self.strikes: Counter[tuple[str, Key]] = Counter()

    async def carry(self, batch: Batch, tokens: Mapping[int, int]) -> Outcome:
        """Applies the batch; its intents that are done with are not deleted yet.

        Raises StaleAttempt where a lease is not ours any more, Redefined where the sink's columns have changed, or its
        unique indexes and a row is in the way. Errors of the moment (connections, deadlocks) leave as they are, with
        nothing half done.
        """
        outcome = Outcome()
        await self._settle(batch.changes, batch.markers, tokens, outcome)
        if any(refusal.may_pass for refusal in outcome.refused):
            await outbox_tables.require_uniques(self.ends.sink, self.ends.flows.values())
        outcome.done += batch.other
        return outcome

    async def _settle(
        self, changes: Sequence[Change], markers: Sequence[str], tokens: Mapping[int, int], outcome: Outcome
    ) -> None:
        if not changes and not markers:
            return
        try:
            await self._apply(changes, markers, tokens, outcome)
            return
        except outbox_sink.IN_THE_WAY as error:
            if not await self._make_way(changes, tokens, outcome):
                await self._halve(changes, markers, tokens, outcome, error)
            elif markers:
                await self._settle([], markers, tokens, outcome)
        except _OF_THE_ROW as error:
            await self._halve(changes, markers, tokens, outcome, error)

    async def _apply(
        self,
        changes: Sequence[Change],
        markers: Sequence[str],
        tokens: Mapping[int, int],
        outcome: Outcome,
        *,
        replace: bool = False,
    ) -> None:
        outcome.applied += await outbox_sink.apply(
            self.ends.sink,
            self.service,
            self.direction,
            self.ends.flows,
            self.ends.sink_definition,
            changes,
            markers,
            tokens,
            replace=replace,
        )
        outcome.done += [intent for change in changes for intent in change.intents]

    async def _halve(
        self,
        changes: Sequence[Change],
        markers: Sequence[str],
        tokens: Mapping[int, int],
        outcome: Outcome,
        error: asyncpg.PostgresError,
    ) -> None:
        if len(changes) == 1:
            outcome.refused.append(_refusal(changes[0], error))
            await self._settle([], markers, tokens, outcome)
            return
        middle = len(changes) // 2
        await self._settle(changes[:middle], [], tokens, outcome)
        await self._settle(changes[middle:], markers, tokens, outcome)

    async def _make_way(self, changes: Sequence[Change], tokens: Mapping[int, int], outcome: Outcome) -> bool:
        """Takes the rows that are in the way along, in a new snapshot; False where that does not help."""
        keys = {(change.flow, change.key) for change in changes}
        for _ in range(_ROUNDS):
            size = len(keys)
            for name, blocking in (await self._in_the_way(changes, tokens)).items():
                keys |= {(name, key) for key in blocking}
            batch = await outbox_source.read_keys(
                self.ends.source, self.service, self.ends.flows, self.ends.source_definition, sorted(keys)
            )
            changes = batch.changes
            if not changes:
                return True  # another relay was faster
            await self._give_way(keys, changes, tokens)
            try:
                await self._apply(changes, [], tokens, outcome, replace=True)
                return True
            except outbox_sink.IN_THE_WAY:
                if len(keys) == size:
                    return False
            except _OF_THE_ROW:
                return False
        return False

    async def _give_way(self, keys: set[tuple[str, Key]], changes: Sequence[Change], tokens: Mapping[int, int]) -> None:
        """Takes away what is in the way of the changes, of these keys, and has no change that would take it along.

        Only while the sink lacks changes of before (`outbox_gap`).
        """
        alone = keys - {(change.flow, change.key) for change in changes}
        for name, flow in self.ends.flows.items():
            stray = sorted(key for table, key in alone if table == name)
            images = [c.image for c in changes if c.flow == name and c.image is not None]
            if stray and images:
                await outbox_gap.give_way(self.ends.sink, self.service, self.direction, flow, tokens, stray, images)

    async def _in_the_way(self, changes: Sequence[Change], tokens: Mapping[int, int]) -> dict[str, set[Key]]:
        """Keys of other rows that hold a unique value of these, by table; deleted ones that a copy revived go."""

        async def may() -> None:
            await outbox_sink.hold(self.ends.sink, self.service, self.direction, tokens)

        found: dict[str, set[Key]] = {}
        for name, flow in self.ends.flows.items():
            images = [c.image for c in changes if c.flow == name and c.image is not None]
            mine = {c.key for c in changes if c.flow == name}
            blocking = await outbox_sink.in_the_way(self.ends.sink, flow, images) - mine
            if blocking:
                await outbox_sink.sweep(self.ends.sink, self.service, flow, may, sorted(blocking))
                found[name] = blocking
        return found


def _refusal(change: Change, error: asyncpg.PostgresError) -> Refusal:
    parts = [type(error).__name__]
    for label, name in (("constraint", error.constraint_name), ("column", error.column_name)):
        if name:
            parts.append(f"{label} {name}")
    return Refusal(change, error.sqlstate or "", ", ".join(parts), isinstance(error, outbox_sink.IN_THE_WAY))
