"""Every type: values that a client can tell apart are told apart, whatever the type's own equality and hash say."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from cutover.control import reports
from cutover.plan.models import Compare
from cutover.postgres import compare, hashing
from cutover.postgres.columns import OWN
from cutover.postgres.hashing import Hashing, agree
from cutover.postgres.identifiers import TableName
from cutover.postgres.shapes import Shape, shapes
from tests.reconcile.conftest import World, found_columns
from tests.reconcile.values import ALL, EQUAL, TYPES, not_to_be_written

T = TableName("public", "t")


async def one_column_each(world: World) -> None:
    """Row n differs in column cn alone; row 1000 + n holds the left value on both sides."""
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(ALL))
    await world.both(f"{TYPES} CREATE TABLE t (id bigint PRIMARY KEY, {columns})")
    for connection, side in ((world.left, 1), (world.right, 2)):
        rows = ", ".join(f"({n}, ${n + 1}::text)" for n in range(len(ALL)))
        sets = "; ".join(
            f"INSERT INTO t (id, c{n}) SELECT {n}, v::{kind} FROM pairs WHERE id = {n}; "
            f"INSERT INTO t (id, c{n}) SELECT {n} + 1000, v::{kind} FROM firsts WHERE id = {n}"
            for n, (kind, _, _) in enumerate(ALL)
        )
        await connection.execute("CREATE TEMP TABLE pairs (id int, v text); CREATE TEMP TABLE firsts (id int, v text)")
        await connection.execute(f"INSERT INTO pairs VALUES {rows}", *(pair[side] for pair in ALL))
        await connection.execute(f"INSERT INTO firsts VALUES {rows}", *(pair[1] for pair in ALL))
        await connection.execute(sets)


async def hashes_differ_everywhere(*_: Any) -> dict[str, list[int] | None]:
    """As of two servers that agree on no hash function."""
    number = next(_calls)
    return {kind: [number] for kind in ("text", *OWN)}


_calls = itertools.count()


@pytest.mark.parametrize("agreeing", [True, False], ids=["own hashes", "servers that hash differently"])
async def test_what_a_client_can_tell_apart_differs_in_every_type(
    world: World, monkeypatch: pytest.MonkeyPatch, agreeing: bool
) -> None:
    if not agreeing:
        monkeypatch.setattr(hashing, "_probe", hashes_differ_everywhere)
    await one_column_each(world)
    report = await world.compare("t")
    assert await found_columns(world, report) == {str(n): (f"c{n}",) for n in range(len(ALL))}
    assert (report.rows_source, report.rows_target, report.mismatched) == (2 * len(ALL), 2 * len(ALL), len(ALL))


async def test_the_types_own_equality_is_coarser_as_the_engine_takes_it(world: World) -> None:
    """The list of pairs above is what this server says, not what somebody remembers."""
    await world.left.execute(TYPES)
    for kind, left, right in EQUAL:
        assert await world.left.fetchval(f"SELECT $1::text::{kind} = $2::text::{kind}", left, right), kind


async def test_every_type_that_a_column_can_have_is_in_the_list_or_takes_no_value(world: World) -> None:
    """Preflight refuses no type of a column, so the list has all of them."""
    await world.left.execute(TYPES)
    listed = {await world.left.fetchval("SELECT $1::text::regtype::text", kind.partition("(")[0]) for kind, _, _ in ALL}
    there = await world.left.fetch(
        "SELECT oid::regtype::text AS kind FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace "
        "AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' ORDER BY 1"
    )
    unlisted = [row["kind"] for row in there if row["kind"] not in listed]
    assert [kind for kind in unlisted if not await not_to_be_written(world.left, kind)] == []


async def test_own_hashes_alone_would_miss_what_the_forms_add(world: World) -> None:
    missed = {
        "hashint8extended(v::int8, 7)": ("1", "4294967296"),
        "hash_numeric_extended(v::numeric, 7)": ("1.5", "-1.5"),
        "timestamp_hash_extended(v::timestamp, 7)": ("2000-01-01 00:00:00.000001", "2000-01-01 01:11:34.967296"),
        "hash_array_extended(v::int[], 7)": ("{1,2}", "{{1,2}}"),
        "jsonb_hash_extended(v::jsonb, 7)": ("1", "-1"),
    }
    for expression, pair in missed.items():
        sql = f"SELECT count(DISTINCT {expression}) FROM unnest($1::text[]) AS x(v)"
        assert await world.left.fetchval(sql, list(pair)) == 1, expression
    # numeric's weight is xored in: two columns that swap 1 and 10000 would hide each other
    sql = "SELECT hash_numeric_extended(1, $1) # hash_numeric_extended(10000, $1)"
    assert await world.left.fetchval(sql, 7) == await world.left.fetchval(sql, 8) == 1


RANDOM: dict[str, str] = {
    "int8": "((random() * 2 - 1) * 2 ^ (n % 63))::numeric::int8",
    "int4": "((random() * 2 - 1) * 2 ^ (n % 31))::int8::int4",
    "int2": "(n - 20000)::int2",
    "oid": "(random() * 4294967295)::int8::oid",
    "float8": "(random() - 0.5) * 10.0 ^ (n % 600 - 300)",
    "float4": "((random() - 0.5) * 10.0 ^ (n % 60 - 30))::float4",
    "numeric": "round(((random() - 0.5) * 10.0 ^ (n % 20 - 10))::numeric, n % 12)",
    "timestamp": "timestamp '4713-01-01 BC' + (n % 7000) * interval '1 year' + n * interval '4294.967296 s'",
    "timestamptz": "timestamptz 'epoch' + ((random() - 0.5) * 2 ^ (n % 37)) * interval '1 second'",
    "date": "date '4714-11-24 BC' + (random() * 2 ^ (n % 31))::int8::int4 % 2100000000",
    "uuid": "gen_random_uuid()",
    "bytea": "substr(sha256(n::text::bytea), 1, n % 33)",
    "text": "repeat(chr(97 + n % 26), n % 40) || n % 7",
    "bool": "n % 2 = 0",
    "interval": "(n % 100) * interval '1 day' + (n % 77) * interval '1 hour'",
    "jsonb": "to_jsonb(round((random() * 100)::numeric, n % 4))",
}


@pytest.mark.parametrize("newer", [True, False], ids=["newer forms", "forms of all servers"])
async def test_no_two_values_of_a_type_have_one_hash_and_both_servers_have_the_same(world: World, newer: bool) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, " + ", ".join(f"v_{k} {k}" for k in RANDOM) + ")")
    await world.left.execute(f"INSERT INTO t SELECT n, {', '.join(RANDOM.values())} FROM generate_series(1, 15000) n")
    rows = await world.left.fetch("SELECT t::text AS row FROM t")
    await world.right.execute("INSERT INTO t SELECT (r::t).* FROM unnest($1::text[]) AS r", [r["row"] for r in rows])
    left, right, shape, chosen = await opened(world)
    assert chosen.newer == {"bool", "bytea", "timestamp", "timestamptz"}
    if not newer:
        chosen = replace(chosen, newer=frozenset())
    try:
        for column in (c for c in shape.columns if c.name != "id"):
            assert column.own in chosen.own or not column.own
            sql = (
                f"SELECT count(DISTINCT {column.text}) AS texts, count(DISTINCT h) AS hashes, sum(h) AS total "
                f"FROM (SELECT t.*, {chosen.column(column)} AS h FROM t) AS t"
            )
            here, there = await left.fetchrow(sql), await right.fetchrow(sql)
            assert here is not None
            assert here["texts"] == here["hashes"], column.name
            assert here == there, column.name
    finally:
        await left.close()
        await right.close()


async def opened(
    world: World, rules: Compare | None = None
) -> tuple[asyncpg.Connection, asyncpg.Connection, Shape, Hashing]:
    settings: dict[str, Any] = {**compare.READ_SETTINGS, "search_path": "pg_catalog, public"}
    left = await world.pair.monolith.connect("test", **settings)
    right = await world.pair.target.connect("test", **settings)
    shape, other = await shapes(left, right, T, rules or Compare())
    return left, right, shape, await agree(left, right, (shape, other), 20240505)


async def test_hashes_on_which_the_servers_disagree_are_not_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY, u uuid, v int8)")
    probe: Callable[..., Any] = hashing._probe
    calls = 0

    async def older(connection: asyncpg.Connection, wanted: set[str], seed: int) -> dict[str, list[int] | None]:
        nonlocal calls
        calls += 1
        number = calls
        answer: dict[str, list[int] | None] = await probe(connection, wanted, seed)
        return {**answer, "int8": [number], "uuid": answer["uuid"] if number == 1 else None}

    monkeypatch.setattr(hashing, "_probe", older)
    left, right, shape, chosen = await opened(world)
    await left.close()
    await right.close()
    assert chosen.own == {"text", "int4"}
    text = {c.name: chosen.column(c) for c in shape.columns}
    assert "uuid_hash" not in text["u"]
    assert "hashtextextended" in text["v"]


async def test_each_pass_draws_new_seeds(world: World) -> None:
    await world.both("CREATE TABLE t (id int PRIMARY KEY)")
    seeds = {(await world.compare("t")).seed for _ in range(3)}
    assert len(seeds) == 3
    newest = await reports.latest(world.control, "m", "svc", "t")
    assert newest is not None
    assert newest.seed in seeds
