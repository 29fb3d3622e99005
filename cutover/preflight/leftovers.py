"""Objects with our names that are not this plan's: another migration, an earlier attempt, or chance."""

from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

_PUBLICATIONS = """
SELECT p.pubname::text AS name, p.puballtables AS everything,
       ARRAY(SELECT n.nspname::text || '.' || c.relname::text FROM pg_catalog.pg_publication_rel r
             JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE r.prpubid = p.oid) AS tables
FROM pg_catalog.pg_publication p
"""
_SUBSCRIPTIONS = """
SELECT subname::text AS name, subpublications AS publications FROM pg_catalog.pg_subscription
WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""
_SLOTS = """
SELECT slot_name::text AS name, database::text AS database, database = current_database() AS here, wal_status
FROM pg_catalog.pg_replication_slots
"""
_TRIGGERS = """
SELECT t.tgname::text AS name, c.relname::text AS table, n.nspname::text AS schema
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE t.tgrelid = ANY($1::oid[]) AND NOT t.tgisinternal
  AND starts_with(t.tgname::text, 'cutover_') AND n.nspname <> 'cutover'
"""
_SCHEMA = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'cutover') AS present,
       to_regclass('cutover.epoch') IS NOT NULL AS ours
"""
_EPOCH = "SELECT side FROM cutover.epoch WHERE service = $1"


async def check_leftovers(subject: Subject, findings: Findings) -> None:
    """Publications, subscriptions, slots, triggers, schema and epochs under our names, on both sides."""
    for service in subject.plan.services:
        tables = {f"{n.schema}.{n.name}" for n in subject.names(service)} | {f"cutover.marker_{service}"}
        sides = (
            (subject.monolith, "monolith", f"{service}_pub", f"{service}_reverse_sub", f"{service}_reverse_pub",
             (f"{service}_sub", f"cutover_{service}_changes")),
            (subject.targets[service], "service", f"{service}_reverse_pub", f"{service}_sub", f"{service}_pub",
             (f"{service}_reverse_sub", f"cutover_{service}_changes_rev")),
        )  # fmt: skip
        for opened, side, publication, subscription, publisher, slots in sides:
            if opened:
                await _streams(opened, publication, subscription, publisher, slots, tables, findings)
                await _epoch(opened, service, side, findings)
    if subject.monolith:
        await _others(subject.monolith, subject, findings)


async def _streams(
    opened: Opened, publication: str, subscription: str, publisher: str, slots: tuple[str, ...], tables: set[str],
    findings: Findings,
) -> None:  # fmt: skip
    for row in await opened.connection.fetch(_PUBLICATIONS):
        if row["name"] == publication and not set(row["tables"]) <= tables:
            findings.blocking(
                "publication_not_ours", f"{opened.name}: publication {publication}",
                "it exists and publishes other tables: " + ", ".join(sorted(set(row["tables"]) - tables)),
                "the service's stream needs this name", "drop or rename it, or give the service another name",
            )  # fmt: skip
    for row in await opened.connection.fetch(_SUBSCRIPTIONS):
        if row["name"] == subscription and list(row["publications"]) != [publisher]:
            findings.blocking(
                "subscription_not_ours", f"{opened.name}: subscription {subscription}",
                "it exists and follows " + ", ".join(row["publications"]),
                "the service's stream needs this name", "drop or rename it, or give the service another name",
            )  # fmt: skip
    for row in await opened.connection.fetch(_SLOTS):
        if row["name"] in slots and not row["here"]:
            findings.blocking(
                "slot_not_ours", f"{opened.name}: replication slot {row['name']}",
                f"a slot of that name exists in database {row['database']}", "slot names are unique in a server",
                "end what uses it and drop it, or give the service another name",
            )  # fmt: skip
        elif row["name"] in slots and row["wal_status"] == "lost":
            findings.blocking(
                "slot_lost", f"{opened.name}: replication slot {row['name']}", "the slot has lost its WAL",
                "its stream cannot go on, and what it had proved is void", "drop stream and slot, and copy again",
            )  # fmt: skip


async def _epoch(opened: Opened, service: str, side: str, findings: Findings) -> None:
    [schema] = await opened.connection.fetch(_SCHEMA)
    if schema["present"] and not schema["ours"]:
        findings.advice(
            "schema_cutover", f"{opened.name}: schema cutover", "it exists without our tables",
            "our own objects will be made in it", "see that nobody else uses this name",
        )  # fmt: skip
    if schema["ours"]:
        known = await opened.connection.fetchval(_EPOCH, service)
        if known is not None and known != side:
            findings.blocking(
                "other_migration", f"{opened.name}: service {service}",
                f"this database is known to cutover as the {known} side of {service!r}, not as its {side} side",
                "another migration uses the name: fences and epochs would be mixed up",
                "finish that migration, or give the service another name",
            )  # fmt: skip


async def _others(monolith: Opened, subject: Subject, findings: Findings) -> None:
    oids = [info.oid for info in subject.tables.values()]
    for row in await monolith.connection.fetch(_TRIGGERS, oids):
        findings.blocking(
            "trigger_not_ours", f"{monolith.name}: trigger {row['name']} on {row['table']}",
            f"its name begins with cutover_, and its function is in schema {row['schema']}",
            "triggers of that name are taken for ours, compared and dropped as such", "rename it",
        )  # fmt: skip
    ours = {f"{service}_pub" for service in subject.plan.services}
    names = {f"{n.schema}.{n.name}" for n in subject.tables}
    for row in await monolith.connection.fetch(_PUBLICATIONS):
        if row["name"] not in ours and (row["everything"] or set(row["tables"]) & names):
            findings.advice(
                "other_publication", f"{monolith.name}: publication {row['name']}",
                "it publishes tables that leave" + (" (all tables)" if row["everything"] else ""),
                "its readers get nothing new after cleanup, and rows applied by the reverse stream before it",
                "move its readers to the service's database before cleanup",
            )  # fmt: skip
