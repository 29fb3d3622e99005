"""For every type two values that a client can tell apart: the proofs' alphabet."""

import asyncpg

#: Two values that the type's own `=` takes for equal.
EQUAL = [
    ("numeric", "1.50", "1.500"),
    ("numeric", "0", "0.00"),
    ("money_like", "2", "2.0"),
    ("numeric[]", "{1.0}", "{1.00}"),
    ("priced", "(1.0,x)", "(1.00,x)"),
    ("priced[]", '{"(1.0,x)"}', '{"(1.00,x)"}'),
    ("numrange", "[1.0,2)", "[1.00,2)"),
    ("nummultirange", "{[1.0,2)}", "{[1.00,2)}"),
    ("double precision", "0", "-0"),
    ("real", "0", "-0"),
    ("double precision[]", "{0}", "{-0}"),
    ("public.citext", "Abc", "aBC"),
    ("public.citext[]", "{Abc}", "{abc}"),
    ("bpchar", "ab", "ab "),
    ("interval", "1 mon", "30 days"),
    ("interval", "1 day", "24:00:00"),
    ("jsonb", '{"a": 1}', '{"a": 1.0}'),
    ("jsonb", "[0]", "[0.00]"),
    ("box", "(1,1),(0,0)", "(2,2),(1,1)"),
    ("circle", "<(0,0),1>", "<(5,5),1>"),
    ("path", "((0,0),(1,1))", "((0,0),(2,2))"),
    ("public.vector(1)", "[0]", "[-0]"),
]
#: Two values that differ, of which the type's own hash is the same with any seed, or that are near each other.
UNEQUAL = [
    ("bigint", "1", "4294967296"),
    ("bigint", "-1", "9223372036854775807"),
    ("numeric", "1.5", "-1.5"),
    ("numeric(12,2)", "1.50", "-1.50"),
    ("numeric", "NaN", "Infinity"),
    ("numeric", "Infinity", "-Infinity"),
    ("timestamp", "2000-01-01 00:00:00.000001", "2000-01-01 01:11:34.967296"),
    ("timestamptz", "2000-01-01 00:00:00.000001+00", "2000-01-01 01:11:34.967296+00"),
    ("timestamptz", "2024-01-01 00:00:00.000001+00", "2024-01-01 00:00:00.000002+00"),
    ("timestamp", "4714-11-24 00:00:00.000001 BC", "4714-11-24 00:00:00.000002 BC"),
    ("timestamptz", "-infinity", "infinity"),
    ("timestamptz", "294276-12-31 23:59:59.999999+00", "294276-12-31 23:59:59.999998+00"),
    ("date", "infinity", "5874897-12-31"),
    ("date", "4714-11-24 BC", "4714-11-25 BC"),
    ("time", "00:00:00.000001", "01:11:34.967296"),
    ("timetz", "12:00:00+00", "13:00:00+01"),
    ("interval", "00:00:00.000001", "01:11:34.967296"),
    ("money", "0.01", "42949672.96"),
    ("pg_lsn", "0/1", "1/0"),
    ("xid8", "1", "4294967296"),
    ("int[]", "{1,2}", "[0:1]={1,2}"),
    ("int[]", "{1,2}", "{{1,2}}"),
    ("text[]", "{NULL}", '{"NULL"}'),
    ("jsonb", "1", "-1"),
    ("json", '{"a":1}', '{"a": 1}'),
    ("mood", "sad", "glad"),
    ("mood[]", "{sad}", "{glad}"),
    ("boolean", "true", "false"),
    ("smallint", "1", "-1"),
    ("int", "1", "-1"),
    ("oid", "1", "2"),
    ("real", "1.1", "1.1000001"),
    ("double precision", "NaN", "Infinity"),
    ("double precision", "5e-324", "0"),
    ("text", "", None),
    ("text", "a", "a "),
    ("text", "\u00e9", "e\u0301"),
    ("varchar(9)", "a", "A"),
    ("char(4)", "a", "b"),
    ('"char"', "a", "b"),
    ("name", "a", "A"),
    ("bytea", r"\x", r"\x00"),
    ("bytea", r"\x0001", r"\x0100"),
    ("uuid", "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"),
    ("inet", "10.0.0.1", "10.0.0.1/24"),
    ("cidr", "10.0.0.0/8", "10.0.0.0/9"),
    ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:04"),
    ("macaddr8", "08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03:04:06"),
    ("bit(3)", "101", "100"),
    ("varbit", "1", "10"),
    ("point", "(1,2)", "(1,2.0000000000000004)"),
    ("line", "{1,2,3}", "{1,2,4}"),
    ("lseg", "[(0,0),(1,1)]", "[(1,1),(0,0)]"),
    ("polygon", "((0,0),(1,1))", "((0,0),(1,2))"),
    ("tsvector", "'a':1", "'a':2"),
    ("tsquery", "'a'", "'b'"),
    ("int4range", "[1,3)", "[1,4)"),
    ("tstzrange", "[2000-01-01,2000-01-02)", "[2000-01-01,2000-01-02]"),
    ("jsonpath", "$.a", "$.b"),
    ("public.hstore", '"a"=>"1"', '"a"=>NULL'),
    ("short", "1", "2"),
    ("regclass", "pg_class", "pg_type"),
    ("pg_snapshot", "10:20:10", "10:20:11"),
    ("txid_snapshot", "10:20:10", "10:20:11"),
    ("int2vector", "1 2", "2 1"),
    ("oidvector", "1 2", "2 1"),
    ("tid", "(0,1)", "(1,0)"),
    ("xid", "1", "2"),
    ("cid", "1", "2"),
    ("aclitem", "postgres=r/postgres", "postgres=w/postgres"),
    ("refcursor", "a", "A"),
    ("regproc", "now", "pg_backend_pid"),
    ("regprocedure", "now()", "pg_backend_pid()"),
    ("regoper", "||/", "|/"),
    ("regoperator", "+(integer,integer)", "-(integer,integer)"),
    ("regtype", "integer", "bigint"),
    ("regrole", "pg_monitor", "pg_read_all_stats"),
    ("regnamespace", "pg_catalog", "public"),
    ("regcollation", '"C"', '"POSIX"'),
    ("regconfig", "simple", "english"),
    ("regdictionary", "simple", "english_stem"),
    ("int8range", "[1,3)", "[1,4)"),
    ("daterange", "[2000-01-01,2000-01-03)", "[2000-01-01,2000-01-04)"),
    ("tsrange", "[2000-01-01,2000-01-02)", "(2000-01-01,2000-01-02)"),
    ("int4multirange", "{[1,3)}", "{[1,2),[3,4)}"),
    ("int8multirange", "{}", "{[1,2)}"),
    ("datemultirange", "{[2000-01-01,2000-01-03)}", "{[2000-01-01,2000-01-04)}"),
    ("tsmultirange", "{[2000-01-01,2000-01-02)}", "{[2000-01-01,2000-01-02]}"),
    ("tstzmultirange", "{[2000-01-01,2000-01-02)}", "{[2000-01-01,2000-01-02]}"),
]
ALL = [*EQUAL, *UNEQUAL]
EXTENSIONS = ("citext", "hstore", "vector")
MADE = """
CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN money_like AS numeric; CREATE DOMAIN short AS int;
CREATE TYPE priced AS (price numeric, name text);
"""
TYPES = "; ".join([*(f"CREATE EXTENSION {name}" for name in EXTENSIONS), MADE])
#: Types of which not every server has been built with a reader.
OPTIONAL = [("xml", "<a/>", "<a></a>")]

Pairs = list[tuple[str, str, str | None]]


async def not_to_be_written(connection: asyncpg.Connection, kind: str) -> bool:
    """Whether the type's own input refuses any value, as those of the catalog alone do."""
    try:
        await connection.fetchval(f"SELECT NULLIF('<a/>', '')::{kind} IS NULL")
    except asyncpg.FeatureNotSupportedError:
        return True
    except asyncpg.PostgresError:
        return False
    return False


async def pairs_at(*connections: asyncpg.Connection) -> Pairs:
    """Makes the types in each database, but for those of extensions that some server lacks; the pairs that remain."""
    missing: set[str] = set()
    for connection in connections:
        there = {row["name"] for row in await connection.fetch("SELECT name FROM pg_available_extensions")}
        missing |= set(EXTENSIONS) - there
    for connection in connections:
        made = [f"CREATE EXTENSION {name}" for name in EXTENSIONS if name not in missing]
        await connection.execute("; ".join([*made, MADE]))
    pairs = [pair for pair in ALL if not any(name in pair[0] for name in missing)]
    written = [p for p in OPTIONAL if not any([await not_to_be_written(c, p[0]) for c in connections])]
    return [*pairs, *written]
