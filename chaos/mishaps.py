"""What people do to a service by mistake: slots and triggers dropped, rows changed behind a fence, rows refused.

Each is what an administrator's session could do; what has to be seen of it, and mended, is the run's to require.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

import asyncpg

from chaos import ground, tables
from chaos.tables import Item
from cutover.errors import NotYet
from cutover.flags import store as flags
from cutover.postgres import fence, outbox_capture, replication
from cutover.postgres.databases import Direction, Side
from cutover.streams.logical import LogicalStream
from cutover.switch.environment import SwitchEnvironment

#: Seconds in which something that was done has its effect.
WITHIN = 30.0
_PAUSE = timedelta(seconds=5)
#: A row of the ground, which no client touches; rows that the other side refuses have keys below it.
_GROUND_KEY = tables.GROUND_KEYS - 1
_POISON_KEYS = tables.GROUND_KEYS - 1_000_000


async def drop_slot(env: SwitchEnvironment, direction: Direction) -> None:
    """The slot of a native stream, whoever reads it."""
    name = LogicalStream(env.pair, direction).subscription
    async with asyncio.timeout(WITHIN), env.pair.source(direction).session("chaos-admin") as source:
        while await replication.has_slot(source, name):
            with suppress(NotYet):
                await replication.drop_slot(source, name)
            await asyncio.sleep(0.05)


async def break_stream(env: SwitchEnvironment, direction: Direction) -> None:
    """A stream that nobody writes into yet loses its slot, or its capture."""
    stream = env.stream(direction)
    if not isinstance(stream, LogicalStream):
        async with env.pair.source(direction).session("chaos-admin") as source:
            await outbox_capture.remove(source, env.pair.service, env.pair.tables)
        return
    await ground.execute(env.pair.sink(direction), f"ALTER SUBSCRIPTION {stream.subscription} DISABLE")
    await drop_slot(env, direction)


async def drop_record(env: SwitchEnvironment, direction: Direction) -> None:
    """The slot of the changed keys."""
    async with env.pair.source(direction).session("chaos-admin") as source:
        await replication.drop_slot(source, env.changed(direction).slot)


async def leave_shut(env: SwitchEnvironment, side: Side) -> None:
    """The writable side is shut by hand, and a pause announced that nobody lifts."""
    pair = env.pair
    await flags.announce_pause(env.control, pair.migration, pair.service, "by-mistake", _PAUSE, actor="chaos")
    async with asyncio.timeout(WITHIN), pair.at(side).session("chaos-admin") as connection:
        members = await fence.relations(connection, pair.tables)
        while True:
            with suppress(asyncpg.DeadlockDetectedError):  # with the application, one table after the other
                async with connection.transaction():
                    await fence.ensure(connection, pair.service, members, closed=True)
                return


async def change_a_row(env: SwitchEnvironment, direction: Direction) -> None:
    """At the side that follows, and nowhere else."""
    table = tables.items(env.pair.service)
    await ground.behind_the_fence(
        env.pair.sink(direction), f"UPDATE {table} SET value = 'changed' WHERE key = {_GROUND_KEY}"
    )


class Poison:
    """Rows that the other side refuses until somebody takes the cause away."""

    def __init__(self) -> None:
        self._key = _POISON_KEYS

    async def put(self, env: SwitchEnvironment, direction: Direction) -> dict[int, Item]:
        """One row at the source; it has to be there in the end."""
        self._key -= 1
        table = tables.items(env.pair.service)
        await ground.execute(
            env.pair.sink(direction),
            f"ALTER TABLE {table} ADD CONSTRAINT chaos CHECK (key <> {self._key}) NOT VALID",
        )
        row = Item(1, tables.GROUND, tables.value_of(tables.GROUND, self._key))
        sql = (
            f"INSERT INTO {table} (key, value, version, origin) VALUES ({self._key}, '{row.value}', 1, '{row.origin}')"
        )
        await ground.execute(env.pair.source(direction), sql)
        return {self._key: row}

    async def cure(self, env: SwitchEnvironment, direction: Direction) -> None:
        """As a person does: the cause is taken away, and what was held is tried again."""
        table = tables.items(env.pair.service)
        await ground.execute(env.pair.sink(direction), f"ALTER TABLE {table} DROP CONSTRAINT chaos")
        stream = env.stream(direction)
        async with asyncio.timeout(WITHIN):
            while (
                await ground.retry_held(env.pair.source(direction), env.pair.service) or not (await stream.health()).ok
            ):
                await asyncio.sleep(0.1)
