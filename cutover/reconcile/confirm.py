"""Whether a candidate is a difference: looked at again, after the stream has applied a marker newer than that look.

*confirmed*: still different, and both sides as they were at the look before. Equal by now: dropped. Still moving:
looked at again in the next round, until the table's max lag has passed; what is left then is *unsettled* (design 5.4).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg

from cutover.errors import NotYet
from cutover.postgres import compare
from cutover.postgres.compare import Look
from cutover.postgres.keys import Key
from cutover.postgres.shapes import Shape
from cutover.reconcile.ranges import Candidate
from cutover.reconcile.state import PassState

#: Pauses between rounds, seconds: a row in flight needs milliseconds, a hot one is not worth a tight loop.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
#: More rounds than this only measure that a row is busy.
MOST_ROUNDS = 12

Sides = tuple[asyncpg.Connection, Shape, asyncpg.Connection, Shape]


async def confirm(state: PassState, sides: Sides, settle: Callable[[], Awaitable[None]], max_lag: timedelta) -> None:
    """Settles what can be settled of the pass's candidates; the others stay unconfirmed.

    `settle` returns when the stream has applied all that was committed at the source before the call; its NotYet
    counts as a round in which nothing settled.
    """
    deadline = time.monotonic() + max_lag.total_seconds()
    pause = FIRST_PAUSE
    for _ in range(MOST_ROUNDS):
        if not (await state.counts()).unsettled:
            return
        try:
            await settle()
            await _look_again(state, sides)
        except NotYet:
            if time.monotonic() >= deadline:
                return
        if time.monotonic() + pause >= deadline:
            return
        if (await state.counts()).unsettled:
            await asyncio.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 2)


def unchanged(now: tuple[Look, Look], before: tuple[Look, Look]) -> bool:
    """Whether both sides stood still between two looks."""
    return now == before


async def _look_again(state: PassState, sides: Sides) -> None:
    source, source_shape, sink, sink_shape = sides
    number = await state.next_round()
    after = ""
    while batch := await state.candidates(number, after):
        keys = [c.key for c in batch]
        left, right = await asyncio.gather(
            compare.look_at_columns(source, source_shape, keys), compare.look_at_columns(sink, sink_shape, keys)
        )
        equal: list[str] = []
        confirmed: dict[str, list[str]] = {}
        moving: dict[Key, Candidate] = {}
        for stored, (key_here, here, columns_here), (key_there, there, columns_there) in zip(
            batch, left, right, strict=True
        ):
            # '1.5' and '1.50', or 'A' and 'a' in citext, are one key to the server: the source's text names the row
            key = key_here or key_there or stored.key
            if here.digest == there.digest or key != stored.key:
                equal.append(stored.id)
            if here.digest != there.digest:
                if key == stored.key and unchanged((here, there), (stored.source, stored.target)):
                    confirmed[stored.id] = [
                        column.name
                        for column, a, b in zip(source_shape.compared, columns_here, columns_there, strict=False)
                        if a != b
                    ]
                else:
                    moving[key] = Candidate(key, here, there)
        await state.settle(equal, confirmed, list(moving.values()), number)
        after = batch[-1].id
