"""How one column is compared: its value, its text as a client sees it, and the hash function of its type, if any.

Two values are equal when a client sees the same. A type's own hash follows the type's equality, which is often
coarser (`1.50` and `1.5`, `-0` and `0`, `A` and `a` in citext), and some do not even tell all unequal values apart:
numeric leaves out the sign and mixes its weight in linearly, eight-byte integers and timestamps are folded to 32 bits
whatever the seed, arrays leave out their bounds, an enum's is its OID's. So an own hash is used where equality is
identity and with what it leaves out added; anything else is hashed by its text.
(`src/backend/access/hash/hashfunc.c`, `hash_numeric_extended` in `utils/adt/numeric.c`.)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import asyncpg

from cutover.errors import GateClosed
from cutover.plan.models import Compare, EqualRule
from cutover.postgres.catalog import Column
from cutover.postgres.identifiers import quote

#: The base type of each column (through domains), and its output function where a cast to text would not use it.
FACTS = """
WITH RECURSIVE base AS (
    SELECT a.attname::text AS name, a.atttypid AS oid, a.atttypmod AS typmod FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.name, y.typbasetype, y.typtypmod
    FROM base b JOIN pg_catalog.pg_type y ON y.oid = b.oid AND y.typtype = 'd')
SELECT b.name, y.oid AS base_oid, b.typmod >= 0 AS sized,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname::text = b.name AND a.attnotnull
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint x WHERE x.conrelid = $1 AND x.contype = 'n'
                               AND x.conkey = ARRAY[a.attnum] AND NOT x.convalidated)) AS not_null,
       y.typcategory::text AS category, y.typname::text AS base_name,
       (SELECT pg_catalog.format('%I.%I', n.nspname, p.proname)
        FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_proc p ON p.oid = y.typoutput
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE c.castsource = y.oid AND c.casttarget = 25 AND c.castmethod = 'f') AS output
FROM base b JOIN pg_catalog.pg_type y ON y.oid = b.oid AND y.typtype <> 'd'
"""

#: Base types (OIDs of pg_type.dat) by the name of the hash that is used for them; see `OWN`.
_OWN_OF = {
    16: "bool", 17: "bytea", 20: "int8", 21: "int2", 23: "int4", 26: "oid", 700: "float4", 701: "float8",
    1082: "date", 1114: "timestamp", 1184: "timestamptz", 2950: "uuid",
}  # fmt: skip

#: Earliest time of which the second half is hashed by `date_bin`; it would leave the type's range before it.
_EARLY = "4713-01-01 00:00:00 BC"
#: 2^32 microseconds; written as a time, for 14 reads no number of that size in an interval.
_HIGH_HALF = "'01:11:34.967296'::interval"


def _times(function: str, kind: str) -> Callable[[str, str, str], str]:
    def form(value: str, seed: str, text: str) -> str:
        half = f"date_bin({_HIGH_HALF}, {value}, '2000-01-01'::{kind})"
        return (
            f"CASE WHEN {value} >= '{_EARLY}'::{kind} THEN {function}({half}, {function}({value}, {seed})) "
            f"ELSE {text} END"
        )

    return form


def _float(function: str) -> Callable[[str, str, str], str]:
    return lambda value, seed, text: f"CASE WHEN {value} = 0 THEN {text} ELSE {function}({value}, {seed}) END"


def _plain(function: str) -> Callable[[str, str, str], str]:
    return lambda value, seed, text: f"{function}({value}, {seed})"


#: SQL of each hash: of a value, a seed (SQL of a bigint), and the text form's hash of the same value.
OWN: Mapping[str, Callable[[str, str, str], str]] = {
    "bool": lambda value, seed, text: f"hashint4extended({value}::int4, {seed})",
    "bytea": lambda value, seed, text: f"hash_array_extended(ARRAY[{value}], {seed})",
    "int2": _plain("hashint2extended"),
    "int4": _plain("hashint4extended"),
    "int8": lambda value, seed, text: f"hashint4extended(({value} >> 32)::int4, hashint8extended({value}, {seed}))",
    "oid": _plain("hashoidextended"),
    # with the sign; and mixed once more, or the weight could be cancelled by another column's
    "numeric": lambda value, seed, text: (
        f"hashint4extended(({value} < 0)::int4, hash_numeric_extended({value}, {seed}))"
    ),
    "float4": _float("hashfloat4extended"),
    "float8": _float("hashfloat8extended"),
    "date": _plain("hashdateextended"),
    "timestamp": _times("timestamp_hash_extended", "timestamp"),
    "timestamptz": _times("timestamptz_hash_extended", "timestamptz"),
    "uuid": _plain("uuid_hash_extended"),
}
#: The same with functions that servers have since 18: fewer calls, no branches, and the seed is named once in each.
#: Times are hashed by the bytes in which they travel, all 64 bits of them.
NEWER: Mapping[str, Callable[[str, str, str], str]] = {
    "bool": _plain("hashboolextended"),
    "bytea": _plain("hashbyteaextended"),
    "numeric": lambda value, seed, text: f"hashboolextended({value} < 0, hash_numeric_extended({value}, {seed}))",
    "timestamp": lambda value, seed, text: f"hashbyteaextended(timestamp_send({value}), {seed})",
    "timestamptz": lambda value, seed, text: f"hashbyteaextended(timestamptz_send({value}), {seed})",
}
#: Hashes whose SQL names the seed once, so that they can be nested (and so can the text form, '').
NESTABLE = frozenset({"", "bool", "bytea", "int2", "int4", "int8", "oid", "numeric", "date", "uuid"})

#: Values by which two servers show that they hash alike.
PROBES: Mapping[str, tuple[str, ...]] = {
    "bool": ("true", "false"),
    "bytea": (r"\x", r"\x00ff", r"\x00112233445566778899aabbccddeeff0011"),
    "int2": ("0", "-1", "32767"),
    "int4": ("0", "-1", "2147483647", "-2147483648"),
    "int8": ("0", "-1", "1", "4294967296", "9223372036854775807", "-9223372036854775808"),
    "oid": ("0", "4294967295"),
    "float4": ("0", "-0", "1.5", "NaN", "-Infinity", "1e-40"),
    "float8": ("0", "-0", "1.5", "NaN", "-Infinity", "5e-324"),
    "numeric": ("0", "-1.5", "10000", "NaN", "123456789012345678901234567890.5"),
    "date": ("2000-01-01", "4714-11-24 BC", "infinity", "5874897-12-31"),
    "timestamp": ("2000-01-01", "2024-05-05 10:11:12.131415", "4714-11-24 BC", "-infinity", "infinity"),
    "timestamptz": ("2000-01-01Z", "2024-05-05 10:11:12.131415Z", "4714-11-24 00:00Z BC", "-infinity", "infinity"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "123e4567-e89b-12d3-a456-426614174000"),
    "text": ("", "a", '(1,"",,"ä ½")', "long " * 40),
}

# A number's zeros after the point, and the point if nothing is left; strings (the first branch) stay as they are.
_JSON_ZEROS = r"""'("(?:[^"\\]|\\.)*")|(\.\d*[1-9])0+(?!\d)|\.0+(?!\d)', '\1\2', 'g'"""
_ARRAY_BOUNDS = r"'^(\[-?\d+:-?\d+\])+=', ''"

_NUMERIC, _JSONB, _TIMESTAMPS = 1700, 3802, (1114, 1184)
_FITS = {
    "number": "numeric, real, double precision and jsonb",
    "case": "text, varchar, char and citext",
    "empty": "text, varchar, char and citext",
    "millisecond": "timestamps",
    "second": "timestamps",
    "bounds": "arrays",
}


@dataclass(frozen=True)
class Compared:
    """A column as it is compared. `value` and `text` are SQL over the table's alias `t`; `own` a key of `OWN` or ''."""

    column: Column
    base_oid: int
    #: What a client sees, before anything is passed over; repairs write it.
    shown: str
    value: str
    text: str
    own: str
    #: Whether there is surely no NULL; NOT NULL alone does not say so, it may not be validated (18).
    not_null: bool
    #: Why the column is left out of the comparison; '' where it is compared.
    left_out: str = ""

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def type_sql(self) -> str:
        return self.column.type_sql

    @property
    def generated(self) -> bool:
        return self.column.generated


def compared(column: Column, facts: asyncpg.Record, rules: Compare) -> Compared:
    """How the column is compared under the plan's rules. Raises GateClosed where a rule does not fit its type."""
    raw = f"t.{quote(column.name)}"
    shown = f"textin({facts['output']}({raw}))" if facts["output"] else f"{raw}::text"
    left_out = "generated" if column.generated else "excluded by the plan" if column.name in rules.exclude else ""
    rule = rules.equal.get(column.name)
    if rule and not left_out:
        value = _passed_over(rule, column, facts, raw, shown)
        return Compared(column, facts["base_oid"], shown, value, f"({value})::text", "", facts["not_null"])
    own = _OWN_OF.get(facts["base_oid"], "")
    if facts["base_oid"] == _NUMERIC and facts["sized"]:
        own = "numeric"  # only a declared scale makes equal values the same text
    return Compared(column, facts["base_oid"], shown, raw, shown, own, facts["not_null"], left_out)


def _passed_over(rule: EqualRule, column: Column, facts: asyncpg.Record, raw: str, shown: str) -> str:
    """SQL of the value with what the rule passes over made alike."""
    base, category = facts["base_oid"], facts["category"]
    if rule == "number" and base == _NUMERIC:
        return f"trim_scale({raw})"
    if rule == "number" and base in (700, 701):
        return f"({raw} + 0::{'float4' if base == 700 else 'float8'})"
    if rule == "number" and base == _JSONB:
        return f"regexp_replace({shown}, {_JSON_ZEROS})"
    if rule == "case" and (category == "S" or facts["base_name"] == "citext"):
        return f"lower({shown})"
    if rule == "empty" and (category == "S" or facts["base_name"] == "citext"):
        return f"coalesce({shown}, '')"
    if rule in ("millisecond", "second") and base in _TIMESTAMPS:
        return f"date_trunc('{rule}', {raw})"
    if rule == "bounds" and category == "A":
        return f"regexp_replace({shown}, {_ARRAY_BOUNDS})"
    raise GateClosed(
        f"column {column.name!r} is {column.type_sql}: the plan's rule `equal: {rule}` is for {_FITS[rule]}. "
        "Take the rule out of the plan, or exclude the column"
    )
