"""What is archived can be proved and restored; what is retired is fenced, and dropped only on purpose."""

import gzip
import os
from pathlib import Path

import asyncpg
import pytest

from cutover.archive import service as old_tables
from cutover.archive.export import export_table, file_stem
from cutover.archive.manifest import NAME, Manifest, read_manifest, restore_test, verify, write_manifest
from cutover.control import plans
from cutover.control.database import Control
from cutover.errors import ConfigError, NotYet, Refused
from cutover.plan.load import load_text
from cutover.postgres import retire
from cutover.postgres.databases import Database, Pair
from cutover.postgres.identifiers import TableName

NASTY = TableName('we"ird/..', "ü" * 31)
PLAIN = TableName("public", "trades")


async def fill(database: Database) -> None:
    async with database.session() as c:
        await c.execute(
            f"""CREATE SCHEMA "we""ird/.."; CREATE TYPE mood AS ENUM ('a', 'b');
            CREATE TABLE {NASTY.sql} (id bigint GENERATED ALWAYS AS IDENTITY, "select" text, m mood, n numeric(20, 8),
                at timestamptz, raw bytea, twice bigint GENERATED ALWAYS AS (id * 2) STORED, f float8, j jsonb);
            INSERT INTO {NASTY.sql} ("select", m, n, at, raw, f, j)
                SELECT CASE WHEN i % 3 = 0 THEN NULL ELSE E'tab\\t line\\n \\\\. ü ' || i END, 'b', i / 7.0, now(),
                       '\\x00ff', i / 3.0, jsonb_build_object('k', i) FROM generate_series(1, 5000) i;
            CREATE TABLE trades (id int PRIMARY KEY)"""
        )


@pytest.fixture
async def filled(monolith_db: Database) -> Database:
    await fill(monolith_db)
    return monolith_db


async def archive(database: Database, folder: Path) -> Path:
    entries = [await export_table(database, table, folder) for table in (NASTY, PLAIN)]
    return write_manifest(folder, entries, migration="test", service="svc")


def file_of(manifest: Manifest, table: TableName) -> Path:
    [entry] = [entry for entry in manifest.entries if entry.table == str(table)]
    return manifest.folder / entry.file


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_an_archive_is_verified_and_comes_back_the_same(
    filled: Database, service_db: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "archive"
    manifest = read_manifest(await archive(filled, folder))
    assert manifest.facts == {"migration": "test", "service": "svc"}
    assert {e.table: e.rows for e in manifest.entries} == {str(NASTY): 5000, "trades": 0}
    assert verify(manifest) == []
    assert sorted(os.listdir(folder)) == sorted([NAME, *(entry.file for entry in manifest.entries)])
    assert file_of(manifest, NASTY).stat().st_mode & 0o077 == 0
    for database, typed in ((filled, {True}), (service_db, {True, False})):  # the service has no type `mood`
        results = await restore_test(manifest, database)
        assert [r.problem for r in results] == ["", ""]
        assert {r.typed for r in results} == typed
        async with database.session() as c:
            assert await c.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'cutover_restore%'") == 0


async def test_an_export_run_again_gives_the_same_file(filled: Database, tmp_path: Path) -> None:
    first = await export_table(filled, NASTY, tmp_path)
    left = tmp_path / f"{file_stem(NASTY)}.partial-1"
    left.touch()
    os.utime(left, (0, 0))  # of a worker killed long ago
    assert await export_table(filled, NASTY, tmp_path) == first
    assert os.listdir(tmp_path) == [first.file]


async def test_a_damaged_or_missing_file_is_found(filled: Database, tmp_path: Path) -> None:
    manifest = read_manifest(await archive(filled, tmp_path))
    path = file_of(manifest, NASTY)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "checksum" in verify(manifest)[0]
    path.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"line", b"lime", 1)))
    assert any("not the same" in r.problem for r in await restore_test(manifest, filled))
    path.unlink()
    assert "FileNotFoundError" in verify(manifest)[0]
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(ConfigError, match="export again"):
        read_manifest(tmp_path / NAME)


async def fenced(c: asyncpg.Connection, table: TableName) -> None:
    await c.execute(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';"
        f"CREATE TRIGGER cutover_fence BEFORE INSERT OR UPDATE OR DELETE ON {table.sql} EXECUTE FUNCTION refuse()"
    )


async def test_renamed_tables_are_not_archived_again_under_another_plan(
    filled: Database, control: Control, tmp_path: Path
) -> None:
    pair = Pair("test", "svc", filled, filled, (NASTY, PLAIN))
    first = await old_tables.archive(pair, control, tmp_path, "plan-1")
    async with filled.session() as c:
        for table in pair.tables:
            await fenced(c, table)
            await c.execute(f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER cutover_fence")
            await retire.retire(c, table)
    assert await old_tables.archive(pair, control, tmp_path, "plan-2") == first
    assert read_manifest(tmp_path / NAME).facts["plan_hash"] == "plan-1"
    assert await old_tables.drop(pair) == 2
    assert await old_tables.archive(pair, control, tmp_path, "plan-2") == first


async def test_tables_beside_those_that_an_earlier_migration_renamed_are_archived_under_a_new_plan(
    filled: Database, control: Control, tmp_path: Path
) -> None:
    pair = Pair("test", "svc", filled, filled, (PLAIN,))
    await old_tables.archive(pair, control, tmp_path, "plan-1")
    async with filled.session() as c:
        await fenced(c, PLAIN)
        await c.execute(f"ALTER TABLE {PLAIN.sql} ENABLE ALWAYS TRIGGER cutover_fence")
        await retire.retire(c, PLAIN)
        await c.execute("CREATE TABLE trades (id int PRIMARY KEY); INSERT INTO trades VALUES (1), (2)")
    assert (await old_tables.archive(pair, control, tmp_path, "plan-2")).rows == 2


async def test_a_rehearsals_archive_in_the_same_folder_is_neither_taken_nor_overwritten(
    filled: Database, service_db: Database, control: Control, tmp_path: Path
) -> None:
    """It has the same plan; only the database it is from tells them apart, or the registration."""
    await fill(service_db)
    production, rehearsal = (Pair("test", "svc", db, db, (NASTY, PLAIN)) for db in (filled, service_db))
    await old_tables.archive(rehearsal, control, tmp_path, "plan")
    before = contents(tmp_path)
    with pytest.raises(Refused, match="not known to be of this migration"):
        await old_tables.archive(production, control, tmp_path, "plan")
    plan = load_text("migration: test\nmonolith: {database: m}\nservices: {svc: {database: s, tables: {trades: {}}}}\n")
    await plans.register(control, plan, "alice")
    with pytest.raises(Refused, match="not known to be of this migration"):
        await old_tables.archive(rehearsal, control, tmp_path, "plan")
    assert contents(tmp_path) == before


async def test_a_table_is_retired_once_and_only_behind_a_fence(filled: Database) -> None:
    async with filled.session() as c:
        with pytest.raises(Refused, match="the fence is not up"):
            await retire.retire(c, NASTY)
        await fenced(c, NASTY)
        await c.execute(f"ALTER TABLE {NASTY.sql} DISABLE TRIGGER cutover_fence")
        with pytest.raises(Refused, match="the fence is not up"):
            await retire.retire(c, NASTY)
        await c.execute(f"ALTER TABLE {NASTY.sql} ENABLE ALWAYS TRIGGER cutover_fence")
        await c.execute(f"CREATE PUBLICATION svc_pub FOR TABLE {NASTY.sql}")
        with pytest.raises(Refused, match="publication svc_pub"):
            await retire.retire(c, NASTY)
        await c.execute("DROP PUBLICATION svc_pub")
        new = await retire.retire(c, NASTY)
        assert new.name.endswith("_retired_1")
        assert len(new.name.encode()) <= 63
        assert await retire.retire(c, NASTY) == new
        with pytest.raises(ConfigError):
            await retire.retire(c, TableName("public", "never_was"))


async def test_a_retired_table_is_dropped_only_by_its_retired_name_and_without_dependents(filled: Database) -> None:
    async with filled.session() as c:
        await fenced(c, PLAIN)
        await c.execute("CREATE VIEW v AS SELECT * FROM trades")
        with pytest.raises(Refused, match="was not retired"):
            await retire.drop_retired(c, PLAIN)
        new = await retire.retire(c, PLAIN)
        with pytest.raises(Refused, match="view v"):
            await retire.drop_retired(c, new)
        await c.execute("DROP VIEW v")
        assert [await retire.drop_retired(c, new) for _ in range(2)] == [True, False]


async def test_a_reader_is_not_held_up_for_long(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retire, "ATTEMPTS", 2)
    async with filled.session() as c, filled.session() as d:
        await fenced(c, PLAIN)
        async with d.transaction():
            await d.execute("SELECT FROM trades")
            with pytest.raises(NotYet):
                await retire.retire(c, PLAIN)


async def test_usage_counts_reads_and_writes_of_a_table_with_its_partitions(monolith_db: Database) -> None:
    table = TableName("public", "p")
    async with monolith_db.session() as c:
        await c.execute("CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT")
        before = (await retire.usage(c, [table]))[table]
        await c.execute("INSERT INTO p VALUES (1), (2); DELETE FROM p WHERE id = 1; SELECT pg_stat_force_next_flush()")
        after = (await retire.usage(c, [table]))[table]
        assert after.writes - before.writes == 3
        assert after.reads > before.reads
