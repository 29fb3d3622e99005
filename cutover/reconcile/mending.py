"""Writing rows of the primary over those of the other side: batch by batch, each row only if it is still the one seen.

Nothing is written over a row that changed since it was confirmed, and nothing newer is overwritten beside the stream:

* update, delete: the sink's row is locked and checked first, and only then the primary is read. A change that the
  stream brings waits for the lock, and is newer than what was read.
* insert: there is no row to lock at the sink, so the primary's row is held against change (FOR SHARE) while a marker
  goes through the stream. An insert on its way has arrived by then, and no deletion can happen until the row is there.
* all: the last lock before the write is one on the sink's epoch row. Every effect of a switch takes it too, so what is
  written here is written while this side is not the primary, whatever was known when the repair began.
* all: behind that lock both sessions are asked for their servers. What a promoted standby or a restored backup has lost
  is `extra` at the other side, and would be deleted here: the last copy. So a person looks first (design 5.6).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from cutover import faults
from cutover.control import identity
from cutover.control.reports import Difference
from cutover.errors import NotYet
from cutover.postgres import compare, epoch, repair
from cutover.postgres.applier import applier_session
from cutover.postgres.databases import Direction, Pair, Side, ended_after, other, source_side
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape

#: Seconds that the primary's rows may be held while a marker goes through the stream, and that a lock is waited for.
HOLD = 3.0
LOCK_TIMEOUT = "2s"
#: The session at the primary that holds rows holds up the application: no longer, whatever becomes of this process.
HOLDER_LIMITS = {"idle_in_transaction_session_timeout": "10s", "statement_timeout": "10s"}
#: Seconds for one write of a batch, where the network says nothing.
WRITE_SECONDS = 60.0

#: How an outcome begins that a person has to look at.
BLOCKED = "blocked"
WRITTEN = "written"
_CHANGED = "changed since it was confirmed"

#: Errors of a single row that another row or a rule of the table causes; the row goes to a person.
_BLOCKED = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.GeneratedAlwaysError)
#: Somebody else holds the row; nothing was written, and the next time it may be free.
_BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


@dataclass(frozen=True)
class Wanted:
    """A key to be written, and its difference as it was confirmed."""

    key: Key
    difference: Difference


class _Inexact(Exception):
    """A value did not arrive as it was read; the transaction is rolled back."""


@dataclass(frozen=True)
class Ground:
    """Everything that writing one table needs."""

    pair: Pair
    direction: Direction
    source: asyncpg.Connection
    sink: asyncpg.Connection
    source_shape: Shape
    sink_shape: Shape
    settle: Callable[[], Awaitable[None]]
    #: The servers that the differences were found on, as far as they are noted.
    known: Mapping[Side, identity.Identity]

    async def require_known(self, source: asyncpg.Connection, sink: asyncpg.Connection) -> None:
        """Raises AnotherServer where one of the two is on a server that nobody has accepted."""
        here = source_side(self.direction)
        await identity.require(self.pair, self.known, here, source)
        await identity.require(self.pair, self.known, other(here), sink)


Write = Callable[[Ground, asyncpg.Connection, Sequence[Wanted]], Awaitable[dict[Key, str]]]


async def in_one_or_singly(work: Ground, write: Write, steps: Sequence[Wanted]) -> dict[Key, str]:
    """All rows in one transaction; where one of them cannot be written, each in its own."""
    async with applier_session(work.pair.sink(work.direction), work.pair.service, "repair") as writer:
        await compare.read_alike(writer)
        await writer.execute("SELECT pg_catalog.set_config('lock_timeout', $1, false)", LOCK_TIMEOUT)
        outcome: dict[Key, str] = {}
        groups: list[Sequence[Wanted]] = [steps]
        while groups:
            group = groups.pop()
            try:
                async with faults.step("repair.write"):
                    with ended_after(WRITE_SECONDS, writer, work.source, work.sink):
                        outcome.update(await write(work, writer, group))
            except (*_BLOCKED, _Inexact) as error:
                if len(group) > 1:
                    groups.extend([step] for step in group)
                else:
                    outcome[group[0].key] = (
                        f"{BLOCKED}: the row cannot be written as it is ({type(error).__name__.lstrip('_')})"
                    )
            except _BUSY:
                outcome.update({step.key: "the row was busy" for step in group})
        return outcome


async def update(work: Ground, writer: asyncpg.Connection, steps: Sequence[Wanted]) -> dict[Key, str]:
    outcome = {step.key: _CHANGED for step in steps}
    async with writer.transaction():
        seen = await repair.lock_rows(writer, work.sink_shape, [s.key for s in steps])
        still = [s.key for s, look in zip(steps, seen, strict=True) if look.digest == s.difference.target_hash]
        found = await repair.read_rows(work.source, work.source_shape, still, lock=False)
        expected = {s.key: s.difference.source_hash for s in steps}
        chosen = {still[n]: row for n, row in found.items() if row.look.digest == expected[still[n]]}
        await _require_other_side(work, work.source, writer)
        digests = await repair.update_rows(writer, work.sink_shape, list(chosen), list(chosen.values()))
        for key, row in chosen.items():
            if digests.get(row.key) != row.look.digest:
                raise _Inexact
            outcome[key] = WRITTEN
    return outcome


async def delete(work: Ground, writer: asyncpg.Connection, steps: Sequence[Wanted]) -> dict[Key, str]:
    outcome = {step.key: _CHANGED for step in steps}
    async with writer.transaction():
        seen = await repair.lock_rows(writer, work.sink_shape, [s.key for s in steps])
        still = [s.key for s, look in zip(steps, seen, strict=True) if look.digest == s.difference.target_hash]
        present = await compare.look(work.source, work.source_shape, still)
        chosen = [key for key, (_, look) in zip(still, present, strict=True) if look.digest is None]
        await _require_other_side(work, work.source, writer)
        await repair.delete_rows(writer, work.sink_shape, chosen)
        outcome.update(dict.fromkeys(chosen, WRITTEN))
    return outcome


async def insert(work: Ground, writer: asyncpg.Connection, steps: Sequence[Wanted]) -> dict[Key, str]:
    settings = {**compare.TEXT_SETTINGS, **HOLDER_LIMITS, "lock_timeout": LOCK_TIMEOUT}
    async with work.pair.source(work.direction).session(f"cutover-repair/{work.pair.service}", **settings) as holder:
        with ended_after(WRITE_SECONDS, holder):
            async with holder.transaction():
                return await _insert_held(work, writer, holder, steps)


async def _insert_held(
    work: Ground, writer: asyncpg.Connection, holder: asyncpg.Connection, steps: Sequence[Wanted]
) -> dict[Key, str]:
    outcome = {step.key: _CHANGED for step in steps}
    expected = {s.key: s.difference.source_hash for s in steps}
    keys = list(expected)
    found = await repair.read_rows(holder, work.source_shape, keys, lock=True)
    held = {keys[n]: row for n, row in found.items() if row.look.digest == expected[keys[n]]}
    try:
        await asyncio.wait_for(work.settle(), HOLD)
    except (TimeoutError, NotYet):
        return {step.key: "the stream is too far behind" for step in steps}
    async with writer.transaction():
        seen = await compare.look(writer, work.sink_shape, list(held))
        absent = {k: row for (k, row), (_, look) in zip(held.items(), seen, strict=True) if look.digest is None}
        await _require_other_side(work, holder, writer)
        digests = await repair.insert_rows(writer, work.sink_shape, list(absent.values()))
        for key, row in absent.items():
            if row.key not in digests:
                outcome[key] = f"{BLOCKED}: another row holds one of its unique values"
            elif digests[row.key] != row.look.digest:
                raise _Inexact
            else:
                outcome[key] = WRITTEN
        # a server that has ended the holder's session meanwhile has let its rows go: then nothing is inserted
        await holder.execute("SELECT 1")
    return outcome


async def _require_other_side(work: Ground, reader: asyncpg.Connection, writer: asyncpg.Connection) -> None:
    """Raises Refused where a switch has made the sink the primary; until the commit none can.

    AnotherServer where `reader`, who has read the source's rows, or `writer` is not on the server that is noted.
    NotYet where the source is fenced: a switch has perhaps begun the stream of the way back, and with a server below
    16 that would bring the row to where it came from. Looked at under the lock, for which a section waits at the sink.
    """
    await epoch.hold_not_primary(writer, work.pair.service)
    known = await epoch.read(work.source, work.pair.service)
    if known is not None and known.primary_side != known.side:
        raise NotYet(f"{work.pair.service}: a switch is under way; nothing is repaired until it has ended")
    await work.require_known(reader, writer)
