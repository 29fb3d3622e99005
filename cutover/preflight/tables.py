"""The tables themselves: what a stream, a fence or a comparison could not carry, and what is in its way."""

import re

from cutover.errors import ConfigError, CutoverError, GateClosed
from cutover.plan.models import Table
from cutover.postgres import catalog
from cutover.postgres.catalog import TableInfo
from cutover.postgres.fingerprint import Fingerprint, differences, fingerprint
from cutover.postgres.identifiers import TableName
from cutover.postgres.shapes import check_rules, mute
from cutover.postgres.suggestions import did_you_mean
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

_TRAITS = """
SELECT c.oid, c.relpersistence::text AS persistence, c.relispartition AS is_partition, c.relrowsecurity AS row_security,
       row_security_active(c.oid) AS filtered,
       (SELECT p.inhparent::regclass::text FROM pg_catalog.pg_inherits p WHERE p.inhrelid = c.oid LIMIT 1) AS parent,
       EXISTS (SELECT FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class k ON k.oid = h.inhrelid
               WHERE h.inhparent = c.oid AND NOT k.relispartition) AS has_heirs,
       EXISTS (SELECT FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class k ON k.oid = h.inhrelid
               WHERE h.inhparent = c.oid AND k.relkind = 'f') AS has_foreign,
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
           AS deferrable_key,
       EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND NOT i.indisvalid) AS invalid_index,
       ARRAY(SELECT k.conname::text FROM pg_catalog.pg_constraint k
             WHERE k.conrelid = c.oid AND (k.contype = 'x' OR (k.contype = 'u' AND k.condeferrable))) AS special,
       ARRAY(SELECT r.rulename::text FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid) AS rules,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               AND (t.typname IN ('oid', 'lo'))) AS large_objects
FROM pg_catalog.pg_class c WHERE c.oid = ANY($1::oid[])
"""

_BODIES = """
SELECT t.tgname::text AS trigger, n.nspname::text AS schema, c.relname::text AS name, p.prosrc AS body
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = ANY($1::oid[]) AND NOT t.tgisinternal AND NOT starts_with(t.tgname::text, 'cutover_')
"""

_VIEWS = """
SELECT DISTINCT vn.nspname::text || '.' || v.relname::text AS view, c.relname::text AS name, v.relkind::text AS kind
FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
JOIN pg_catalog.pg_namespace vn ON vn.oid = v.relnamespace JOIN pg_catalog.pg_class c ON c.oid = d.refobjid
WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
  AND d.refobjid = ANY($1::oid[]) ORDER BY 1, 2
"""

_TABLES = """
SELECT c.relname::text AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'cutover')
"""

_STREAMED = "SELECT EXISTS (SELECT FROM pg_catalog.pg_subscription WHERE subname = $1 AND subdbid = " \
            "(SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))"  # fmt: skip
_PUBLISHED = "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)"


async def check_tables(subject: Subject, findings: Findings) -> None:
    """Keys, kinds, triggers, rules and views on the monolith; then what stands at each target already."""
    if subject.monolith is None:
        return
    for service in subject.plan.services:
        infos = subject.infos(service)
        await _traits(subject.monolith, infos, findings)
        await _comparison(subject.monolith, subject.plan.services[service].tables, findings)
        await _triggers(subject, service, infos, findings)
        target = subject.targets[service]
        if target and target is not subject.monolith:
            await _target(subject.monolith, target, service, subject, findings)
    views = await subject.monolith.connection.fetch(_VIEWS, [info.oid for info in subject.tables.values()])
    for row in views:
        findings.advice(
            "view", f"{subject.monolith.name}: view {row['view']}", f"it reads {row['name']}, which leaves",
            "after the switch it shows what the reverse stream brings, and after cleanup nothing",
            "move its readers to the service, or drop it before cleanup",
        )  # fmt: skip


async def _traits(monolith: Opened, infos: list[TableInfo], findings: Findings) -> None:
    rows = {row["oid"]: row for row in await monolith.connection.fetch(_TRAITS, [info.oid for info in infos])}
    for info in infos:
        row, where = rows[info.oid], f"{monolith.name}: table {info.name}"
        generated = {c.name for c in info.columns if c.generated}
        blocking = [
            (not info.primary_key, "no_primary_key", "it has no primary key",
             "once published, its updates and deletes fail on the monolith; and rows cannot be compared",
             f"ALTER TABLE {info.name.sql} ADD PRIMARY KEY (…)"),
            (row["deferrable_key"], "deferrable_key", "its primary key is deferrable",
             "a deferrable key is no replica identity: updates and deletes would fail",
             "make the key NOT DEFERRABLE"),
            (bool(generated & set(info.primary_key)), "generated_key", "its primary key holds a generated column",
             "generated columns are not sent, so rows could not be found again", "choose a key of stored columns"),
            (info.replica_identity == "n", "replica_identity_nothing", "its replica identity is NOTHING",
             "updates and deletes fail as soon as it is published",
             f"ALTER TABLE {info.name.sql} REPLICA IDENTITY DEFAULT"),
            (row["persistence"] != "p", "unlogged", "it is unlogged or temporary",
             "what is not in the WAL cannot be streamed, and is lost in a crash",
             f"ALTER TABLE {info.name.sql} SET LOGGED"),
            (row["is_partition"], "is_partition", f"it is a partition of {row['parent']}",
             "a partition without its parent is not what the application writes to", "name the parent in the plan"),
            (row["has_heirs"] or (row["parent"] and not row["is_partition"]), "inheritance",
             "it takes part in table inheritance", "keys are not unique over parent and children",
             "turn the family into a partitioned table, or into tables of their own"),
            (row["has_foreign"], "foreign_partition", "one of its partitions is a foreign table",
             "its rows are in another server and cannot be streamed", "bring them home, or detach the partition"),
            (row["filtered"], "row_security", "row security hides rows from cutover's role",
             "rows that are not seen are neither copied nor compared",
             "ALTER ROLE … BYPASSRLS, or let it own the table"),
        ]  # fmt: skip
        advice = [
            (info.replica_identity == "f", "replica_identity_full", "its replica identity is FULL",
             "each update and delete is found by comparing whole rows: slow on large tables",
             f"ALTER TABLE {info.name.sql} REPLICA IDENTITY DEFAULT"),
            (info.kind == "p", "partitioned", f"it has {len(info.partitions)} partitions",
             "partitions made on one side later are missing on the other; DETACH and DROP leave no row events",
             "create partitions ahead on both sides; pause jobs that drop them (Preparation run again adds new ones)"),
            (row["row_security"] and not row["filtered"], "row_security_copied", "it has row security",
             "its policies are copied; roles they name have to exist at the service", "look through the policies"),
            (row["special"], "special_constraint", "exclusion or deferrable constraints: " + ", ".join(row["special"]),
             "the order in which a stream applies rows can meet them where the application did not",
             "watch apply errors of this table"),
            (row["invalid_index"], "invalid_index", "it has an invalid index",
             "the copy at the service would be valid, and the sides then differ", "REINDEX … CONCURRENTLY, or drop it"),
            (row["rules"], "rules", "it has rules: " + ", ".join(row["rules"]),
             "rules rewrite statements, and streams carry rows: they act on one side alone", "turn them into triggers"),
            (row["large_objects"], "large_objects", "columns of type oid: " + ", ".join(row["large_objects"]),
             "large objects themselves are not streamed or copied", "store them as bytea, or copy them by hand"),
        ]  # fmt: skip
        for found, code, what, why, remedy in blocking:
            if found:
                findings.blocking(code, where, what, why, remedy)
        for found, code, what, why, remedy in advice:
            if found:
                findings.advice(code, where, what, why, remedy)


async def _comparison(monolith: Opened, tables: dict[str, Table], findings: Findings) -> None:
    for name, rules in tables.items():
        try:
            await check_rules(monolith.connection, TableName.parse(name), rules.compare)
            await _without_text(monolith, name, rules, findings)
        except GateClosed as e:
            findings.blocking(
                "compare_rule", f"{monolith.name}: table {name}", str(e),
                "the table could not be compared, and without a comparison no gate opens",
                "correct `compare` of this table in the plan",
            )  # fmt: skip
        except ConfigError:
            continue  # the table is missing, which is a finding of its own
        if rules.show_values:
            await _shown(monolith, name, rules.show_values, findings)


async def _without_text(monolith: Opened, name: str, rules: Table, findings: Findings) -> None:
    for column in await mute(monolith.connection, TableName.parse(name), rules.compare):
        findings.blocking(
            "no_text_form", f"{monolith.name}: table {name}", f"the type of column {column} has no text form",
            "its values could not be compared, and without a comparison no gate opens",
            "exclude the column in the plan's `compare`, or give it a type that can be shown",
        )  # fmt: skip


async def _shown(monolith: Opened, name: str, columns: list[str], findings: Findings) -> None:
    known = [column.name for column in (await catalog.table(monolith.connection, TableName.parse(name))).columns]
    for column in columns:
        if column not in known:
            findings.advice(
                "show_values", f"{monolith.name}: table {name}", f"the plan shows values of column {column!r}, which "
                "is not there", "`cutover diff` could not show them, and they would be missed when rows differ",
                did_you_mean(column, known) or "correct `show_values` of this table in the plan",
            )  # fmt: skip


async def _triggers(subject: Subject, service: str, infos: list[TableInfo], findings: Findings) -> None:
    assert subject.monolith is not None
    connection = subject.monolith.connection
    for trigger in await catalog.user_triggers(connection, infos):
        where = f"{subject.monolith.name}: trigger {trigger.name} on {trigger.table}"
        if trigger.enabled in ("A", "R"):
            findings.blocking(
                "trigger_twice", where, "it is enabled " + ("ALWAYS" if trigger.enabled == "A" else "REPLICA"),
                "it fires again when the stream applies the row: its effect comes twice",
                f'ALTER TABLE {trigger.table.sql} ENABLE TRIGGER "{trigger.name}"',
            )  # fmt: skip
    others = {name.name: owner for name, owner in subject.owners().items() if owner != service}
    mine = {name.name for info in infos for name in info.everywhere}
    for relation in await connection.fetch(_TABLES):
        if relation["name"] not in mine:
            others.setdefault(relation["name"], "no service")
    for row in await connection.fetch(_BODIES, [info.oid for info in infos]):
        named = sorted(n for n in others if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", row["body"]))
        if named:
            findings.advice(
                "trigger_reaches_out", f"{subject.monolith.name}: trigger {row['trigger']} on {row['name']}",
                "its function names tables that do not go along: " + ", ".join(f"{n} ({others[n]})" for n in named),
                "at the service these tables do not exist, and every write that fires it would fail",
                "let the application do it, or move the tables together",
            )  # fmt: skip


async def _target(monolith: Opened, target: Opened, service: str, subject: Subject, findings: Findings) -> None:
    names = [info.name for info in subject.infos(service)]
    present = await catalog.find_tables(target.connection, names)
    if not present:
        return
    ours = await target.connection.fetchval(_STREAMED, f"{service}_sub") or await target.connection.fetchval(
        _PUBLISHED, f"{service}_reverse_pub"
    )
    if not ours:
        for name in await catalog.with_rows(target.connection, [info.name for info in present]):
            findings.blocking(
                "target_not_empty", f"{target.name}: table {name}", "it holds rows, and no stream of this migration",
                "the first copy would meet them: it fails, or they stay as rows that the monolith does not have",
                "find out whose rows they are; TRUNCATE the table if nobody's",
            )  # fmt: skip
    wanted, found = await fingerprint(monolith.connection, names), await fingerprint(target.connection, names)
    tables = tuple(f"{info.name.schema}.{info.name.name}." for info in present)
    there = {k: v for k, v in wanted.items.items() if k in found.items or k.partition(" ")[2].startswith(tables)}
    try:
        differing = differences(Fingerprint.of(there), found, monolith.name, target.name)
    except CutoverError as e:
        differing = [str(e)]
    for text in differing:
        findings.blocking(
            "target_differs", f"{target.name}: service {service}", text,
            "rows would not fit, or fit and mean something else",
            "make both sides alike, or drop the table at the target: Preparation makes it",
        )  # fmt: skip
