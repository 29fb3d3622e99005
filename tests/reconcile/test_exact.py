"""A pass finds every kind of difference, by its key, and nothing else."""

import pytest

from cutover.errors import ConfigError, GateClosed, Refused
from cutover.postgres.databases import Pair
from cutover.postgres.identifiers import quote
from cutover.reconcile import ranges
from tests.reconcile.conftest import World

COLUMNS = """
    txt text, txt2 text, num numeric, fixed numeric(20,8), at timestamptz, plain timestamp, span interval, doc jsonb,
    js json, dbl double precision, flt real, ci public.citext, arr int[], texts text[], bin bytea, flag boolean,
    padded char(6), kind mood, ident uuid, spot point, addr inet, bits varbit, money money, lex tsvector, rng int4range,
    twice numeric GENERATED ALWAYS AS (num * 2) STORED
"""

#: Row number → what is changed on the right side in that row.
CORRUPTIONS = {
    1: "txt = ''",
    2: "txt = 'abc '",
    3: "num = 1.500",
    4: "at = at + interval '1 microsecond'",
    5: """doc = '{"a": 1.00}'""",
    6: "dbl = '-0'",
    7: "flt = flt + 0.0000001",
    8: "ci = 'ABC'",
    9: "arr = '[0:1]={1,2}'",
    10: "bin = '\\x0001ff'",
    11: "txt = txt2, txt2 = txt",
    12: "flag = NULL",
    13: "kind = 'glad'",
    14: "ident = '00000000-0000-0000-0000-000000000002'",
    15: "spot = '(1,2.0000000000000004)'",
    16: """js = '{"a":1}'""",
    17: "span = '24 hours'",
    18: "texts = '{NULL}'",
    19: "addr = '10.0.0.1/24'",
    20: "bits = B'0101'",
    21: "plain = plain + interval '1 microsecond'",
    22: "fixed = 1.00000001",
    23: "txt = repeat('x', 99999) || 'y'",
    24: "padded = 'ab c'",
    25: "money = '1.01'",
    26: "rng = '[1,4)'",
}


async def fill(world: World, rows: int = 60) -> None:
    await world.both(
        f"""CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'glad');
        CREATE TABLE t (id bigint PRIMARY KEY, {COLUMNS});
        INSERT INTO t (id, txt, txt2, num, fixed, at, plain, span, doc, js, dbl, flt, ci, arr, texts, bin, flag, padded,
                       kind, ident, spot, addr, bits, money, lex, rng)
        SELECT n, CASE n WHEN 1 THEN NULL WHEN 23 THEN repeat('x', 100000) ELSE 'abc' END, 'def', 1.50, 1.5,
               '2024-05-05 10:00:00+02', '2024-05-05 10:00:00', '1 day', '{{"a": 1.0}}', '{{"a": 1}}', 0, 1.1, 'abc',
               '{{1,2}}', '{{"NULL"}}', '\\x0001fe', false, 'ab', 'sad', '00000000-0000-0000-0000-000000000001',
               '(1,2)', '10.0.0.1', B'01', '1.00', 'a b', '[1,3)'
        FROM generate_series(1, {rows}) AS n"""
    )


async def test_every_kind_of_corruption_is_found_by_its_key_and_nothing_else(world: World) -> None:
    await fill(world)
    for row, change in CORRUPTIONS.items():
        await world.right.execute(f"UPDATE t SET {change} WHERE id = {row}")
    # two rows that exchange a value: every column and every value is still there
    await world.both("UPDATE t SET txt = 'row ' || id WHERE id IN (40, 41)")
    await world.right.execute("UPDATE t SET txt = 'row ' || (81 - id) WHERE id IN (40, 41)")
    await world.right.execute("DELETE FROM t WHERE id = 50")
    await world.left.execute("DELETE FROM t WHERE id IN (1000, 51)")
    report = await world.compare("t")
    expected = {str(row): "mismatched" for row in (*CORRUPTIONS, 40, 41)}
    assert await world.found(report) == {**expected, "50": "missing", "51": "extra"}
    assert (report.rows_source, report.rows_target) == (59, 59)
    assert (report.mismatched, report.missing, report.extra, report.unsettled) == (28, 1, 1, 0)
    assert report.rate == pytest.approx(30 / 59)
    assert report.seed_rate == pytest.approx(28 / 59)
    assert report.complete
    assert report.position


async def test_equal_tables_have_no_differences_whatever_the_sessions_of_the_roles_say(world: World) -> None:
    await fill(world)
    await world.right.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database()); "
        "EXECUTE format('ALTER DATABASE %I SET datestyle = ''SQL, DMY''', current_database()); "
        "EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database()); "
        "EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database()); END $$"
    )
    report = await world.compare("t")
    assert report.differences == 0
    assert (report.rows_source, report.rows_target) == (60, 60)


async def test_empty_tables_are_equal_and_a_wholly_missing_side_is_found_row_by_row(world: World) -> None:
    await world.both("CREATE TABLE e (id int PRIMARY KEY, v text)")
    report = await world.compare("e")
    assert (report.rows_source, report.rows_target, report.differences, report.rate) == (0, 0, 0, 0.0)
    await world.right.execute("INSERT INTO e SELECT n, 'v' FROM generate_series(1, 12000) AS n")
    report = await world.compare("e")
    assert (report.extra, report.rows_target, report.rate) == (12000, 12000, 12000.0)
    reverse = await world.compare("e", "reverse")
    assert (reverse.missing, reverse.extra, reverse.rate) == (12000, 0, 1.0)
    assert len(await world.found(reverse)) == 12000


async def test_extra_rows_before_the_first_and_after_the_last_row_are_found(world: World) -> None:
    await world.both("CREATE TABLE r (id bigint PRIMARY KEY, v int)")
    await world.both("INSERT INTO r SELECT n, n FROM generate_series(1, 25000) AS n")
    await world.right.execute("INSERT INTO r SELECT -n, n FROM generate_series(0, 2) AS n")
    await world.right.execute("INSERT INTO r VALUES (25001, 1), (9000000000, 1)")
    await world.right.execute("DELETE FROM r WHERE id IN (1, 10000, 10001, 25000)")
    report = await world.compare("r")
    assert await world.found(report) == {
        **dict.fromkeys(("0", "-1", "-2", "25001", "9000000000"), "extra"),
        **dict.fromkeys(("1", "10000", "10001", "25000"), "missing"),
    }


KEYS = [
    ("k text", "chr(97 + n % 26) || repeat(chr(228 + n % 50), 3) || ' -\"\\_' || n"),
    ('k text COLLATE "C"', "md5(n::text)"),
    ("k varchar(40)", "upper(md5(n::text))"),
    ("k char(20)", "n || ' x'"),
    ("k uuid", "md5(n::text)::uuid"),
    ("k public.citext", "md5(n::text)"),
    ("k timestamptz", "'2024-01-01'::timestamptz + n * interval '1 microsecond'"),
    ("k numeric", "n / 7.0"),
    ("k bytea", "sha256(n::text::bytea)"),
    ("k double precision", "n * 1e-300"),
    ("k kinds", "('k' || n % 3)::kinds"),
    ("k date", "'2000-01-01'::date + n"),
    ("k inet", "'10.0.0.0'::inet + n"),
    ("k text[]", "ARRAY['é' || n, NULL]"),
    ("k positive", "n"),
]


async def test_any_type_of_key_is_walked_completely(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_STEP", "SMALLEST_STEP", "LARGEST_STEP"):
        monkeypatch.setattr(ranges, name, 3000)
    await world.both(
        "CREATE EXTENSION citext; CREATE TYPE kinds AS ENUM ('k2', 'k0', 'k1'); "
        "CREATE DOMAIN positive AS bigint CHECK (value > 0)"
    )
    for number, (key, value) in enumerate(KEYS):
        table = f"k{number}"
        await world.both(f"CREATE TABLE {table} ({key}, n int, v text DEFAULT 'v', PRIMARY KEY (k, n))")
        await world.both(f"INSERT INTO {table} (k, n) SELECT {value}, n FROM generate_series(1, 8000) AS n")
        await world.right.execute(f"DELETE FROM {table} WHERE n IN (1, 4000, 8000)")
        await world.left.execute(f"DELETE FROM {table} WHERE n IN (2, 4001, 7999)")
        await world.right.execute(f"UPDATE {table} SET v = 'w' WHERE n IN (3, 7777)")
        report = await world.compare(table)
        found = {key.rpartition("|")[2]: kind for key, kind in (await world.found(report)).items()}
        assert found == {
            **dict.fromkeys(("1", "4000", "8000"), "missing"),
            **dict.fromkeys(("2", "4001", "7999"), "extra"),
            **dict.fromkeys(("3", "7777"), "mismatched"),
        }, key
        assert (report.rows_source, report.rows_target) == (7997, 7997), key


async def test_a_key_that_only_reads_differently_is_one_mismatched_row(world: World) -> None:
    await world.both(
        "CREATE EXTENSION citext; CREATE TABLE c (k public.citext PRIMARY KEY); CREATE TABLE d (k numeric PRIMARY KEY)"
    )
    await world.left.execute("INSERT INTO c VALUES ('Abc'), ('same'); INSERT INTO d VALUES (1.50), (2)")
    await world.right.execute("INSERT INTO c VALUES ('aBC'), ('same'); INSERT INTO d VALUES (1.5), (2)")
    assert await world.found(await world.compare("c")) == {"Abc": "mismatched"}
    assert await world.found(await world.compare("d")) == {"1.50": "mismatched"}


async def test_nasty_identifiers_and_partitions_are_compared(world: World) -> None:
    table, column = 'Tést "x"; SELECT', "key\"0' $1 {v} %s"
    await world.both(
        f"CREATE TABLE {quote(table)} ({quote(column)} int, n int, v text, PRIMARY KEY (n, {quote(column)})) "
        "PARTITION BY RANGE (n); "
        f"CREATE TABLE part1 PARTITION OF {quote(table)} FOR VALUES FROM (0) TO (10); "
        f"CREATE TABLE part2 PARTITION OF {quote(table)} DEFAULT"
    )
    await world.both(f"INSERT INTO {quote(table)} SELECT i, i % 20, 'v' FROM generate_series(1, 100) AS i")
    await world.right.execute(f"UPDATE {quote(table)} SET v = 'w' WHERE {quote(column)} IN (5, 15)")
    assert await world.found(await world.compare(table)) == {"5|5": "mismatched", "15|15": "mismatched"}


async def test_what_cannot_be_compared_gets_a_clear_error(world: World) -> None:
    await world.both("CREATE TABLE odd (id int PRIMARY KEY, a int); CREATE ROLE nobody LOGIN")
    await world.right.execute("ALTER TABLE odd ALTER a TYPE bigint; ALTER TABLE odd ADD b text")
    try:
        with pytest.raises(GateClosed, match=r"'a' is integer at the source and bigint at the target.*'b' is only at"):
            await world.compare("odd")
        with pytest.raises(ConfigError, match="no table 'nothing'"):
            await world.compare("nothing")
        denied = type(world.pair.target)("service_db", as_role(world.pair.target.dsn, "nobody"))
        pair = Pair("m", "svc", world.pair.monolith, denied, ())
        await world.right.execute("ALTER TABLE odd ALTER a TYPE int; ALTER TABLE odd DROP b")
        world.pair = pair
        with pytest.raises(Refused, match="permission denied for table odd"):
            await world.compare("odd")
    finally:
        await world.both("DROP ROLE nobody")


def as_role(dsn: str, role: str) -> str:
    scheme, _, rest = dsn.partition("://")
    return f"{scheme}://{role}@{rest.rpartition('@')[2]}"
