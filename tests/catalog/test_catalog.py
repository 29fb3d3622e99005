"""The catalog as Python sees it, on a real server, with names that are hard to quote."""

import pytest

from cutover.errors import ConfigError
from cutover.postgres import catalog
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName, quote

NASTY = ['we"ird', "Mixed Case", "select", "ü" * 31, "a.b", "back\\slash", "it's", "x" * 63]


@pytest.mark.parametrize("name", NASTY)
async def test_a_table_with_a_hard_name_is_read_whole(monolith_db: Database, name: str) -> None:
    table = TableName(name, name)
    async with monolith_db.session() as c:
        await c.execute(
            f"CREATE SCHEMA {quote(name)}; CREATE TYPE {quote(name)}.mood AS ENUM ('b', 'a');"
            f"CREATE TABLE {table.sql} ({quote(name)} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            f" mood {quote(name)}.mood, twice bigint GENERATED ALWAYS AS ({quote(name)} * 2) STORED)"
        )
        info = await catalog.table(c, table)
        assert info.primary_key == (name,)
        assert [column.identity for column in info.columns] == ["a", "", ""]
        assert info.written_columns == (name, "mood")
        assert "mood" in info.columns[1].type_sql
        assert info.columns[1].type_sql != "mood"
        [sequence] = await catalog.sequences_of(c, [info])
        assert (sequence.table, sequence.column, sequence.identity) == (table, name, True)
        assert (sequence.last_value, sequence.is_called) == (1, False)


async def test_missing_tables_are_all_listed_with_a_hint(monolith_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute(
            'CREATE TABLE "Trades" (id int); CREATE VIEW v AS SELECT 1; CREATE SCHEMA s; CREATE TABLE s.users ()'
        )
        wanted = [TableName("public", n) for n in ("trades", "v", "users", "nothing_like_it")]
        with pytest.raises(ConfigError) as e:
            await catalog.tables(c, wanted)
        text = str(e.value)
        assert "'trades' (did you mean 'Trades'?)" in text
        assert "'v' (it is a view, not a table)" in text
        assert "'users' (did you mean 's.users'?)" in text
        assert "'nothing_like_it'" in text


async def test_partitions_and_inheriting_children_are_descendants(monolith_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute(
            """CREATE TABLE p (id int, day int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
            CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (day);
            CREATE TABLE p11 PARTITION OF p1 FOR VALUES FROM (0) TO (5);
            CREATE TABLE i (id int PRIMARY KEY); CREATE TABLE "I child" () INHERITS (i);
            INSERT INTO p SELECT n, 1 FROM generate_series(1, 500) n; ANALYZE"""
        )
        p, i = await catalog.tables(c, [TableName("public", "p"), TableName("public", "i")])
        assert p.kind == "p"
        assert p.primary_key == ("day", "id")
        assert [str(t) for t in p.partitions] == ["p1", "p11"]
        assert [str(t) for t in i.partitions] == ["I child"]
        assert p.estimated_rows == 500
        assert p.bytes > 8192


async def test_foreign_keys_carry_a_definition_that_works_under_any_search_path(monolith_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute(
            """CREATE TABLE users (a int, b int, PRIMARY KEY (b, a));
            CREATE TABLE t (x int, y int, CONSTRAINT "k'ey"
                FOREIGN KEY (y, x) REFERENCES users (a, b) ON DELETE SET NULL (x))"""
        )
        [key] = await catalog.foreign_keys(c)
        assert (key.name, key.columns, key.referenced_columns) == ("k'ey", ("y", "x"), ("a", "b"))
        assert (key.on_delete, key.set_columns) == ("set null", ("x",))
        assert "REFERENCES public.users" in key.definition
        assert await c.fetchval("SHOW search_path") == '"$user", public'


async def test_a_sequence_that_two_tables_draw_from_names_the_other(monolith_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute(
            """CREATE TABLE a (id serial PRIMARY KEY);
            CREATE SEQUENCE own CACHE 50 INCREMENT -3 MAXVALUE 100 START 100 CYCLE;
            CREATE TABLE b (id int DEFAULT nextval('a_id_seq'), n bigint DEFAULT nextval('own'));
            SELECT setval('a_id_seq', 41, false), nextval('own')"""
        )
        infos = await catalog.tables(c, [TableName("public", "b")])
        a_seq, own = await catalog.sequences_of(c, infos)
        assert (a_seq.shared, a_seq.last_value, a_seq.is_called) == ((TableName("public", "a"),), 41, False)
        assert (own.increment, own.cache, own.cycle, own.max, own.shared) == (-3, 50, True, 100, ())
        assert own.last_value == 100 - 3 * 49


async def test_own_triggers_are_not_user_triggers(monolith_db: Database) -> None:
    async with monolith_db.session() as c:
        await c.execute(
            """CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TABLE t (id int); CREATE TRIGGER cutover_fence BEFORE INSERT ON t EXECUTE FUNCTION f();
            CREATE TRIGGER touch BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f();
            ALTER TABLE t ENABLE ALWAYS TRIGGER touch"""
        )
        [trigger] = await catalog.user_triggers(c, [await catalog.table(c, TableName("public", "t"))])
        assert (trigger.name, trigger.enabled, trigger.function) == ("touch", "A", "public.f()")


async def test_server_facts_name_the_server_and_its_settings(monolith_db: Database, service_db: Database) -> None:
    async with monolith_db.session() as c, service_db.session() as d:
        here, there = await catalog.server_facts(c), await catalog.server_facts(d)
        assert here.major >= 14
        assert here.timeline >= 1
        assert here.settings["wal_level"] == "logical"
        assert here.system_identifier != there.system_identifier
