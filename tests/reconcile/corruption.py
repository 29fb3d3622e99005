"""A table as it should be and as it became, drawn from one seed, and what a pass has to find in it.

The rows are texts in memory and are loaded as they are, so what is expected is read off the texts and not off any
server: a key with the columns whose texts differ. Every kind of corruption comes in every type of column that it can
be in, at random rows, at the source or at the target.
"""

import io
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import asyncpg

from cutover.control import reports
from cutover.control.reports import TableReport
from cutover.postgres.keys import Key, key_from_json
from tests.reconcile.conftest import World
from tests.reconcile.values import Pairs

Row = dict[str, str | None]
#: By key: the kind, and the columns of a mismatched row.
Findings = dict[Key, tuple[str, tuple[str, ...]]]

NASTY = "abzAZ09 _-|\\'\"$%{};,\n\t\u00e9\u0301\u00df\u4e2d\U0001f600"


def _integer(rng: random.Random, number: int) -> Key:
    return (str(rng.choice((number, -number, number * 2**40 + rng.randrange(2**40)))),)


def _text(rng: random.Random, number: int) -> Key:
    return ("".join(rng.choice(NASTY) for _ in range(rng.randrange(20))) + str(number),)


def _uuid(rng: random.Random, number: int) -> Key:
    return (str(uuid.UUID(int=rng.getrandbits(128))),)


def _composite(rng: random.Random, number: int) -> Key:
    return (*_text(rng, number % 7), *_integer(rng, number), *_uuid(rng, number))


#: The types of the key's columns, and a key of a number (from 1 on).
KEYS: dict[str, tuple[tuple[str, ...], Callable[[random.Random, int], Key]]] = {
    "integer": (("bigint",), _integer),
    "text": (("text",), _text),
    "uuid": (("uuid",), _uuid),
    "composite": (("text", "bigint", "uuid"), _composite),
}

PLAIN = {
    "txt": "text", "txt2": "text", "big": "text", "num": "numeric", "num2": "numeric", "dbl": "double precision",
    "at": "timestamptz", "ci": "public.citext", "doc": "jsonb",
}  # fmt: skip


def _plain(rng: random.Random) -> Row:
    def letters(least: int, most: int) -> str:
        return "".join(rng.choices("bcdefgBCDEFG", k=rng.randint(least, most)))

    return {
        "txt": letters(5, 40),
        "txt2": letters(50, 60),
        "big": None,
        "num": f"{rng.randrange(10**6)}.{rng.randrange(100):02}",
        "num2": f"-{rng.randrange(10**6)}.{rng.randrange(100):02}",
        "dbl": rng.choice(("0", "-0", "1.5", "-2.25")),
        "at": f"2024-{rng.randint(1, 12):02}-05 10:00:00.{rng.randrange(1, 10**6 - 1):06}+00",
        "ci": letters(5, 10),
        "doc": f'{{"k": [{rng.randrange(1000)}.5, "1.0"], "n": {rng.randrange(1000)}}}',
    }


def _one_byte(rng: random.Random, row: Row, column: str) -> None:
    text = row[column] or ""
    place = rng.randrange(len(text))
    row[column] = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]


def one_byte_in_text(rng: random.Random, left: Row, right: Row) -> None:
    _one_byte(rng, right, "txt")


def null_against_empty(rng: random.Random, left: Row, right: Row) -> None:
    column = rng.choice(("txt", "txt2", "big", "ci"))
    left[column], right[column] = "", None


def numeric_scale(rng: random.Random, left: Row, right: Row) -> None:
    right["num"] = f"{left['num']}{'0' * rng.randint(1, 3)}"


def negative_zero(rng: random.Random, left: Row, right: Row) -> None:
    left["dbl"], right["dbl"] = "0", "-0"


def one_microsecond(rng: random.Random, left: Row, right: Row) -> None:
    before, _, after = (left["at"] or "").partition(".")
    right["at"] = f"{before}.{int(after[:6]) + rng.choice((1, -1)):06}+00"


def case_in_citext(rng: random.Random, left: Row, right: Row) -> None:
    text = left["ci"] or ""
    place = rng.randrange(len(text))
    right["ci"] = text[:place] + text[place].swapcase() + text[place + 1 :]


def jsonb_number(rng: random.Random, left: Row, right: Row) -> None:
    right["doc"] = (left["doc"] or "").replace(".5,", ".50,")


def toasted_value(rng: random.Random, left: Row, right: Row) -> None:
    left["big"] = right["big"] = "".join(rng.choices("bcdefgBCDEFG", k=20_000))
    _one_byte(rng, right, "big")


def two_columns_swapped(rng: random.Random, left: Row, right: Row) -> None:
    one, two = rng.choice((("txt", "txt2"), ("num", "num2")))
    right[one], right[two] = left[two], left[one]


#: Kinds within one row of plain columns; the others (missing, extra, two rows swapped) are made in `draw`.
WITHIN: tuple[Callable[[random.Random, Row, Row], None], ...] = (
    one_byte_in_text, null_against_empty, numeric_scale, negative_zero, one_microsecond, case_in_citext, jsonb_number,
    toasted_value, two_columns_swapped,
)  # fmt: skip


@dataclass
class Table:
    """Both sides by key; `source` and `target` start alike."""

    key_types: tuple[str, ...]
    columns: dict[str, str]
    source: dict[Key, Row] = field(default_factory=dict)
    target: dict[Key, Row] = field(default_factory=dict)

    @property
    def expected(self) -> Findings:
        found: Findings = dict.fromkeys(self.source.keys() - self.target.keys(), ("missing", ()))
        found.update(dict.fromkeys(self.target.keys() - self.source.keys(), ("extra", ())))
        for key in self.source.keys() & self.target.keys():
            here, there = self.source[key], self.target[key]
            if differing := tuple(sorted(name for name in self.columns if here[name] != there[name])):
                found[key] = ("mismatched", differing)
        return found

    async def load(self, source: asyncpg.Connection, target: asyncpg.Connection) -> None:
        keys = [f"key{n}" for n in range(len(self.key_types))]
        columns = {**dict(zip(keys, self.key_types, strict=True)), **self.columns}
        listed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        for connection, rows in ((source, self.source), (target, self.target)):
            await connection.execute(f"CREATE TABLE t ({listed}, PRIMARY KEY ({', '.join(keys)}))")
            await connection.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
            lines = ["\t".join(map(_copied, (*key, *(row[c] for c in self.columns)))) for key, row in rows.items()]
            data = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
            await connection.copy_to_table("t", source=data, columns=list(columns), format="text")
            await connection.execute("ANALYZE t")


def _copied(value: str | None) -> str:
    """A value in COPY's text format."""
    if value is None:
        return r"\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def draw(seed: int, key: str, pairs: Pairs, each: int = 3, sound: int = 200) -> Table:
    """A table with every kind of corruption `each` times and in every type at least once, among `sound` equal rows."""
    rng = random.Random(f"{seed} {key}")
    types, key_of = KEYS[key]
    columns = {**PLAIN, **{f"{side}{n}": kind for n, (kind, _, _) in enumerate(pairs) for side in "ab"}}
    if not any("citext" in kind for kind, _, _ in pairs):
        columns["ci"] = "text"
    table = Table(types, columns)
    count = (len(WITHIN) + 6) * each + 5 * len(pairs) + sound
    keys = [key_of(rng, number) for number in range(1, count + 1)]
    rng.shuffle(keys)
    for one in keys:
        row = _plain(rng)
        for n, (_, first, second) in enumerate(pairs):
            row[f"a{n}"], row[f"b{n}"] = rng.choice(((first, second), (second, first), (None, first), (second, None)))
        table.source[one], table.target[one] = row, dict(row)
    _corrupt(rng, table, iter(keys), pairs, each)
    return table


def _corrupt(rng: random.Random, table: Table, keys: Iterator[Key], pairs: Pairs, each: int) -> None:
    def rows() -> tuple[Row, Row]:
        """The next row of both sides, either of them first."""
        key = next(keys)
        both = [table.source[key], table.target[key]]
        rng.shuffle(both)
        return both[0], both[1]

    for _ in range(each):
        for corrupt in WITHIN:
            corrupt(rng, *rows())
        del table.target[next(keys)]
        del table.source[next(keys)]
        one, two = next(keys), next(keys)  # two rows swapped, wholly
        table.target[one], table.target[two] = table.target[two], table.target[one]
        one, two = next(keys), next(keys)  # and in one column alone
        for name in ("txt", "at"):
            table.target[one][name], table.target[two][name] = table.target[two][name], table.target[one][name]
    for n, (_, first, second) in enumerate(pairs):
        a, b = f"a{n}", f"b{n}"
        here, there = rows()  # another value that the type may take for the same
        here[a], there[a] = first, second
        here, there = rows()  # NULL against a value
        here[a], there[a] = first, None
        here, there = rows()  # two columns swapped
        here[a], here[b] = there[b], there[a] = first, second
        (here, there), (here2, there2) = rows(), rows()  # two rows swapped
        here[a], there[a], here2[a], there2[a] = first, second, second, first


async def found(world: World, report: TableReport) -> Findings:
    """What the table's newest report found."""
    differences = await reports.open_differences(world.control, "m", "svc", report.table, limit=1_000_000)
    return {key_from_json(d.key_json): (d.kind, tuple(sorted(d.columns))) for d in differences}


def wrongly(found: Findings, expected: Findings) -> dict[Key, tuple[object, object]]:
    """Where what was found is not what there is: by key, both."""
    keys = found.keys() | expected.keys()
    return {key: (found.get(key), expected.get(key)) for key in keys if found.get(key) != expected.get(key)}
