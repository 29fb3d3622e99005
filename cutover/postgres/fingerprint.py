"""A canonical description of a service's tables, the same on both sides as long as nobody changed the schema.

Taken in Preparation and compared at every gate and pass: a difference closes the gate. An event trigger would
miss what a superuser's tool does; the catalog does not.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import asyncpg

from cutover.postgres import catalog
from cutover.postgres.fingerprint_sql import ALL
from cutover.postgres.identifiers import TableName


@dataclass(frozen=True)
class Fingerprint:
    """`items` maps a thing (`column public.trades.id`) to its description; `hash` is sha256 over all of them."""

    hash: str
    items: dict[str, str]

    @classmethod
    def of(cls, items: dict[str, str]) -> "Fingerprint":
        ordered = dict(sorted(items.items()))
        return cls(hashlib.sha256(json.dumps(ordered, ensure_ascii=False).encode()).hexdigest(), ordered)

    @property
    def digests(self) -> dict[str, str]:
        """Each item with a digest of its description: enough to see a change, without what it says."""
        return {item: hashlib.sha256(text.encode()).hexdigest()[:16] for item, text in self.items.items()}


async def fingerprint(connection: asyncpg.Connection, tables: Iterable[TableName]) -> Fingerprint:
    """Describes these tables with their descendants; a table that does not exist contributes nothing."""
    infos = await catalog.find_tables(connection, tables)
    descendants = await catalog.find_tables(connection, [name for info in infos for name in info.partitions])
    oids = [info.oid for info in (*infos, *descendants)]
    items: dict[str, str] = {}
    async with catalog.qualified_names(connection):
        for query in ALL:
            items.update({row["item"]: row["description"] for row in await connection.fetch(query, oids)})
    for s in await catalog.sequences_of(connection, infos):
        items[f"sequence {s.name.schema}.{s.name.name}"] = (
            f"{s.type} of {s.table}.{s.column}, start {s.start}, increment {s.increment}, "
            f"from {s.min} to {s.max}, cache {s.cache}" + (", cycle" if s.cycle else "")
        )
    return Fingerprint.of(items)


def differences(
    one: Fingerprint, other: Fingerprint, one_name: str = "source", other_name: str = "target"
) -> list[str]:
    """What differs, one sentence each, in order; an empty list for equal fingerprints.

    What belongs to a table that is missing as a whole is not listed again.
    """
    found: list[str] = []
    lost: list[str] = []
    names = sorted({*one.items, *other.items}, key=lambda item: (not item.startswith("table "), item))
    for item in names:
        here, there = one.items.get(item), other.items.get(item)
        if here == there:
            continue
        if here is None or there is None:
            kind, _, name = item.partition(" ")
            if kind == "table":
                lost.append(name + ".")
            elif name.startswith(tuple(lost)):
                continue
            where, absent = (other_name, one_name) if here is None else (one_name, other_name)
            found.append(f"{item} is only at {where}, not at {absent}")
        else:
            found.append(f"{item} is {here!r} at {one_name} and {there!r} at {other_name}")
    return found


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed, as `column public.trades.note was added`; names alone, whatever the items map to.

    What belongs to a table that came or went as a whole is not listed again.
    """
    found: list[str] = []
    whole: list[str] = []
    for item in sorted({*before, *now}, key=lambda item: (not item.startswith("table "), item)):
        was, here = before.get(item), now.get(item)
        if was == here:
            continue
        kind, _, name = item.partition(" ")
        if was is None or here is None:
            if kind == "table":
                whole.append(name + ".")
            elif name.startswith(tuple(whole)):
                continue
        found.append(f"{item} was {'added' if was is None else 'dropped' if here is None else 'changed'}")
    return found
