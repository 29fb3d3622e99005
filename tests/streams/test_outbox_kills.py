"""kill -9 of relays and of a backfill, at random moments and under load: nothing is lost, nothing comes twice."""

import asyncio
import os
import random
import sys
from asyncio.subprocess import PIPE, Process

import asyncpg
import pytest

from cutover.errors import CutoverError
from cutover.postgres import outbox_copy
from cutover.postgres.databases import CONNECTION_ERRORS
from tests.servers import Clusters
from tests.streams.outbox_world import World
from tests.waiting import until


async def spawn(world: World, kind: str, **environment: str) -> Process:
    """A process of its own, once it has its imports behind it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.streams.outbox_process", kind, world.pair.service, stdout=PIPE,
        env={**os.environ, "OUTBOX_MONOLITH": world.pair.monolith.dsn, "OUTBOX_SERVICE": world.pair.target.dsn,
             **environment},
    )  # fmt: skip
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == b"ready"
    return process


async def kill9(process: Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


async def write_on(world: World, until_set: asyncio.Event, seed: int) -> int:
    """The same over restarts of the server."""
    done = 0
    while not until_set.is_set():
        try:
            done += await write(world, until_set, seed + done)
        except (asyncpg.PostgresError, CutoverError, *CONNECTION_ERRORS):
            done += 1
            await asyncio.sleep(0.05)
    return done


async def write(world: World, until_set: asyncio.Event, seed: int) -> int:
    """Changes of every kind on few keys, so that they meet; how many transactions."""
    chance = random.Random(seed)
    done = 0
    async with world.pair.monolith.session("load") as connection:
        while not until_set.is_set():
            key, other = chance.randrange(60), chance.randrange(60)
            try:
                async with connection.transaction():
                    match chance.randrange(5):
                        case 0:
                            await connection.execute("DELETE FROM items WHERE id = $1", key)
                        case 1:
                            await connection.execute("UPDATE items SET note = $2 WHERE id = $1", key, f"{seed}/{done}")
                        case 2:
                            await connection.execute("UPDATE items SET name = NULL WHERE id = $1", key)
                            await connection.execute("UPDATE items SET name = $2 WHERE id = $1", other, f"n{key}")
                        case _:
                            await connection.execute(
                                "INSERT INTO items VALUES ($1, $2, $3) "
                                "ON CONFLICT (id) DO UPDATE SET note = excluded.note",
                                key, f"n{other}", f"{seed}/{done}",
                            )  # fmt: skip
            except (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError):
                continue
            done += 1
            await asyncio.sleep(0.002)
    return done


@pytest.mark.slow
async def test_relays_that_are_killed_anywhere_lose_nothing(flowing: World) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    enough = asyncio.Event()
    load = [asyncio.create_task(write(flowing, enough, seed + n)) for n in range(2)]
    relays = [await spawn(flowing, "relay"), await spawn(flowing, "relay")]
    try:
        for turn in range(5):
            await asyncio.sleep(chance.uniform(0.05, 0.9))
            await kill9(relays[turn % 2])
            relays[turn % 2] = await spawn(flowing, "relay")
        enough.set()
        written = sum(await asyncio.gather(*load))
        assert await flowing.drained(timeout=60) < 60
    finally:
        enough.set()
        for relay in relays:
            await kill9(relay)
        await asyncio.gather(*load, return_exceptions=True)
    assert written > 50, f"seed {seed}"
    assert await flowing.stream().held() == [], f"seed {seed}"
    await flowing.require_equal()


@pytest.mark.slow
async def test_servers_that_are_killed_and_restarted_under_load_lose_nothing(
    flowing: World, clusters: Clusters
) -> None:
    seed = random.randrange(10**6)
    enough = asyncio.Event()
    load = [asyncio.create_task(write_on(flowing, enough, seed + n)) for n in range(2)]
    try:
        async with flowing.relay():
            for cluster in (clusters.monolith, clusters.services, clusters.monolith, clusters.services):
                await flowing.drained(timeout=60)
                await asyncio.to_thread(cluster.kill9)
                await asyncio.to_thread(cluster.restart)
            enough.set()
            await asyncio.gather(*load)
            await flowing.drained(timeout=60)
    finally:
        enough.set()
        await asyncio.gather(*load, return_exceptions=True)
    flowing.monolith, flowing.service = await flowing.pair.monolith.connect(), await flowing.pair.target.connect()
    assert await flowing.stream().held() == [], f"seed {seed}"
    await flowing.require_equal()
    await asyncio.gather(flowing.monolith.close(), flowing.service.close())


@pytest.mark.slow
async def test_a_backfill_that_is_killed_anywhere_goes_on_and_brings_nothing_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    await world.monolith.execute(
        "INSERT INTO items SELECT n, 'n' || n, repeat('x', 100) FROM generate_series(0, 12000) n; ANALYZE items"
    )
    monkeypatch.setattr(outbox_copy, "CHUNK_BYTES", 64 << 10)
    enough = asyncio.Event()
    load = [asyncio.create_task(write(world, enough, seed + n)) for n in range(2)]
    stream = world.stream()
    await stream.start(copy=True)
    kills = 0
    try:
        async with world.relay():
            while {p.stage for p in await stream.progress()} != {"ready"}:
                # some thirty ranges, two at once: it takes well above a second
                copy = await spawn(world, "backfill", OUTBOX_RANGE_SECONDS="0.1")
                if kills == 6:  # however slow the machine, it comes to its end
                    assert await copy.wait() == 0
                    break
                await asyncio.sleep(chance.uniform(0.05, 0.7))
                kills += copy.returncode is None
                await kill9(copy)
            await until(stream.ready, "the stream is ready")
            enough.set()
            await asyncio.gather(*load)
            await world.drained(timeout=60)
    finally:
        enough.set()
        await asyncio.gather(*load, return_exceptions=True)
    assert kills, f"seed {seed}"
    assert await stream.held() == [], f"seed {seed}"
    await world.require_equal()
