"""The service database's schema, made from the monolith's: the service's tables and what they are made of.

`pg_dump --schema-only` of the source, reduced to the service's tables (partitions included), their types,
functions, sequences, defaults, constraints, indexes and triggers, and restored in one transaction. Foreign keys
that leave the service stay behind. Killed at any line and run again, it gives the same result: either nothing of
the transaction is there or all of it, and what is there already and alike is left alone.
"""

import asyncio
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from cutover.errors import Conflict, CutoverError
from cutover.postgres import catalog, programs
from cutover.postgres.catalog import OWN_PREFIX, OWN_SCHEMA, ForeignKey, TableInfo
from cutover.postgres.databases import Database
from cutover.postgres.dump_list import (
    PG_CLASS,
    PG_CONSTRAINT,
    PG_REWRITE,
    PG_TRIGGER,
    Entry,
    Selection,
    Selector,
    parse,
)
from cutover.postgres.fingerprint import Fingerprint, differences, fingerprint
from cutover.postgres.identifiers import TableName

LOCK_WAIT = "10s"

_OWN_TRIGGERS = "SELECT oid FROM pg_catalog.pg_trigger WHERE pg_catalog.starts_with(tgname::text, $1)"

_FUNCTIONS = """
SELECT p.oid, p.proname::text AS name, p.prosrc AS body FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', $1)
"""

_IDENTITIES = """
SELECT w.position, i.type, i.identity FROM unnest($1::oid[], $2::oid[]) WITH ORDINALITY AS w(class, object, position)
CROSS JOIN LATERAL pg_catalog.pg_identify_object(w.class, w.object, 0) i
"""

# Types that no `to_reg…` function knows are taken for absent: the restore then says what stands in its way.
_EXISTING = """
SELECT w.position FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(type, identity, position)
WHERE CASE WHEN w.type IN ('table', 'index', 'sequence', 'partitioned table') THEN to_regclass(w.identity) IS NOT NULL
           WHEN w.type = 'type' THEN to_regtype(w.identity) IS NOT NULL
           WHEN w.type IN ('function', 'procedure', 'aggregate') THEN to_regprocedure(w.identity) IS NOT NULL
           WHEN w.type = 'schema' THEN to_regnamespace(w.identity) IS NOT NULL
           WHEN w.type = 'collation' THEN to_regcollation(w.identity) IS NOT NULL
           WHEN w.type = 'extension' THEN EXISTS (SELECT FROM pg_catalog.pg_extension e
                                                  WHERE quote_ident(e.extname) = w.identity)
           ELSE false END
"""

_OWNERS = """
SELECT 2606::oid AS class, oid, conrelid AS owner FROM pg_catalog.pg_constraint WHERE contype = 'f'
UNION ALL SELECT 2618::oid, oid, ev_class FROM pg_catalog.pg_rewrite
"""


@dataclass(frozen=True)
class SchemaReport:
    """What was done: `created` names the archive's entries (none: all was there); `fingerprint` is of both sides."""

    created: tuple[str, ...]
    left_out_keys: tuple[ForeignKey, ...]
    left_out: tuple[str, ...]
    fingerprint: Fingerprint


def keys_that_leave(keys: Iterable[ForeignKey], infos: Iterable[TableInfo]) -> tuple[ForeignKey, ...]:
    """The foreign keys that begin at these tables (or their descendants) and end elsewhere."""
    inside = {name for info in infos for name in info.everywhere}
    return tuple(key for key in keys if key.table in inside and key.references not in inside)


async def compare(source: Database, target: Database, tables: Iterable[TableName]) -> list[str]:
    """What differs between the two sides' schemas, in words; an empty list when they are alike."""
    tables = list(tables)
    async with source.session("cutover-schema") as here, target.session("cutover-schema") as there:
        return differences(await fingerprint(here, tables), await fingerprint(there, tables), source.name, target.name)


def _called(functions: list[asyncpg.Record], entries: dict[int, Entry], chosen: set[int]) -> set[int]:
    """Entries of functions whose name stands, before a parenthesis, in the body of a chosen function.

    The catalog does not record what a PL/pgSQL body calls. Too many is harmless, too few breaks a trigger.
    """
    by_oid = {e.object[1]: e.id for e in entries.values() if e.kind in ("FUNCTION", "PROCEDURE", "AGGREGATE")}
    bodies = [row["body"] for row in functions if by_oid.get(row["oid"]) in chosen]
    named = set()
    for row in functions:
        pattern = re.compile(rf'(?<!\w){re.escape(row["name"])}"?\s*\(', re.IGNORECASE)
        if row["oid"] in by_oid and any(pattern.search(body) for body in bodies):
            named.add(by_oid[row["oid"]])
    return named


async def _select(connection: asyncpg.Connection, entries: dict[int, Entry], infos: list[TableInfo]) -> Selection:
    everything = await catalog.find_tables(connection, [name for info in infos for name in info.everywhere])
    own = [(PG_TRIGGER, row["oid"]) for row in await connection.fetch(_OWN_TRIGGERS, OWN_PREFIX)]
    functions = await connection.fetch(_FUNCTIONS, OWN_SCHEMA)
    selector = Selector(entries, [info.oid for info in everything], own)
    return selector.select(lambda chosen: _called(functions, entries, chosen))


async def _without_existing(
    source: asyncpg.Connection, target: asyncpg.Connection, entries: dict[int, Entry], selection: Selection
) -> list[Entry]:
    """The entries whose object the target lacks; with a table that exists, all that belongs to it is left alone."""
    known = [e for e in selection.entries if e.object[0] and e.object[1]]
    rows = await source.fetch(_IDENTITIES, [e.object[0] for e in known], [e.object[1] for e in known])
    present = await target.fetch(_EXISTING, [row["type"] for row in rows], [row["identity"] for row in rows])
    existing = {known[rows[row["position"] - 1]["position"] - 1].id for row in present}
    tables = {e.id: e for e in entries.values() if e.kind == "TABLE"}
    table_ids = {e.object[1]: e.id for e in tables.values()}
    owner_of = {(row["class"], row["oid"]): table_ids.get(row["owner"]) for row in await source.fetch(_OWNERS)}

    def stands(entry: Entry) -> bool:
        """Whether the entry, or the table it belongs to, is at the target."""
        if entry.id in existing:
            return True
        if entry.object[0] in (PG_CONSTRAINT, PG_REWRITE) and (owner := owner_of.get(entry.object)):
            return owner in existing
        if entry.kind in ("TABLE", "TABLE ATTACH") or (entry.object[0] == PG_CLASS and entry.kind == "SEQUENCE"):
            parents = entry.depends & set(tables) if entry.kind == "TABLE ATTACH" else set()
            return bool(parents) and parents <= existing
        owners = entry.depends & set(entries)
        indexes = [i for i in owners if entries[i].kind in ("CONSTRAINT", "INDEX")]
        if entry.kind in ("CONSTRAINT", "INDEX", "INDEX ATTACH") and any(stands(entries[i]) for i in indexes):
            return True  # a new partition gets the indexes of a parent that is there when it is attached
        if entry.kind in ("INDEX ATTACH", "COMMENT", "SEQUENCE OWNED BY"):
            return bool(owners) and owners <= existing | {i for i in owners if i not in tables and stands(entries[i])}
        held = entry.depends & set(tables)
        return bool(held) and held <= existing

    return [entry for entry in selection.entries if not stands(entry)]


async def apply_schema(
    source: Database, target: Database, tables: Iterable[TableName], *, service: str, bindir: Path | None = None
) -> SchemaReport:
    """Makes the tables at the target as they are at the source, empty; returns what was created and left out.

    Raises Conflict where something at the target differs (with the list), ConfigError for missing tables, programs
    or rights, NotYet for a lock, Unreachable.
    """
    tables = list(tables)
    application = f"cutover-schema/{service}"
    async with source.session(application) as here, target.session(application) as there:
        # Two at once would meet in CREATE; and a pg_restore that outlived a killed worker is ended first.
        await there.execute("SELECT pg_catalog.pg_advisory_lock(hashtext('cutover.schema'))")
        await there.execute(
            "SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity "
            "WHERE datname = current_database() AND usename = current_user AND application_name = $1",
            application + "/restore",
        )
        infos = await catalog.tables(here, tables)
        keys = keys_that_leave(await catalog.foreign_keys(here), infos)
        wanted = await fingerprint(here, tables)
        found = await fingerprint(there, tables)
        left_out: tuple[str, ...] = ()
        created: list[Entry] = []
        if wanted.hash != found.hash:
            _refuse_differing(found, wanted, target.name)
            created, left_out = await _restore(source, target, here, there, infos, application, bindir)
            wanted, found = await fingerprint(here, tables), await fingerprint(there, tables)
        if differing := differences(wanted, found, source.name, target.name):
            raise Conflict(_differs(target.name, differing))
        return SchemaReport(tuple(entry.text for entry in created), keys, left_out, found)


def _refuse_differing(found: Fingerprint, wanted: Fingerprint, target: str) -> None:
    """What is there already has to be as wanted; what is only at the source is about to be made."""
    tables = [item.removeprefix("table ") + "." for item in found.items if item.startswith("table ")]
    of_tables = {
        item: text
        for item, text in wanted.items.items()
        if item in found.items or item.partition(" ")[2].startswith(tuple(tables))
    }
    if differing := differences(Fingerprint.of(of_tables), found, "the source", target):
        raise Conflict(_differs(target, differing))


def _differs(target: str, differing: list[str]) -> str:
    more = f" (and {len(differing) - 20} more)" if len(differing) > 20 else ""
    return (
        f"database {target!r} does not have the source's schema: "
        + "; ".join(differing[:20])
        + more
        + ". Change one side so that both are alike, or drop what is in the way at the target, and run this again"
    )


async def _restore(
    source: Database, target: Database, here: asyncpg.Connection, there: asyncpg.Connection,
    infos: list[TableInfo], application: str, bindir: Path | None,
) -> tuple[list[Entry], tuple[str, ...]]:  # fmt: skip
    """Dumps, selects and restores. Returns the restored entries, and what was left out in words."""
    major = (await catalog.server_facts(here)).major
    dump, restore = await programs.find("pg_dump", bindir, major), await programs.find("pg_restore", bindir, major)
    what = "making the service's schema"
    with tempfile.TemporaryDirectory(prefix="cutover-schema-") as folder:
        archive, use_list = Path(folder, "schema.dump"), Path(folder, "use.list")
        arguments = [
            "--format=custom", "--schema-only", "--no-owner", "--no-privileges", "--no-tablespaces",
            "--no-publications", "--no-subscriptions", "--no-security-labels", f"--exclude-schema={OWN_SCHEMA}",
            f"--lock-wait-timeout={LOCK_WAIT}", f"--file={archive}",
        ]  # fmt: skip
        await programs.run(dump, arguments, programs.environment(source.dsn, application), what, source.name)
        quiet = programs.environment(target.dsn, application + "/restore")
        listing = await programs.run(restore, ["--list", "--verbose", str(archive)], quiet, what, source.name)
        entries = parse(listing)
        selection = await _select(here, entries, infos)
        missing = await _without_existing(here, there, entries, selection)
        if not missing:
            return [], tuple(selection.left_out)
        lines = "".join(entry.line + "\n" for entry in missing)
        await asyncio.to_thread(use_list.write_text, lines)
        arguments = ["--dbname=", "--single-transaction", "--no-owner", "--no-privileges", f"--use-list={use_list}"]
        quiet["PGOPTIONS"] = f"{quiet.get('PGOPTIONS', '')} -c lock_timeout={LOCK_WAIT}".strip()
        try:
            await programs.run(restore, [*arguments, str(archive)], quiet, what, target.name)
        except CutoverError:
            tables = [info.name for info in infos]
            if (await fingerprint(here, tables)).hash != (await fingerprint(there, tables)).hash:
                raise  # else somebody else's run was faster, and the result is the wanted one
        return missing, tuple(selection.left_out)
