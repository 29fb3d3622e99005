"""Only what changed: the keys written at the source since the last verified pass, and their comparison by key.

They come from a slot of our own on the source, consumed all along, so that inside the fence only a short tail is left
and its time does not grow with the tables (design 5.6, step 7). A key is *dirty* from its change until it was seen
equal on both sides, or until a full pass that began later has verified its table. A table without such a pass since
the slot was made is dirty as a whole, and so is one that was truncated: nothing may be concluded from its keys.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg

from cutover.control import notes, switches
from cutover.control.database import Control
from cutover.control.reports import TableReport
from cutover.control.switches import SwitchRow
from cutover.errors import GateClosed, NotYet, Unreachable
from cutover.postgres import catalog, changes, compare, replication
from cutover.postgres.catalog import TableInfo
from cutover.postgres.changes import Changes, TableKey
from cutover.postgres.databases import Direction, Pair, Through, source_side
from cutover.postgres.identifiers import TableName
from cutover.postgres.keys import key_from_json, key_json
from cutover.postgres.shapes import Shape, shapes
from cutover.reconcile import marking
from cutover.reconcile.marking import ADOPT, CLEAR, DIRTY, KEEP, RESET, WHOLE, Followed, columns
from cutover.reconcile.sides import both_sides, translated

#: Messages taken off the slot at once.
MESSAGES = 10_000
#: Keys compared by one statement.
BATCH = 5_000
#: So few keys are compared in a moment, inside the fence too.
ENOUGH = 500
#: Rounds in which the tail gets shorter while the application goes on writing.
ROUNDS = 5
#: Seconds for which another reader of the slot is waited out (our own background reader, mostly).
PATIENCE = 5.0


@dataclass(frozen=True)
class Verdict:
    """Whether all keys changed since the last verified pass hold the same rows on both sides."""

    equal: bool
    keys: int
    #: Keys that differ, by table.
    differing: dict[TableName, int]
    #: Tables of which the keys alone say nothing: no verified pass yet, or truncated since.
    unverified: tuple[TableName, ...] = ()


def _require_named_alike(info: TableInfo, shape: Shape) -> None:
    """Raises GateClosed where a change names its row otherwise than the comparison looks for it."""
    if tuple(k.name for k in shape.key) != info.primary_key:
        raise GateClosed(
            f"table {info.name}: a change names its row by the primary key ({', '.join(info.primary_key)}), but rows "
            f"are compared by {shape.keyed_by} ({', '.join(k.name for k in shape.key)}): see that the primary key's "
            "index is valid on both sides, on every partition too"
        )


@dataclass
class _Open:
    """Sessions and shapes, ready before the fence."""

    source: asyncpg.Connection
    sink: asyncpg.Connection
    shapes: dict[TableName, tuple[Shape, Shape]]
    relations: dict[TableName, TableKey]


class ChangedKeys:
    """The changed keys of one service in one direction. An async context manager: it holds a session on each side."""

    def __init__(self, pair: Pair, direction: Direction, control: Control, publication: str | None = None) -> None:
        self.pair, self.direction, self.control = pair, direction, control
        forward = direction == "forward"
        self.publication = publication or f"{pair.service}_{'pub' if forward else 'reverse_pub'}"
        self.slot = changes.slot_name(pair.service, direction)
        self._stack = AsyncExitStack()
        self._state: _Open | None = None
        self._reading = asyncio.Lock()

    async def __aenter__(self) -> "ChangedKeys":
        await self._opened()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._state = None
        await self._stack.aclose()

    @property
    def _who(self) -> tuple[str, str, str]:
        return self.pair.migration, self.pair.service, self.direction

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[_Open]:
        """The open sessions; new ones next time where a server went away."""
        try:
            opened = await self._opened()
            with translated(self.pair, self.direction):
                yield opened
        except Unreachable:
            await self.__aexit__()
            raise

    async def _opened(self) -> _Open:
        if self._state is None:
            async with AsyncExitStack() as stack:
                source, sink = await stack.enter_async_context(
                    both_sides(self.pair, self.direction, f"changes/{self.pair.service}")
                )
                # advancing a slot and making one are writes to the server's mind; the tables are only read
                await source.execute("SET default_transaction_read_only = off")
                self._state = await self._looked(source, sink)
                # of an opening that fails in the middle no session stays behind
                self._stack.push_async_exit(stack.pop_all())
        return self._state

    async def _looked(self, source: asyncpg.Connection, sink: asyncpg.Connection) -> _Open:
        alike: dict[TableName, tuple[Shape, Shape]] = {}
        relations: dict[TableName, TableKey] = {}
        for info in await catalog.tables(source, self.pair.tables):
            if not info.primary_key:
                raise GateClosed(
                    f"table {info.name} has no primary key, so its changes cannot be followed: add one "
                    "(a unique index on NOT NULL columns can be used: ALTER TABLE … ADD PRIMARY KEY USING INDEX)"
                )
            alike[info.name] = await shapes(source, sink, info.name, self.pair.passes_over(info.name))
            _require_named_alike(info, alike[info.name][0])
            relations.update({name: TableKey(info.name, info.primary_key) for name in info.everywhere})
        await asyncio.gather(*(
            compare.warm(connection, [pair[side] for pair in alike.values()])
            for side, connection in enumerate((source, sink))
        ))  # fmt: skip
        return _Open(source, sink, alike, relations)

    @asynccontextmanager
    async def _slot_session(self) -> AsyncIterator[asyncpg.Connection]:
        """No transaction may be open in it: a slot waits for all of them."""
        source = self.pair.source(self.direction)
        with translated(self.pair, self.direction):
            async with source.session(f"cutover-slot/{self.pair.service}", statement_timeout="60s") as connection:
                yield connection

    async def prepare(self) -> None:
        """Makes the slot where it is missing or lost; then every table needs a full pass. Never call it in a fence.

        Raises GateClosed where the stream's publication is not there yet, or was made anew under a slot that is there.
        """
        names = [str(t) for t in self.pair.tables]
        async with self._slot_session() as connection:
            publication, known = await self._noted(connection)
            if await changes.slot_whole(connection, self.slot):
                if known.torn:
                    raise GateClosed(
                        f"{self.pair.service}: publication {self.publication!r} was made anew under slot "
                        f"{self.slot!r}, which cannot tell any more of all keys that changed: "
                        f"cutover doctor {self.pair.migration} --service {self.pair.service} --mend"
                    )
                if known.tables == len(names):
                    return
            # first the notes, then the slot: killed in between, the tables are dirty and not falsely clean
            await self.control.execute(RESET, *self._who, names, publication)
            if await changes.ensure_slot(connection, self.slot, self.publication):
                await self.control.execute(RESET, *self._who, names, publication)
                await notes.forget(self.control, self.pair.migration, self.pair.service, notes.of_slot(self.slot))

    async def lost(self) -> bool:
        """Whether it was prepared, and its slot is gone, has lost something since or lost its publication."""
        known, whole = await self._state_of()
        return known.tables > 0 and not whole

    async def whole(self) -> bool:
        """Whether the slot is there and has lost nothing, and its publication is the one that it was made for."""
        _, whole = await self._state_of()
        return whole

    async def _state_of(self) -> tuple[Followed, bool]:
        """What is noted of it, and whether it is whole."""
        async with self._slot_session() as connection:
            _, known = await self._noted(connection)
            return known, not known.torn and await changes.slot_whole(connection, self.slot)

    async def _noted(self, source: asyncpg.Connection) -> tuple[int | None, Followed]:
        """The publication of now, and what is noted as against it."""
        publication = await replication.publication_oid(source, self.publication)
        return publication, await marking.followed(self.control, self._who, self.pair.tables, publication)

    async def consume(self, limit: int | None = MESSAGES, *, advance: bool = True) -> int:
        """Takes about `limit` messages off the slot (None: all that is flushed); how many there were.

        A transaction is never cut. Only one reader at a time can hold a slot: another one is waited out for some
        seconds, then NotYet.
        """
        total, more = await self._consumed(limit, advance)
        while more and limit is None:
            taken, more = await self._consumed(limit, advance)
            total += taken
        return total

    async def _consumed(self, limit: int | None, advance: bool) -> tuple[int, bool]:
        """One reading: how many messages, and whether there is more to read."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        async with self._reading:
            while True:
                try:
                    return await self._consume(limit, advance)
                except NotYet:
                    if asyncio.get_running_loop().time() >= deadline:
                        raise
                    await asyncio.sleep(0.01)

    async def _consume(self, limit: int | None, advance: bool) -> tuple[int, bool]:
        messages, end, more = 0, None, False
        async with self._using() as opened:
            read = (self.slot, self.publication, opened.relations, limit)
            async for part in changes.peek(opened.source, *read, bounded=advance):
                await self._keep(part)
                messages += part.messages
                end, more = part.end or end, part.more
            if end and advance:
                await changes.advance(opened.source, self.slot, end)
        return messages, more

    async def _keep(self, part: Changes) -> None:
        if not part.keys and not part.whole:
            return
        keys = columns((table, key_json(key)) for table, found in part.keys.items() for key in found)
        if not part.whole:
            await self.control.execute(KEEP, *self._who, *keys)
            return
        async with self.control.transaction() as connection:
            await connection.execute(KEEP, *self._who, *keys)
            await connection.execute(WHOLE, *self._who, [str(t) for t in part.whole])

    async def drain(self, *, polite: bool = False) -> None:
        """Consumes until hardly anything is left; `polite` stops once a switch is under way, which reads it itself."""
        more = True
        while more and not (polite and await self._switching()):
            _, more = await self._consumed(MESSAGES, advance=True)

    async def _switching(self) -> bool:
        return await switches.under_way(self.control, self.pair.migration, self.pair.service) is not None

    async def tail(self) -> dict[TableName, int]:
        """How many keys are dirty, by table, as far as the slot has been consumed."""
        rows = await self.control.fetch(
            "SELECT table_name, count(*) AS keys FROM control.changed_key "
            "WHERE migration = $1 AND service = $2 AND direction = $3 GROUP BY table_name",
            *self._who,
        )
        found = {row["table_name"]: int(row["keys"]) for row in rows}
        return {table: found.get(str(table), 0) for table in self.pair.tables}

    async def unverified(self) -> tuple[TableName, ...]:
        """Tables that need a full pass first: none yet since the slot was made, or truncated since."""
        rows = await self.control.fetch(
            "SELECT table_name FROM control.changed_table "
            "WHERE migration = $1 AND service = $2 AND direction = $3 AND whole_number IS NULL",
            *self._who,
        )
        clean = {row["table_name"] for row in rows}
        return tuple(table for table in self.pair.tables if str(table) not in clean)

    async def shorten(self, *, polite: bool = False) -> int:
        """Verifies outside of a fence, again and again, until hardly a key is left; how many were compared.

        What is equal on both sides by now is cleared; a key that changes again is dirty again.
        """
        total = 0
        for _ in range(ROUNDS):
            await self.drain(polite=polite)
            if polite and await self._switching():
                break
            keys = (await self.verify()).keys
            total += keys
            if keys <= ENOUGH:
                break
        return total

    async def require_short_tail(self, limit: int) -> int:
        """The length of the tail after consuming what is there. Raises GateClosed where it is too long to fence on."""
        await self.drain()
        if unverified := await self.unverified():
            raise GateClosed(
                f"{self.pair.service}: {', '.join(map(str, unverified))}: no full pass has verified the table since "
                "its changes are followed (or it was truncated): run `cutover reconcile --now` for it, then try again"
            )
        tail = await self.tail()
        if (total := sum(tail.values())) > limit:
            long = ", ".join(f"{table} {keys}" for table, keys in tail.items() if keys)
            raise GateClosed(
                f"{self.pair.service}: {total} keys changed since the last verified pass, more than {limit} ({long}): "
                "verify them or run a pass before the fence"
            )
        return total

    async def verified(self, report: TableReport) -> bool:
        """A full pass has ended: what changed before it began is no longer dirty; the keys it found differing are.

        False where the report proves nothing (incomplete, read from a replica, or not found as a pass).
        """
        return await marking.verified(self.control, self._who, report, BATCH)

    async def adopt(self, switch: SwitchRow) -> None:
        """Counts every table as verified: both sides stood still and were proved equal after this slot was made.

        For the direction that begins with a switch: its slot exists before the fence, whose verdict covers the rest.
        Raises StaleAttempt where that switch is not the one under way any more.
        """
        if not await self.control.fetchval(ADOPT, *switches.held_by(switch), self.direction):
            raise switches.overtaken(switch)

    async def verify(self, *, tidy: bool = True, tail_taken: bool = False) -> Verdict:
        """Compares every dirty key on both sides; equal ones are cleared.

        The verdict holds for writes that were flushed before the call and applied at the other side: the caller has
        fenced, and awaited a marker. Inside the fence `tidy=False` leaves the slot and the notes as they are, for the
        next call outside of it; `tail_taken` says that all since the fence was consumed already.
        """
        if not tail_taken:
            await self.consume(None, advance=tidy)
        unverified, rows = await asyncio.gather(self.unverified(), self._dirty(0))
        differing: Counter[TableName] = Counter()
        total = 0
        while rows:
            total += len(rows)
            async with self._using() as opened:
                equal = await self._compare(opened, rows, differing)
            if equal and tidy:
                await self.control.execute(
                    CLEAR, *self._who, [r["table_name"] for r in equal], [r["key_id"] for r in equal],
                    [r["number"] for r in equal],
                )  # fmt: skip
            rows = await self._dirty(rows[-1]["number"]) if len(rows) == BATCH else []
        return Verdict(not differing and not unverified, total, dict(differing), unverified)

    async def _dirty(self, after: int) -> list[asyncpg.Record]:
        return await self.control.fetch(DIRTY, *self._who, after, BATCH)

    async def _compare(
        self, opened: _Open, rows: Sequence[asyncpg.Record], differing: Counter[TableName]
    ) -> list[asyncpg.Record]:
        """Those of the dirty keys whose rows are equal; the others are counted. One statement a side where all are."""
        names = {str(table): table for table in opened.shapes}
        by_table: dict[TableName, list[asyncpg.Record]] = {table: [] for table in opened.shapes}
        for row in rows:
            by_table[names[row["table_name"]]].append(row)
        keys = {table: [key_from_json(r["key_json"]) for r in found] for table, found in by_table.items()}
        left, right = await asyncio.gather(
            compare.sums(opened.source, [(opened.shapes[t][0], wanted) for t, wanted in keys.items()]),
            compare.sums(opened.sink, [(opened.shapes[t][1], wanted) for t, wanted in keys.items()]),
        )
        equal: list[asyncpg.Record] = []
        for (table, found), here, there in zip(by_table.items(), left, right, strict=True):
            if here == there:
                equal.extend(found)
                continue
            source, sink = await asyncio.gather(
                compare.look(opened.source, opened.shapes[table][0], keys[table]),
                compare.look(opened.sink, opened.shapes[table][1], keys[table]),
            )
            for row, (_, at_source), (_, at_sink) in zip(found, source, sink, strict=True):
                if at_source.digest == at_sink.digest:
                    equal.append(row)
                else:
                    differing[table] += 1
        return equal

    async def drop_slot(self, through: Through | None = None) -> None:
        """The slot alone: with its notes it counts as lost, until `prepare` makes it anew."""
        async with through(source_side(self.direction)) if through else self._slot_session() as connection:
            await replication.drop_slot(connection, self.slot)

    async def drop(self, through: Through | None = None, switch: SwitchRow | None = None) -> None:
        """Takes the slot and its notes away; nothing is left of this direction.

        Where a switch may follow: the slot `through` the caller's token, the notes while `switch` is what it is.
        Raises StaleAttempt where it is so no longer.
        """
        await self.drop_slot(through)
        async with self.control.transaction() as connection:
            if switch:
                await switches.hold(connection, switch)
            await connection.execute(
                "DELETE FROM control.changed_key WHERE migration = $1 AND service = $2 AND direction = $3", *self._who
            )
            await connection.execute(
                "DELETE FROM control.changed_table WHERE migration = $1 AND service = $2 AND direction = $3", *self._who
            )
