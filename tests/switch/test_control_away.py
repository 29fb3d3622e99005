"""A control database that refuses, or says nothing, behind the fence: the application goes on where it was."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from cutover import faults
from cutover.control.database import Control
from cutover.errors import CutoverError
from cutover.postgres.databases import CONNECTION_ERRORS
from cutover.postgres.identifiers import quote
from cutover.switch import reverse, section
from cutover.switch.environment import SwitchEnvironment
from tests.relay import Relay
from tests.switch.conftest import order
from tests.switch.test_section import switch, writable
from tests.waiting import until

#: What an attempt ends with that is to be made again.
STOPPED = (*CONNECTION_ERRORS, asyncpg.PostgresError, CutoverError)


async def no_room(control: Control) -> None:
    """Every change of a switch is refused as by a full disk."""
    await control.execute(
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full', MESSAGE = 'No space left on device'; END$$"
    )
    await control.execute(
        "CREATE TRIGGER no_room BEFORE UPDATE ON control.switch FOR EACH ROW EXECUTE FUNCTION no_room()"
    )


async def room_again(control: Control) -> None:
    await control.execute("DROP FUNCTION no_room() CASCADE")


async def read_only(control: Control, value: str = "on") -> None:
    """As the server does it that was made a standby, or whose provider found its disk full."""
    async with control.database.session(default_transaction_read_only="off") as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {quote(name)} SET default_transaction_read_only = {value}")
    await control.pool.expire_connections()


async def writable_again(control: Control) -> None:
    await read_only(control, "off")


def at(point: str, then: Callable[[], Awaitable[None]]) -> Callable[[str], Awaitable[None]]:
    """A handler of fault points that does something at the first pass of one."""
    waiting = [point]

    async def handler(passed: str) -> None:
        if passed in waiting:
            waiting.clear()
            await then()

    return handler


@pytest.mark.parametrize("point", ["switch.fence-commit.after", "switch.unfence.after", "switch.journal.before"])
@pytest.mark.parametrize(("refuse", "allow"), [(no_room, room_again), (read_only, writable_again)])
async def test_a_control_database_that_refuses_behind_the_fence_does_not_keep_the_writes_shut(
    env: SwitchEnvironment,
    point: str,
    refuse: Callable[[Control], Awaitable[None]],
    allow: Callable[[Control], Awaitable[None]],
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    with faults.armed(at(point, lambda: refuse(env.control))), pytest.raises(STOPPED):
        await asyncio.wait_for(section.run(env, request, lambda _: None), 30)
    assert await writable(env, "monolith")
    assert not await writable(env, "service")
    await allow(env.control)
    assert (await section.run(env, request, lambda _: None)).result == "undone"
    assert await writable(env, "monolith")
    assert (await switch(env, "service")).result == "done"


@asynccontextmanager
async def behind(relay: Relay, env: SwitchEnvironment) -> AsyncIterator[SwitchEnvironment]:
    """The environment with a network between it and the control database."""
    control = await Control.open(relay.database)
    try:
        yield replace(env, control=control)
    finally:
        control.pool.terminate()


@pytest.mark.parametrize("point", ["switch.fence-commit.after", "switch.marker.after"])
async def test_a_control_database_that_says_nothing_behind_the_fence_keeps_writes_shut_little_longer_than_the_limit(
    env: SwitchEnvironment, point: str
) -> None:
    await reverse.make_ready(env, "service")
    request = order(env, "service")
    shut = asyncio.Event()
    async with Relay(env.control.database) as relay, behind(relay, env) as away:

        async def say_nothing() -> None:
            relay.speaking.clear()
            shut.set()

        with faults.armed(at(point, say_nothing)):
            running = asyncio.create_task(section.run(away, request, lambda _: None))
            await asyncio.wait_for(shut.wait(), 30)
            begun = time.monotonic()
            await until(lambda: writable(env, "monolith"), "the old primary is open", away.max_pause + 4)
            with pytest.raises(STOPPED):
                await asyncio.wait_for(running, 20)
        assert time.monotonic() - begun < away.max_pause + 6
        assert not await writable(env, "service")
        relay.speaking.set()
        assert (await section.run(away, request, lambda _: None)).result == "undone"
    assert (await switch(env, "service")).result == "done"


async def test_a_call_to_a_silent_control_database_ends_as_soon_as_it_is_cancelled(control: Control) -> None:
    async with Relay(control.database) as relay:
        silent = await Control.open(relay.database)
        try:
            for call in (_transaction, _statement):
                await call(silent)
                relay.speaking.clear()
                for _ in range(2):  # on the session that there is, and on one that would have to be opened
                    begun = time.monotonic()
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.2):
                            await call(silent)
                    assert time.monotonic() - begun < 1
                relay.speaking.set()
        finally:
            silent.pool.terminate()


async def _statement(control: Control) -> None:
    assert await control.fetchval("SELECT 1") == 1


async def _transaction(control: Control) -> None:
    async with control.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1
