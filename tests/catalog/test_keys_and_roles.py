"""Keys between services go, come back, and are kept loosely; roles get what they had and no more."""

import asyncio

import asyncpg
import pytest

from cutover.errors import ConfigError, Conflict, NotYet
from cutover.postgres import foreign_keys, locks, loose_keys, roles
from cutover.postgres.catalog import ForeignKey
from cutover.postgres.databases import CONNECTION_ERRORS, Database
from cutover.postgres.identifiers import TableName, quote
from tests.servers import Clusters
from tests.waiting import until

PARENT = 'CREATE TABLE "Us""ers" (a numeric(20,8), "b c" timestamptz, PRIMARY KEY (a, "b c"))'
CHILD = "CREATE TABLE t (id int PRIMARY KEY, x numeric(20,8), y timestamptz)"
KEY = 'ALTER TABLE t ADD CONSTRAINT "k\'ey" FOREIGN KEY (x, y) REFERENCES "Us""ers" ON DELETE '
T, USERS = TableName("public", "t"), TableName("public", 'Us"ers')


async def the_key(c: asyncpg.Connection) -> ForeignKey:
    [found] = await foreign_keys.crossing(c, [T])
    assert found.leaves
    return found.key


async def test_a_key_is_dropped_and_restored_any_number_of_times(monolith_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute(f"{PARENT}; {CHILD}; {KEY} CASCADE")
        key = await the_key(c)
        assert [x.leaves for x in await foreign_keys.crossing(c, [USERS])] == [False]
        assert await foreign_keys.crossing(c, [T, USERS]) == []
        assert [await foreign_keys.drop(c, key) for _ in range(2)] == [True, False]
        await c.execute("INSERT INTO t VALUES (1, 2, now())")
        await foreign_keys.restore(c, key)
        with pytest.raises(Conflict, match="do not exist"):
            await foreign_keys.validate(c, key)
        await c.execute("DELETE FROM t")
        for _ in range(2):
            await foreign_keys.restore(c, key)
            await foreign_keys.validate(c, key)
        assert await the_key(c) == key


async def test_a_lock_that_is_held_is_not_waited_for_and_its_holder_is_named(monolith_db: Database) -> None:
    async with monolith_db.session() as c, monolith_db.session("nightly-job") as d:
        await c.execute(f"{PARENT}; {CHILD}; {KEY} CASCADE")
        key = await the_key(c)
        async with d.transaction():
            await d.execute("SELECT FROM t")
            with pytest.raises(NotYet, match="nightly-job"):
                await locks.with_lock_limit(c, "ALTER TABLE t DROP COLUMN id", [T], "dropping", attempts=2)
        assert await foreign_keys.drop(c, key)


@pytest.mark.parametrize(("rule", "left"), [("CASCADE", [2]), ("SET NULL", [1, 2]), ("SET NULL (y)", [1, 2])])
async def test_a_loose_key_lets_children_in_another_database_follow(
    monolith_db: Database, service_db: Database, rule: str, left: list[int]
) -> None:
    async with monolith_db.session() as p, service_db.session() as c:
        await p.execute(f"{PARENT}; {CHILD}; {KEY} {rule}")
        key = await the_key(p)
        assert [await loose_keys.install_loose_key(p, key) for _ in range(2)] == [True, False]
        await foreign_keys.drop(p, key)
        await c.execute(CHILD)
        await p.execute('INSERT INTO "Us""ers" VALUES (1.5, \'2020-03-04 00:00:00.123456+00\'), (2, now())')
        for n, row in enumerate(await p.fetch('SELECT * FROM "Us""ers" ORDER BY a'), 1):
            await c.execute("INSERT INTO t VALUES ($1, $2, $3)", n, *row)
        assert await loose_keys.orphans(c, p, key) == 0
        # another date style, as an application may have it
        await p.execute("SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kolkata'")
        await p.execute('DELETE FROM "Us""ers" WHERE a = 1.5')
        assert await loose_keys.pending(p, key) == 1
        assert await loose_keys.orphans(c, p, key) == 1
        assert await loose_keys.process_loose_keys(monolith_db, service_db, key) == 1
        assert await loose_keys.process_loose_keys(monolith_db, service_db, key) == 0
        assert [row["id"] for row in await c.fetch("SELECT id FROM t ORDER BY id")] == left
        assert await loose_keys.orphans(c, p, key) == 0
        if "(y)" in rule:
            assert await c.fetchval("SELECT x IS NOT NULL AND y IS NULL FROM t WHERE id = 1")


async def test_the_queue_keeps_what_a_fenced_child_refuses_and_a_reborn_parent_keeps_its_children(
    monolith_db: Database, service_db: Database
) -> None:
    async with monolith_db.session() as p, service_db.session() as c:
        await p.execute(f"{PARENT}; {CHILD}; {KEY} CASCADE")
        key = await the_key(p)
        await loose_keys.install_loose_key(p, key)
        await c.execute(
            f"{CHILD}; CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION USING ERRCODE = 'CU001'; END$$; INSERT INTO t VALUES (1, 1, '2020-01-01');"
            "CREATE TRIGGER no BEFORE DELETE ON t EXECUTE FUNCTION no()"
        )
        await p.execute('INSERT INTO "Us""ers" VALUES (1, \'2020-01-01\'); DELETE FROM "Us""ers"')
        with pytest.raises(asyncpg.PostgresError) as e:
            await loose_keys.process_loose_keys(monolith_db, service_db, key)
        assert e.value.sqlstate == "CU001"
        assert await loose_keys.pending(p) == 1
        await c.execute("DROP TRIGGER no ON t")
        await p.execute('INSERT INTO "Us""ers" VALUES (1, \'2020-01-01\')')
        assert await loose_keys.process_loose_keys(monolith_db, service_db, key) == 1
        assert await c.fetchval("SELECT count(*) FROM t") == 1


@pytest.mark.parametrize("rule", ["CASCADE", "SET NULL"])
async def test_a_parent_and_a_child_that_come_while_children_follow_keep_each_other(
    monolith_db: Database, service_db: Database, rule: str
) -> None:
    """The parent was seen to be gone; by the time of the delete it is back, and has a child that was acknowledged."""
    async with monolith_db.session() as p, service_db.session() as c:
        await p.execute(f"{PARENT}; {CHILD}; {KEY} {rule}")
        key = await the_key(p)
        await loose_keys.install_loose_key(p, key)
        await c.execute(f"{CHILD}; INSERT INTO t VALUES (1, 1, '2020-01-01'), (2, 2, '2020-01-01')")
        await p.execute('INSERT INTO "Us""ers" VALUES (1, \'2020-01-01\'), (2, \'2020-01-01\'); DELETE FROM "Us""ers"')
        async with c.transaction():
            await c.execute("LOCK TABLE t IN SHARE MODE")  # between the look and the delete
            following = asyncio.create_task(loose_keys.process_loose_keys(monolith_db, service_db, key))
            async with service_db.session() as look:
                await until(
                    lambda: look.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"), "the delete waits"
                )
            await p.execute('INSERT INTO "Us""ers" VALUES (1, \'2020-01-01\')')
            await c.execute("INSERT INTO t VALUES (3, 1, '2020-01-01')")
        assert await following == 2
        rows = await c.fetch("SELECT id FROM t WHERE x IS NOT NULL ORDER BY id")
        assert [row["id"] for row in rows] == [1, 3]
        assert await loose_keys.pending(p) == 0


async def test_children_that_follow_are_held_no_longer_than_some_seconds_when_the_process_stops(
    monolith_db: Database, service_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"idle_in_transaction_session_timeout": "300ms", "lock_timeout": "5s"}
    monkeypatch.setattr(loose_keys, "_CHILD_LIMITS", limits)
    async with monolith_db.session() as p, service_db.session() as c:
        await p.execute(f"{PARENT}; {CHILD}; {KEY} CASCADE")
        key = await the_key(p)
        await loose_keys.install_loose_key(p, key)
        await c.execute(f"{CHILD}; INSERT INTO t VALUES (1, 1, '2020-01-01')")
        await p.execute('INSERT INTO "Us""ers" VALUES (1, \'2020-01-01\'); DELETE FROM "Us""ers"')
        stopped = p.transaction()
        async with service_db.session() as look:
            async with c.transaction():
                await c.execute("LOCK TABLE t IN SHARE MODE")
                following = asyncio.create_task(loose_keys.process_loose_keys(monolith_db, service_db, key))
                waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"
                await until(lambda: look.fetchval(waiting), "the delete waits")
                await stopped.start()
                await p.execute('LOCK TABLE "Us""ers" IN ACCESS EXCLUSIVE MODE')
            # it waits for the parents now, with its children deleted and uncommitted
            ended = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'cutover-loose-keys'"
            await until(lambda: look.fetchval(ended), "the server has ended it", 10)
        await stopped.rollback()
        with pytest.raises(CONNECTION_ERRORS):
            await following
        assert await c.fetchval("SELECT count(*) FROM t") == 1
        assert await loose_keys.pending(p) == 1
        assert await loose_keys.process_loose_keys(monolith_db, service_db, key) == 1
        assert await c.fetchval("SELECT count(*) FROM t") == 0


async def test_an_applier_in_replica_mode_queues_nothing_and_a_plain_role_does(
    monolith_db: Database, clusters: Clusters
) -> None:
    async with monolith_db.session() as p:
        await p.execute(f"{PARENT}; {CHILD}; {KEY} CASCADE")
        key = await the_key(p)
        await loose_keys.install_loose_key(p, key)
        await p.execute('INSERT INTO "Us""ers" VALUES (1, now()), (2, now()); SET session_replication_role = replica;'
                        'DELETE FROM "Us""ers" WHERE a = 1; RESET session_replication_role')  # fmt: skip
        assert await loose_keys.pending(p, key) == 0
        await p.execute('CREATE ROLE loose_app; GRANT SELECT, DELETE ON "Us""ers" TO loose_app; SET ROLE loose_app;'
                        'DELETE FROM "Us""ers"; RESET ROLE; DROP OWNED BY loose_app; DROP ROLE loose_app')  # fmt: skip
        assert await loose_keys.pending(p, key) == 1


async def test_a_restricting_key_cannot_be_loose(monolith_db: Database) -> None:
    async with monolith_db.session() as p:
        await p.execute(f"{PARENT}; {CHILD}; {KEY} RESTRICT")
        with pytest.raises(ConfigError, match=r"ON DELETE RESTRICT.*choose `drop`"):
            await loose_keys.install_loose_key(p, await the_key(p))


APP, GROUP, MEMBER, READER = 'app "x"', "Group", "select", "only_reads"


async def _drop_roles(database: Database) -> None:
    async with database.session() as c:
        for role in (APP, MEMBER, GROUP, READER):
            if await c.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
                await c.execute(f"DROP OWNED BY {quote(role)}; DROP ROLE {quote(role)}")


async def test_roles_get_the_same_grants_and_own_nothing(monolith_db: Database, service_db: Database) -> None:
    try:
        async with monolith_db.session() as a, service_db.session() as b:
            await a.execute(
                f"CREATE ROLE {quote(APP)} LOGIN PASSWORD 'geheim' CONNECTION LIMIT 7; CREATE ROLE {quote(GROUP)};"
                f"CREATE ROLE {quote(MEMBER)} LOGIN IN ROLE {quote(GROUP)}; CREATE ROLE {quote(READER)} LOGIN;"
                "CREATE SCHEMA s; CREATE TABLE s.t (id serial PRIMARY KEY, v int) PARTITION BY RANGE (id);"
                "CREATE TABLE s.t1 PARTITION OF s.t DEFAULT; CREATE TABLE mine (id int);"
                f"GRANT SELECT, INSERT, UPDATE (v), TRIGGER ON s.t TO {quote(APP)};"
                f"GRANT USAGE ON SEQUENCE s.t_id_seq TO {quote(APP)};"
                f"GRANT DELETE ON s.t1 TO {quote(GROUP)}; GRANT SELECT ON s.t TO {quote(READER)};"
                f"ALTER TABLE mine OWNER TO {quote(APP)}"
            )
            await b.execute("CREATE SCHEMA s; CREATE TABLE s.t (id serial PRIMARY KEY, v int) PARTITION BY RANGE (id);"
                            "CREATE TABLE s.t1 PARTITION OF s.t DEFAULT; CREATE TABLE mine (id int)")  # fmt: skip
            tables = [TableName("s", "t"), TableName("public", "mine")]
            assert await roles.application_roles(a, tables) == (GROUP, APP)
            reports = {r.role: r for r in await roles.copy_roles(monolith_db, service_db, tables)}
            assert sorted(reports) == sorted([GROUP, APP, MEMBER])
            assert (reports[APP].created, reports[APP].password_copied) == (True, True)
            again = await roles.copy_roles(monolith_db, service_db, tables)
            assert not any(r.created for r in again)

            async def may(role: str, table: str, privilege: str) -> bool:
                return bool(await b.fetchval("SELECT has_table_privilege($1, $2, $3)", role, table, privilege))

            assert await may(APP, "s.t", "SELECT, INSERT")
            assert await may(MEMBER, "s.t1", "DELETE")
            assert await may(APP, "mine", "INSERT")
            assert not await may(APP, "s.t", "UPDATE")
            assert not await may(APP, "s.t", "TRIGGER")
            assert await b.fetchval("SELECT has_column_privilege($1, 's.t', 'v', 'UPDATE')", APP)
            assert await b.fetchval("SELECT has_sequence_privilege($1, 's.t_id_seq', 'USAGE')", APP)
            assert await b.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", APP) == 7
            assert not await b.fetchval("SELECT EXISTS (SELECT FROM pg_class WHERE relowner = $1::regrole)", quote(APP))
            with pytest.raises(ConfigError, match="did you mean 'Group'"):
                await roles.copy_roles(monolith_db, service_db, tables, ["group"])
    finally:
        await asyncio.gather(_drop_roles(monolith_db), _drop_roles(service_db))
