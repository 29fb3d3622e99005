"""Whether somebody else's subscription writes the plan's tables.

What native apply writes fires no statement trigger, so it passes every fence; and it carries an origin, so that
`origin = none` leaves it out of a logical stream and of the record of changed keys (manual, CREATE SUBSCRIPTION). Rows
that arrive between the last pass and the fence would be lost at the new primary, and no comparison would look at them.

Everybody may read `pg_subscription_rel` and, but for the address, `pg_subscription`; where that was revoked the check
fails, and that blocks.
"""

from cutover.postgres.identifiers import TableName
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

#: Tables and their partitions that a subscription (enabled or not) writes in this database.
_FED = """
WITH RECURSIVE members AS (
    SELECT c.oid FROM unnest($1::text[], $2::text[]) AS w(schema, name)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
    UNION
    SELECT i.inhrelid FROM members m JOIN pg_catalog.pg_inherits i ON i.inhparent = m.oid)
SELECT s.subname::text AS subscription, s.subenabled AS enabled, n.nspname::text AS schema, c.relname::text AS name
FROM members m JOIN pg_catalog.pg_subscription_rel r ON r.srrelid = m.oid
JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid
JOIN pg_catalog.pg_class c ON c.oid = m.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE s.subname <> $3
ORDER BY 1, 3, 4
"""


async def check_subscriptions(subject: Subject, findings: Findings) -> None:
    """Each side's tables, service by service; our own streams are told by their names (`leftovers` looks at these)."""
    for service in subject.plan.services:
        names = subject.names(service)
        for opened, ours in (
            (subject.monolith, f"{service}_reverse_sub"),
            (subject.targets[service], f"{service}_sub"),
        ):
            if opened:
                await _fed(opened, names, ours, findings)


async def _fed(opened: Opened, names: list[TableName], ours: str, findings: Findings) -> None:
    fed: dict[tuple[str, bool], list[TableName]] = {}
    for row in await opened.connection.fetch(_FED, [n.schema for n in names], [n.name for n in names], ours):
        table = TableName(row["schema"], row["name"])
        fed.setdefault((row["subscription"], row["enabled"]), []).append(table)
    for (subscription, enabled), tables in fed.items():
        findings.blocking(
            "fed_by_subscription", f"{opened.name}: subscription {subscription}",
            f"it writes {', '.join(map(str, tables))}" + ("" if enabled else " (disabled at the moment)"),
            "native apply passes every fence, and a logical stream leaves its rows out: what it brings shortly before "
            "a switch is lost at the new primary, and no comparison sees that",
            f"take these tables out of its publication (then ALTER SUBSCRIPTION {subscription} REFRESH PUBLICATION) or "
            "drop it, and let their rows come through the application; or leave the tables out of the plan",
        )  # fmt: skip
