"""What runs just now: old and prepared transactions, and transactions that write tables of two services."""

import asyncio
import time

from cutover.postgres import catalog
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

INTERVAL = 0.05  # seconds between two looks at pg_locks

_OLD = """
SELECT coalesce(nullif(application_name, ''), backend_type) AS application, usename::text AS role, state, count(*) AS n,
       max(extract(epoch FROM clock_timestamp() - xact_start))::int AS seconds
FROM pg_catalog.pg_stat_activity
WHERE xact_start < clock_timestamp() - interval '1 minute' AND pid <> pg_backend_pid()
  AND backend_type = 'client backend'
GROUP BY 1, 2, 3 ORDER BY seconds DESC LIMIT 20
"""

# Ours are the branches of strong consistency; they have a recorded decision.
_PREPARED = """
SELECT gid, database::text AS database, extract(epoch FROM clock_timestamp() - prepared)::int AS seconds
FROM pg_catalog.pg_prepared_xacts WHERE NOT starts_with(gid, 'cutover') ORDER BY prepared LIMIT 20
"""

_WRITERS = """
SELECT l.virtualtransaction AS transaction, l.relation::bigint AS relation,
       coalesce(nullif(a.application_name, ''), 'unnamed') AS application, a.usename::text AS role
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted AND l.relation = ANY($1::oid[])
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND a.backend_type = 'client backend' AND l.pid <> pg_backend_pid()
"""


async def check_activity(subject: Subject, findings: Findings, sample_seconds: float) -> None:
    """Looks once at every server's transactions, and for `sample_seconds` at who writes on the monolith."""
    for databases in subject.clusters().values():
        await _transactions(databases[0], ", ".join(sorted({o.name for o in databases})), findings)
    if subject.monolith and sample_seconds > 0:
        await _sample(subject, subject.monolith, findings, sample_seconds)


async def _transactions(opened: Opened, names: str, findings: Findings) -> None:
    for row in await opened.connection.fetch(_OLD):
        findings.advice(
            "long_transaction", f"server of {names}",
            f"{row['application']} (role {row['role']}, {row['state']}) has a transaction of {row['seconds']} s open",
            "making a slot waits for every transaction of the server, and a fence for those that wrote its tables",
            "end it before a stream is made or a switch begins, or make such jobs commit in smaller steps",
        )  # fmt: skip
    for row in await opened.connection.fetch(_PREPARED):
        findings.blocking(
            "prepared_transaction", f"server of {names}",
            f"transaction {row['gid']!r} in database {row['database']} has been prepared for {row['seconds']} s",
            "it keeps its locks for ever: no slot can be made and no fence be set while it stands",
            f"let its owner COMMIT PREPARED or ROLLBACK PREPARED {row['gid']!r}",
        )  # fmt: skip


async def _sample(subject: Subject, monolith: Opened, findings: Findings, seconds: float) -> None:
    """A transaction keeps its RowExclusiveLock to its end; a lock on tables of two services is a write to both."""
    owner_of: dict[int, tuple[str, str]] = {}
    for info in await catalog.find_tables(monolith.connection, list(subject.owners())):
        owner_of[info.oid] = (subject.owners()[info.name], str(info.name))
    seen: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], set[str]] = {}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        held: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
        for row in await monolith.connection.fetch(_WRITERS, list(owner_of)):
            held.setdefault((row["transaction"], row["application"], row["role"]), set()).add(owner_of[row["relation"]])
        for (transaction, application, role), written in held.items():
            services = tuple(sorted({service for service, _ in written}))
            if len(services) > 1:
                tables = tuple(sorted({table for _, table in written}))
                seen.setdefault((application, role, services, tables), set()).add(transaction)
        await asyncio.sleep(INTERVAL)
    for (application, role, services, tables), transactions in seen.items():
        findings.advice(
            "two_services_in_one_transaction", f"{monolith.name}: {application} (role {role})",
            f"writes {', '.join(tables)} of {', '.join(services)} in one transaction "
            f"({len(transactions)} seen in {seconds:g} s)",
            "after the cut such a transaction is two: one may commit and the other fail",
            "split it, move the tables together, or make the second write follow by a message",
        )  # fmt: skip
