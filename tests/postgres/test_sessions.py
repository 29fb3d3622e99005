"""Sessions that are kept for a moment: used again clean, or not at all."""

from dataclasses import replace

import asyncpg
import pytest

from cutover.errors import Unreachable
from cutover.postgres import databases
from cutover.postgres.applier import LIMITS, applier_session
from cutover.postgres.databases import Database


@pytest.fixture
def kept(monolith_db: Database) -> Database:
    return replace(monolith_db, reuse=True, _idle={})


async def pid_of(database: Database, name: str = "one", **settings: str) -> int:
    async with database.session(name, **settings) as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def end_all(database: Database) -> None:
    for idle in database._idle.values():
        for one in idle:
            await one.connection.close()


def test_a_server_without_room_for_a_session_is_one_that_cannot_be_reached(monolith_db: Database) -> None:
    with pytest.raises(Unreachable, match="DiskFullError"), monolith_db.opening():
        raise asyncpg.DiskFullError("could not write init file")


async def test_a_session_of_the_same_kind_is_used_again_with_its_settings_reset(kept: Database) -> None:
    async with kept.session("one") as connection:
        first = await connection.fetchval("SELECT pg_backend_pid()")
        await connection.execute("SET lock_timeout = '7s'; SET application_name = 'another'")
        await connection.fetchval("SELECT pg_advisory_lock(1)")
    async with kept.session("one") as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == first
        assert await connection.fetchval("SHOW lock_timeout") == "0"
        assert await connection.fetchval("SHOW application_name") == "one"
        assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert await pid_of(kept, "two") != first
    assert await pid_of(kept, "one", lock_timeout="1s") != first
    await end_all(kept)


async def test_a_session_whose_block_failed_is_not_used_again(kept: Database) -> None:
    first = await pid_of(kept)

    async def fail() -> None:
        async with kept.session("one") as connection:
            assert await connection.fetchval("SELECT pg_backend_pid()") == first
            await connection.execute("SELECT * FROM nothing")

    with pytest.raises(asyncpg.UndefinedTableError):
        await fail()
    assert await pid_of(kept) != first
    await end_all(kept)


async def test_a_session_that_died_while_it_idled_is_replaced(kept: Database, monolith_db: Database) -> None:
    first = await pid_of(kept)
    async with monolith_db.session("killer") as killer:
        assert await killer.fetchval("SELECT pg_terminate_backend($1, 5000)", first)
    for _ in range(3):
        assert await pid_of(kept) != first
    await end_all(kept)


async def test_a_session_that_idled_too_long_is_ended(kept: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await pid_of(kept)
    monkeypatch.setattr(databases, "IDLE_SECONDS", -1.0)
    assert await pid_of(kept) != first
    await end_all(kept)


async def test_an_applier_s_session_is_never_kept(kept: Database) -> None:
    async with applier_session(kept, "s", "test"):
        assert kept._idle == {}
    assert kept._idle == {}
    async with kept.session("drop") as connection:
        await connection.execute("SELECT pg_replication_origin_drop('cutover_s_test')")
    await end_all(kept)


async def test_an_applier_that_stops_in_the_middle_is_ended_by_the_server(monolith_db: Database) -> None:
    async with applier_session(monolith_db, "s", "test") as connection:
        shown = [await connection.fetchval(f"SHOW {name}") for name in LIMITS]
    assert shown == ["30s", "1min"]
    async with monolith_db.session() as connection:
        await connection.execute("SELECT pg_replication_origin_drop('cutover_s_test')")


async def test_without_reuse_every_block_has_a_session_of_its_own(monolith_db: Database) -> None:
    assert await pid_of(monolith_db) != await pid_of(monolith_db)
