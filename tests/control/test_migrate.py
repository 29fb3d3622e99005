"""Versioned migrations: once each, in order, whoever else runs them at the same time."""

import asyncio

import pytest

from cutover.control import migrate
from cutover.control.database import Control
from cutover.control.migrate import MigrationFile, pending
from cutover.errors import ConfigError, Conflict, Unreachable
from cutover.postgres.databases import Database

ONE = MigrationFile(1, "one", "CREATE TABLE control.one (n int)")
THREE = MigrationFile(3, "three", "CREATE TABLE control.three (n int)")


async def applied(database: Database, files: list[MigrationFile]) -> list[str]:
    async with database.session() as connection:
        return await migrate.migrate(connection, files)


async def test_a_second_run_applies_nothing(service_db: Database) -> None:
    control = await Control.open(service_db)
    try:
        first = await control.migrate()
        assert first == [str(file) for file in migrate.shipped()]
        assert await control.migrate() == []
    finally:
        await control.close()


async def test_runs_at_the_same_time_apply_each_file_once(service_db: Database) -> None:
    results = await asyncio.gather(*(applied(service_db, migrate.shipped()) for _ in range(4)))
    assert sorted(len(files) for files in results) == [0, 0, 0, len(migrate.shipped())]


async def test_gaps_between_numbers_are_allowed_and_later_files_are_added(service_db: Database) -> None:
    assert await applied(service_db, [ONE]) == ["0001_one.sql"]
    assert await applied(service_db, [ONE, THREE]) == ["0003_three.sql"]


async def test_a_changed_file_is_an_error_that_names_it(service_db: Database) -> None:
    await applied(service_db, [ONE])
    changed = MigrationFile(1, "one", ONE.sql + " ")
    with pytest.raises(Conflict, match=r"0001_one\.sql was changed after it had been applied"):
        await applied(service_db, [changed])


async def test_a_file_below_the_newest_is_an_error_and_changes_nothing(service_db: Database) -> None:
    await applied(service_db, [ONE, THREE])
    late = MigrationFile(2, "late", "CREATE TABLE control.late (n int)")
    with pytest.raises(Conflict, match=r"give the file a number above 0003"):
        await applied(service_db, [ONE, late, THREE])
    async with service_db.session() as connection:
        assert await connection.fetchval("SELECT to_regclass('control.late')") is None


async def test_a_database_newer_than_the_code_is_an_error(service_db: Database) -> None:
    await applied(service_db, [ONE, THREE])
    with pytest.raises(Conflict, match="0003_three, which this version of cutover does not know"):
        await applied(service_db, [ONE])


async def test_a_failing_file_leaves_nothing_behind(service_db: Database) -> None:
    bad = MigrationFile(2, "bad", "CREATE TABLE control.bad (n int); SELECT 1/0")
    with pytest.raises(ConfigError, match=r"0002_bad\.sql of the control database failed"):
        await applied(service_db, [ONE, bad])
    async with service_db.session() as connection:
        assert await connection.fetchval("SELECT to_regclass('control.one')") is None


def test_line_ends_of_a_checkout_do_not_count_as_a_change() -> None:
    unix, windows = MigrationFile(1, "one", "a\nb"), MigrationFile(1, "one", "a\r\nb")
    assert pending([windows], {1: ("one", unix.checksum)}) == []


async def test_a_database_without_schema_says_what_to_run(service_db: Database) -> None:
    control = await Control.open(service_db)
    try:
        with pytest.raises(ConfigError, match="run `cutover setup`"):
            await control.fetch("SELECT * FROM control.audit")
    finally:
        await control.close()


async def test_a_database_that_cannot_be_reached_is_named_without_its_dsn() -> None:
    with pytest.raises(Unreachable) as caught:
        await Control.open(Database("control", "postgresql://joe:hunter2@127.0.0.1:1/control"))
    assert "'control'" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_every_table_says_what_it_is_for(control: Control) -> None:
    silent = await control.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'control'::regnamespace AND relkind IN ('r', 'v')"
        " AND obj_description(oid, 'pg_class') IS NULL"
    )
    assert [row["relname"] for row in silent] == []
