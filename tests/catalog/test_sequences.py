"""Sequences of the new primary go past the old one's, in both directions, and never back."""

import asyncpg
import pytest

from cutover.errors import ConfigError
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName
from cutover.postgres.sequences import behind, raise_sequences

T = [TableName("public", 'we"ird T')]
SCHEMA = """
CREATE TABLE "we""ird T" (id bigint GENERATED ALWAYS AS IDENTITY, "it's\\" serial);
CREATE SEQUENCE "Free" CACHE 50; ALTER TABLE "we""ird T" ADD f bigint DEFAULT nextval('"Free"');
CREATE SEQUENCE down INCREMENT -2; ALTER TABLE "we""ird T" ADD d bigint DEFAULT nextval('down');
CREATE SEQUENCE round MAXVALUE 10 CYCLE; ALTER TABLE "we""ird T" ADD r bigint DEFAULT nextval('round')
"""


async def insert(c: asyncpg.Connection, n: int) -> None:
    await c.execute(f'INSERT INTO "we""ird T" SELECT FROM generate_series(1, {n})')


async def test_sequences_are_raised_past_the_source_both_ways(monolith_db: Database, service_db: Database) -> None:
    async with monolith_db.session() as a, service_db.session() as b:
        for c in (a, b):
            await c.execute(SCHEMA)
        await insert(a, 13)
        raised = {str(r.sequence): r for r in await raise_sequences(a, b, T, 100)}
        assert raised['we"ird T_id_seq'].after == 113
        assert raised["Free"].after == 50 + 100
        assert raised["down"].after == -25 - 200
        assert raised["round"].after == 3
        await insert(b, 1)
        row = await b.fetchrow('SELECT * FROM "we""ird T"')
        assert row is not None
        assert tuple(row) == (114, 114, 151, -227, 4)
        again = await raise_sequences(a, b, T, 100)
        assert [str(r.sequence) for r in again if r.changed] == ["round"]
        back = {str(r.sequence): r for r in await raise_sequences(b, a, T, 100)}
        assert back['we"ird T_id_seq'].after == 214
        assert back["down"].after == -227 - 200


async def test_a_sequence_ahead_of_the_source_is_not_lowered(monolith_db: Database, service_db: Database) -> None:
    async with monolith_db.session() as a, service_db.session() as b:
        for c in (a, b):
            await c.execute("CREATE TABLE t (id serial)")
        await b.execute("SELECT setval('t_id_seq', 5000)")
        [raised] = await raise_sequences(a, b, [TableName("public", "t")], 10)
        assert (raised.before, raised.after, raised.changed) == (5000, 5000, False)


async def test_the_wanted_value_counts_as_given_out_even_without_margin(
    monolith_db: Database, service_db: Database
) -> None:
    async with monolith_db.session() as a, service_db.session() as b:
        for c in (a, b):
            await c.execute("CREATE TABLE t (id serial)")
        await a.execute("INSERT INTO t DEFAULT VALUES")
        await raise_sequences(a, b, [TableName("public", "t")], 0)
        assert await b.fetchval("INSERT INTO t DEFAULT VALUES RETURNING id") == 2


async def test_a_sequence_without_room_is_an_error_before_anything_changes(
    monolith_db: Database, service_db: Database
) -> None:
    async with monolith_db.session() as a, service_db.session() as b:
        for c in (a, b):
            await c.execute("CREATE TABLE t (id serial, s smallserial)")
        await a.execute("SELECT setval('t_s_seq', 32000), setval('t_id_seq', 7)")
        with pytest.raises(ConfigError, match=r"'t_s_seq' \(t.s\) cannot be raised by 1000 steps of 1.*32767"):
            await raise_sequences(a, b, [TableName("public", "t")], 1000)
        assert await b.fetchval("SELECT last_value FROM t_id_seq") == 1


async def test_the_cure_of_a_sequence_that_is_behind_does_nothing_when_it_is_executed_again(
    monolith_db: Database,
) -> None:
    """Rising or falling: values that were drawn since, and are in no row any more, are not given out again."""
    table = TableName("public", "t")
    async with monolith_db.session() as c:
        await c.execute(
            "CREATE SEQUENCE down INCREMENT -2; CREATE TABLE t (id bigserial PRIMARY KEY, "
            "d bigint DEFAULT nextval('down') UNIQUE); INSERT INTO t VALUES (50, -50)"
        )
        found = await behind(c, [table])
        assert {one.column for one in found} == {"d", "id"}
        for one in found:
            await c.execute(one.cure)
        assert await behind(c, [table]) == []
        row = await c.fetchrow("INSERT INTO t DEFAULT VALUES RETURNING id, d")
        assert row is not None
        assert tuple(row) == (51, -52)
        await c.execute("DELETE FROM t WHERE id = 51")
        for one in found:
            await c.execute(one.cure)
        row = await c.fetchrow("INSERT INTO t DEFAULT VALUES RETURNING id, d")
        assert row is not None
        assert tuple(row) == (52, -54)
