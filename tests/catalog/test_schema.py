"""A service's schema is made from the monolith's, once, however often and wherever it was cut off."""

import asyncio
from pathlib import Path

import pytest

from cutover.devstack.binaries import postgres_bin
from cutover.errors import ConfigError, Conflict, Unreachable
from cutover.postgres import programs, schema
from cutover.postgres.databases import Database
from cutover.postgres.fingerprint import fingerprint
from cutover.postgres.identifiers import TableName

PART = TableName('we"ird s', "Part")
ITEM = TableName('we"ird s', "select")
TABLES = [PART, ITEM]
SOURCE = """
CREATE EXTENSION citext; CREATE SCHEMA "we""ird s"; SET search_path = "we""ird s", public;
CREATE TYPE "My Enum" AS ENUM ('z y', 'a'''); CREATE DOMAIN dom AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a dom, b "My Enum"); CREATE TYPE unused AS ENUM ('no');
CREATE FUNCTION inner_name() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 7';
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.x := inner_name (); RETURN NEW; END';
CREATE FUNCTION dflt() RETURNS dom LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION nobody() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE users (id int PRIMARY KEY);
CREATE TABLE "Part" (id int, e "My Enum" DEFAULT 'a''', d dom DEFAULT dflt(), x serial, p pair[],
    g bigint GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 3), s int GENERATED ALWAYS AS (id + 1) STORED, dropped int,
    user_id int CONSTRAINT to_users REFERENCES users ON DELETE CASCADE, PRIMARY KEY (id)) PARTITION BY RANGE (id);
ALTER TABLE "Part" DROP COLUMN dropped;
CREATE TABLE "p 1" PARTITION OF "Part" FOR VALUES FROM (0) TO (10);
CREATE INDEX ix ON "Part" (d); COMMENT ON COLUMN "Part".id IS 'c'; COMMENT ON TYPE dom IS 't';
CREATE TRIGGER stamp BEFORE INSERT ON "Part" FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TABLE "select" (a citext UNIQUE, id int REFERENCES "Part", CHECK (id > 0), EXCLUDE USING btree (id WITH =));
ALTER TABLE "select" REPLICA IDENTITY FULL; CREATE VIEW v AS SELECT * FROM "select";
CREATE SCHEMA cutover; CREATE FUNCTION cutover.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER cutover_fence BEFORE INSERT ON "select" EXECUTE FUNCTION cutover.f();
INSERT INTO users VALUES (1); INSERT INTO "Part" (id, user_id) VALUES (1, 1)
"""


async def run(source: Database, target: Database, tables: list[TableName] = TABLES) -> schema.SchemaReport:
    return await schema.apply_schema(source, target, tables, service="svc", bindir=postgres_bin())


@pytest.fixture
async def source(monolith_db: Database) -> Database:
    async with monolith_db.session() as c:
        await c.execute(SOURCE)
    return monolith_db


async def test_only_what_the_service_needs_is_made_and_both_sides_are_alike(
    source: Database, service_db: Database
) -> None:
    report = await run(source, service_db)
    assert [key.name for key in report.left_out_keys] == ["to_users"]
    assert 'REFERENCES "we""ird s".users(id) ON DELETE CASCADE' in report.left_out_keys[0].definition
    assert any(text.startswith("VIEW") for text in report.left_out)
    assert await schema.compare(source, service_db, TABLES) == []
    async with service_db.session() as c:
        made = await c.fetchval(
            "SELECT array_agg(relname::text ORDER BY 1) FROM pg_class WHERE relkind IN ('r', 'p', 'v') "
            "AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)",
            PART.schema,
        )
        assert made == ["Part", "p 1", "select"]
        functions = await c.fetchval(
            "SELECT array_agg(proname::text ORDER BY 1) FROM pg_proc "
            "WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)",
            PART.schema,
        )
        assert functions == ["dflt", "inner_name", "stamp"]
        assert await c.fetchval('SELECT to_regtype(\'"we""ird s".unused\')') is None
        assert await c.fetchval("SELECT to_regnamespace('cutover')") is None
        await c.execute('SET search_path = "we""ird s", public; INSERT INTO "Part" (id) VALUES (3)')
        assert tuple(await c.fetchrow('SELECT x, g, s, d FROM "Part"') or ()) == (7, 5, 4, 1)
    assert (await run(source, service_db)).created == ()


async def test_a_second_service_in_the_same_database_uses_the_types_that_are_there(
    source: Database, service_db: Database
) -> None:
    async with source.session() as c:
        await c.execute('CREATE TABLE "we""ird s".third (e "we""ird s"."My Enum", d "we""ird s".dom)')
    await run(source, service_db)
    report = await run(source, service_db, [TableName('we"ird s', "third")])
    assert [text.partition(" ")[0] for text in report.created] == ["TABLE"]


async def test_a_partition_made_later_is_added_by_the_next_run(source: Database, service_db: Database) -> None:
    await run(source, service_db)
    async with source.session() as c:
        await c.execute('CREATE TABLE "we""ird s".p2 PARTITION OF "we""ird s"."Part" FOR VALUES FROM (10) TO (20)')
    assert any("p2" in text for text in (await run(source, service_db)).created)
    assert await schema.compare(source, service_db, TABLES) == []


async def test_a_table_that_differs_is_a_conflict_that_lists_what_differs(
    source: Database, service_db: Database
) -> None:
    await run(source, service_db)
    async with service_db.session() as c:
        await c.execute('ALTER TABLE "we""ird s"."select" ADD COLUMN more int; DROP INDEX "we""ird s".ix')
    with pytest.raises(Conflict, match=r'column we"ird s.select.more is only at service_db.*') as e:
        await run(source, service_db)
    assert "ix is only at" in str(e.value)


async def test_enum_labels_in_another_order_are_a_difference(source: Database, service_db: Database) -> None:
    async with service_db.session() as c:
        await c.execute('CREATE SCHEMA "we""ird s"; CREATE TYPE "we""ird s"."My Enum" AS ENUM (\'a\'\'\', \'z y\')')
    with pytest.raises(Conflict, match="My Enum is"):
        await run(source, service_db)


async def test_a_table_that_needs_one_of_another_service_is_refused_by_name(
    source: Database, service_db: Database
) -> None:
    async with source.session() as c:
        await c.execute('CREATE TABLE "we""ird s".heir () INHERITS ("we""ird s".users)')
    with pytest.raises(Conflict, match=r"heir.*needs TABLE.*users"):
        await run(source, service_db, [TableName('we"ird s', "heir")])


async def test_two_runs_at_once_make_one_schema(source: Database, service_db: Database) -> None:
    reports = await asyncio.gather(run(source, service_db), run(source, service_db))
    assert sorted(bool(report.created) for report in reports) == [False, True]


async def test_a_shared_sequence_comes_along_without_its_owner(monolith_db: Database, service_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute("CREATE TABLE a (id serial); CREATE TABLE b (id int DEFAULT nextval('a_id_seq'))")
    await run(monolith_db, service_db, [TableName("public", "b")])
    async with service_db.session() as c:
        assert await c.fetchval("INSERT INTO b DEFAULT VALUES RETURNING id") == 1


async def test_the_fingerprint_does_not_see_our_own_objects_and_sees_a_changed_function(source: Database) -> None:
    async with source.session() as c:
        before = await fingerprint(c, TABLES)
        await c.execute(
            'DROP TRIGGER cutover_fence ON "we""ird s"."select";ALTER TABLE "we""ird s"."Part" DROP CONSTRAINT to_users'
        )
        assert (await fingerprint(c, TABLES)).hash == before.hash
        await c.execute(
            'CREATE OR REPLACE FUNCTION "we""ird s".stamp() RETURNS trigger '
            "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        after = await fingerprint(c, TABLES)
    assert {item for item in after.items if after.items[item] != before.items[item]} == {'function "we""ird s".stamp()'}


async def test_missing_and_old_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pg_dump is not in .*install"):
        await programs.find("pg_dump", tmp_path, 18)
    with pytest.raises(ConfigError, match="needs 99 or newer"):
        await programs.find("pg_dump", postgres_bin(), 99)


@pytest.mark.parametrize(
    "shown",
    [
        "pg_dump (PostgreSQL) 16.4",
        "pg_dump (PostgreSQL) 16beta1",
        "pg_dump (PostgreSQL) 16.4 (Debian 16.4-1.pgdg120+1)",
        "pg_dump (PostgreSQL) 16.10 (Ubuntu 16.10-0ubuntu0.24.04.1)",
    ],
)
async def test_a_programs_version_is_read_whatever_its_packager_adds(tmp_path: Path, shown: str) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(f"#!/bin/sh\necho '{shown}'\n")
    program.chmod(0o755)
    assert await programs.find("pg_dump", tmp_path, 16) == program
    with pytest.raises(ConfigError, match="needs 17 or newer"):
        await programs.find("pg_dump", tmp_path, 17)


def test_a_dsn_becomes_libpq_variables_and_never_an_argument() -> None:
    values = programs.environment("postgresql://al%40ice:p%2Fw@h1:1,[::1]:2/my%20db?sslmode=require", "app")
    names = ("PGUSER", "PGPASSWORD", "PGHOST", "PGPORT", "PGDATABASE", "PGSSLMODE", "PGAPPNAME")
    assert {name: values[name] for name in names} == {
        "PGUSER": "al@ice", "PGPASSWORD": "p/w", "PGHOST": "h1,::1", "PGPORT": "1,2", "PGDATABASE": "my db",
        "PGSSLMODE": "require", "PGAPPNAME": "app",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="'magic'"):
        programs.environment("postgresql:///db?magic=secret", "app")
    assert programs.environment("postgresql:///?service=prod", "app")["PGSERVICE"] == "prod"


def test_an_error_of_a_program_never_names_the_address() -> None:
    text = 'pg_dump: error: connection to server at "10.0.0.1", port 5432 failed: FATAL:  role "x" does not exist'
    assert "10.0.0.1" not in str(programs.failure("dump", text))


async def test_cut_off_at_any_moment_the_next_run_finishes(source: Database, service_db: Database) -> None:
    for moment in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25):
        attempt = asyncio.create_task(run(source, service_db))
        await asyncio.wait([attempt], timeout=moment)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        async with service_db.session() as c:
            made = await c.fetchval("SELECT count(*) FROM pg_class WHERE relname IN ('Part', 'p 1', 'select', 'ix')")
        assert made in (0, 4)
    await run(source, service_db)
    assert await schema.compare(source, service_db, TABLES) == []


async def test_a_restore_that_outlived_its_worker_is_ended_and_done_again(
    source: Database, service_db: Database
) -> None:
    async with service_db.session("cutover-schema/svc/restore") as orphan:
        await orphan.execute('BEGIN; CREATE SCHEMA "we""ird s"')  # as pg_restore leaves it while it runs
        await run(source, service_db)
        assert await schema.compare(source, service_db, TABLES) == []


async def test_a_source_that_is_down_is_said_so_without_its_address(service_db: Database) -> None:
    gone = Database("mono", "postgresql://postgres@127.0.0.1:1/x")
    with pytest.raises(Unreachable, match="'mono'") as e:
        await run(gone, service_db)
    assert "127.0.0.1" not in str(e.value)
