"""The janitor: ends what a strong write has left prepared, by its decision, and tidies decisions.

A branch whose process died before the decision is aborted, after it has been decided so at the primary (see
`postgres.two_phase`); one whose decision is there is committed. Any number of janitors may be at work.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import asyncpg

from cutover import faults
from cutover.alerts.store import Alert, Severity, raise_alert
from cutover.control.database import Control
from cutover.postgres import two_phase
from cutover.postgres.databases import CONNECTION_ERRORS, DIRECTIONS, FAILURES, Direction, Pair
from cutover.postgres.two_phase import Branch, Decision

_log = logging.getLogger(__name__)

#: Seconds for which a branch is its own process's business.
OWN_BUSINESS = 5.0
#: Seconds after which a branch should have been ended by anybody: its locks hold up the service.
TOO_OLD = 30.0
#: Seconds between two rounds.
EVERY = 5.0
#: Seconds for which a decision in flight is waited for, in one round.
LOCK_TIMEOUT = 2.0
#: Seconds for which decisions on branches that are gone are kept.
KEEP = 3600.0
#: Seconds between two prunings.
PRUNE_EVERY = 60.0


@dataclass(frozen=True)
class Resolved:
    """A branch that was found in doubt; `decision` None: it stands, for its decision is in flight or by `problem`."""

    gid: str
    direction: Direction
    age: float
    decision: Decision | None
    problem: str = ""


async def resolve(pair: Pair, direction: Direction, *, older_than: float = 0.0) -> list[Resolved]:
    """Ends the branches of one direction that are at least that many seconds old; what became of each.

    With the source fenced no decision is in flight any more, so that afterwards none of ours is left at the sink.
    The role has to be the one that prepared them, or a superuser; one that cannot be ended keeps no other from it.
    Raises Unreachable and errors of connections: run it again, what is done is done.
    """
    label = f"cutover-janitor/{pair.service}"
    async with pair.sink(direction).session(label, lock_timeout=f"{LOCK_TIMEOUT:g}s") as sink:
        open_ones = [branch for branch in await two_phase.branches(sink, pair.service) if branch.age >= older_than]
        if not open_ones:
            return []
        async with pair.source(direction).session(label) as source:
            return [await _try_to_resolve(source, sink, pair.service, direction, branch) for branch in open_ones]


async def _try_to_resolve(
    source: asyncpg.Connection, sink: asyncpg.Connection, service: str, direction: Direction, branch: Branch
) -> Resolved:
    try:
        return await _resolve(source, sink, service, direction, branch)
    except asyncpg.PostgresError as error:
        if isinstance(error, CONNECTION_ERRORS):
            raise
        _log.warning("%s: branch %s was not ended: %s", service, branch.gid, type(error).__name__)
        return Resolved(branch.gid, direction, branch.age, None, type(error).__name__)


async def resolve_on(
    source: asyncpg.Connection, sink: asyncpg.Connection, service: str, direction: Direction
) -> list[Resolved]:
    """The same for all branches on open connections, for inside a write pause."""
    return [
        await _resolve(source, sink, service, direction, branch) for branch in await two_phase.branches(sink, service)
    ]


async def _resolve(
    source: asyncpg.Connection, sink: asyncpg.Connection, service: str, direction: Direction, branch: Branch
) -> Resolved:
    try:
        async with faults.step("janitor.decide"):
            decision = await two_phase.decide(source, branch.gid, service, LOCK_TIMEOUT)
    except asyncpg.LockNotAvailableError:
        return Resolved(branch.gid, direction, branch.age, None)
    async with faults.step("janitor.end"):
        ended = await two_phase.end(sink, branch.gid, decision)
    if ended:
        _log.info("%s: branch %s, %.1f s old, was ended by %s", service, branch.gid, branch.age, decision)
    return Resolved(branch.gid, direction, branch.age, decision)


class Janitor:
    """Looks after one service's branches at both of its databases, until it is cancelled."""

    def __init__(self, pair: Pair, control: Control | None = None) -> None:
        self.pair = pair
        self.control = control
        self._label = f"cutover-janitor/{pair.service}"

    async def resolve(self, *, older_than: float = OWN_BUSINESS) -> list[Resolved]:
        """Both directions; see the function. Branches younger than `older_than` seconds are left alone."""
        found: list[Resolved] = []
        for direction in DIRECTIONS:
            found += await resolve(self.pair, direction, older_than=older_than)
        return found

    async def prune(self, *, keep_seconds: float = KEEP) -> int:
        """Deletes decisions that nobody may ask for any more, at both databases; how many.

        What a side that is away leaves undone is done the next time.
        """
        pruned = 0
        for direction in DIRECTIONS:
            for prune in (self._prune_writes, partial(self._prune_branches, keep_seconds=keep_seconds)):
                try:
                    pruned += await prune(direction)
                except FAILURES as error:
                    _log.debug("%s: decisions were not pruned: %s", self.pair.service, type(error).__name__)
        return pruned

    async def _prune_writes(self, direction: Direction) -> int:
        async with self.pair.source(direction).session(self._label) as source:
            if not await two_phase.installed(source, self.pair.service):
                return 0
            return await two_phase.prune_writes(source)

    async def _prune_branches(self, direction: Direction, keep_seconds: float) -> int:
        async with (
            self.pair.sink(direction).session(self._label) as sink,
            self.pair.source(direction).session(self._label) as source,
        ):
            if not await two_phase.installed(source, self.pair.service):
                return 0
            standing = [branch.gid for branch in await two_phase.branches(sink, self.pair.service)]
            return await two_phase.prune(source, self.pair.service, standing, keep_seconds)

    async def run(self) -> None:
        """One round at once, then all the time. A round that fails is tried again; what stays too long is told."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_resolving())
            tasks.create_task(self._keep_pruning())

    async def _keep_resolving(self) -> None:
        while True:
            try:
                await self._tell([one for one in await self.resolve() if one.age > TOO_OLD])
            except FAILURES as error:
                _log.debug("%s: the janitor's round failed: %s", self.pair.service, type(error).__name__)
                await self._look_for_old_ones()
            await asyncio.sleep(EVERY * random.uniform(0.8, 1.2))

    async def _keep_pruning(self) -> None:
        while True:
            await self.prune()
            await asyncio.sleep(PRUNE_EVERY * random.uniform(0.8, 1.2))

    async def _look_for_old_ones(self) -> None:
        """A branch that cannot be ended, for the primary is away, still holds its locks: that is told too."""
        for direction in DIRECTIONS:
            try:
                async with self.pair.sink(direction).session(self._label) as sink:
                    branches = await two_phase.branches(sink, self.pair.service)
            except FAILURES as error:
                _log.debug("%s: branches were not counted: %s", self.pair.service, type(error).__name__)
                continue
            await self._tell([Resolved(b.gid, direction, b.age, None) for b in branches if b.age > TOO_OLD])

    async def _tell(self, old: Sequence[Resolved]) -> None:
        if not old:
            return
        oldest = max(old, key=lambda one: one.age)
        left = sum(one.decision is None for one in old)
        text = (
            f"{len(old)} prepared transactions of strong writes stood in doubt for more than {TOO_OLD:g} s, the oldest "
            f"for {oldest.age:.0f} s ({oldest.gid}); {left} of them still do and hold their locks: look whether both "
            "databases answer, and whether a janitor has run"
        )
        if refused := next((one for one in old if one.problem), None):
            text += (
                f"; {refused.gid} was refused ({refused.problem}): end it as a superuser at the {refused.direction} "
                "stream's sink, by its row in cutover.decision at the source"
            )
        if self.control is None:
            _log.error("%s: %s", self.pair.service, text)
            return
        severity: Severity = "critical" if left else "warning"
        alert = Alert("in-doubt", severity, self.pair.migration, self.pair.service, text, subject=oldest.direction)
        try:
            await raise_alert(self.control, alert)
        except FAILURES as error:
            _log.error("%s: %s (not recorded: %s)", self.pair.service, text, type(error).__name__)
