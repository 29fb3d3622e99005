"""Rights: what cutover's role needs, in both directions, and what the application's roles should not have."""

from urllib.parse import parse_qs, urlsplit

import asyncpg

from cutover.errors import CutoverError
from cutover.postgres import roles
from cutover.postgres.databases import Database
from cutover.postgres.suggestions import did_you_mean
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

_OWN = """
SELECT r.rolname::text AS role, r.rolsuper AS superuser, r.rolreplication AS replication, r.rolcreaterole AS createrole,
       has_database_privilege(current_database(), 'CREATE') AS create_on_database,
       pg_has_role(current_user, 'pg_signal_backend', 'MEMBER') AS signal,
       pg_has_role(current_user, 'pg_read_all_stats', 'MEMBER') AS stats,
       CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_create_subscription')
            THEN pg_has_role(current_user, to_regrole('pg_create_subscription'), 'MEMBER') ELSE false END AS subscribe,
       (SELECT coalesce(bool_and(has_function_privilege(p.oid, 'EXECUTE')), false) FROM pg_proc p
        WHERE p.proname IN ('pg_replication_origin_create', 'pg_replication_origin_session_setup',
                            'pg_replication_origin_drop')) AS origins
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
# has_parameter_privilege is there from 15 on; before that the setting is a superuser's alone.
_REPLICA_ROLE = "SELECT has_parameter_privilege($1, 'session_replication_role', 'SET')"

_NOT_OWNED = """
SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY($1::oid[]) AND NOT pg_has_role(current_user, c.relowner, 'USAGE') ORDER BY 1, 2
"""

_ROLE = """
SELECT r.rolname::text AS role, r.rolsuper AS superuser, r.rolcanlogin AS can_login,
       ARRAY(SELECT DISTINCT o.rolname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
             WHERE c.oid = ANY($2::oid[]) AND pg_has_role(r.oid, c.relowner, 'MEMBER')) AS owners
FROM pg_catalog.pg_roles r
WHERE r.rolname <> current_user AND (r.rolname = ANY($1::text[])
   OR EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE g.rolname = ANY($1::text[]) AND r.rolcanlogin AND NOT r.rolsuper
              AND pg_has_role(r.oid, g.oid, 'MEMBER')))
ORDER BY 1
"""

_CONNINFO_ROLE = """
SELECT rolname::text AS role, rolsuper OR rolreplication AS replication,
       ARRAY(SELECT t FROM unnest($1::text[]) t
             WHERE to_regclass(t) IS NOT NULL AND NOT has_table_privilege(t, 'SELECT')) AS unreadable
FROM pg_catalog.pg_roles WHERE rolname = current_user
"""


async def check_privileges(subject: Subject, findings: Findings) -> None:
    """Own rights on every database (each is source and target in turn), and the application's roles."""
    for opened in {id(o): o for o in subject.opened()}.values():
        logical = any(
            rules.stream == "logical" and opened in (subject.monolith, subject.targets[service])
            for service, rules in subject.plan.services.items()
        )
        await _own(opened, logical, findings)
        if logical:
            await _conninfo(opened, subject, findings)
    if subject.monolith:
        await _ownership(subject.monolith, subject, findings)
        await _application(subject.monolith, subject, findings)


async def _own(opened: Opened, logical: bool, findings: Findings) -> None:
    [own] = await opened.connection.fetch(_OWN)
    if own["superuser"]:
        return
    role, where = own["role"], f"{opened.name}: role {own['role']}"
    can_replicate = opened.facts.major >= 15 and await opened.connection.fetchval(_REPLICA_ROLE, role)
    wanted = [
        (own["create_on_database"], "create_on_database", "may not create schemas and publications",
         "fences, epochs and publications are objects of this database",
         f'GRANT CREATE ON DATABASE <this database> TO "{role}";'),
        (own["replication"] or not logical, "replication", "does not have the attribute REPLICATION",
         "slots can be made and read only with it", f'ALTER ROLE "{role}" REPLICATION;'),
        (can_replicate, "replica_role", "may not set session_replication_role",
         "repairs and appliers would fire the user's triggers a second time",
         f'GRANT SET ON PARAMETER session_replication_role TO "{role}";  -- 15 or newer, else a superuser'),
        (own["origins"] or not logical, "replication_origin", "may not execute the pg_replication_origin functions",
         "repairs without an origin would be sent back by the stream",
         f'GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), … TO "{role}";'),
        (own["subscribe"] or not logical, "create_subscription", "may not create subscriptions",
         "each database is the target of one direction",
         f'GRANT pg_create_subscription TO "{role}";  -- 16 or newer, else a superuser'),
        (own["stats"], "read_stats", "does not see other sessions",
         "a guard that cannot see old transactions counts as a breach", f'GRANT pg_read_all_stats TO "{role}";'),
    ]  # fmt: skip
    for held, code, what, why, remedy in wanted:
        if not held:
            findings.blocking(code, where, what, why, remedy)
    if not own["signal"]:
        findings.advice("signal_backend", where, "may not end other roles' sessions",
                        "a session that holds off the fence can then only be waited for",
                        f'GRANT pg_signal_backend TO "{role}";')  # fmt: skip
    if not own["createrole"]:
        findings.advice("create_role", where, "may not create roles",
                        "the application's roles have to be there, or be made by hand",
                        f'ALTER ROLE "{role}" CREATEROLE;')  # fmt: skip
    if logical and not _has_password(opened.database.conninfo):
        findings.blocking("conninfo_password", where, "a subscription of a role that is not superuser needs a password",
                          "the server refuses CREATE SUBSCRIPTION without one",
                          "set CUTOVER_REPLICATION_DSN_… with a password, for a role of its own")  # fmt: skip


def _has_password(dsn: str) -> bool:
    parts = urlsplit(dsn)
    return bool(parts.password or parse_qs(parts.query).get("password"))


async def _conninfo(opened: Opened, subject: Subject, findings: Findings) -> None:
    """The address that the other server will use, tried from here; that the other one reaches it cannot be."""
    where = f"{opened.name}: replication address"
    try:
        async with Database(opened.name, opened.database.conninfo).session("cutover-preflight") as c:
            [row] = await c.fetch(_CONNINFO_ROLE, [name.sql for name in subject.tables])
    except (CutoverError, asyncpg.PostgresError) as e:
        findings.advice("replication_address", where, f"cannot be reached from this machine ({type(e).__name__})",
                        "the other side's server connects to it, which may still work: only that server can tell",
                        "check it from the other server with psql, or set CUTOVER_REPLICATION_DSN_…")  # fmt: skip
        return
    if opened.database.replication_dsn and not row["replication"]:
        findings.blocking("replication_role", where, f"role {row['role']} does not have the attribute REPLICATION",
                          "the stream connects as this role", f'ALTER ROLE "{row["role"]}" REPLICATION;')  # fmt: skip
    if row["unreadable"]:
        findings.blocking("replication_select", where,
                          f"role {row['role']} may not read {', '.join(row['unreadable'])}",
                          "the first copy reads the tables as this role", "GRANT SELECT on them to it")  # fmt: skip


async def _ownership(monolith: Opened, subject: Subject, findings: Findings) -> None:
    oids = [info.oid for info in subject.tables.values()]
    rows = await monolith.connection.fetch(_NOT_OWNED, oids)
    if rows:
        names = ", ".join(f"{row['schema']}.{row['name']}" for row in rows)
        findings.blocking(
            "not_owner", f"{monolith.name}: cutover's role", f"does not own, nor belong to the owner of, {names}",
            "publications, fences and dropped keys are an owner's right",
            "GRANT <owner> TO <cutover's role> WITH INHERIT TRUE",
        )  # fmt: skip


async def _application(monolith: Opened, subject: Subject, findings: Findings) -> None:
    """Application roles that could lift a fence: superusers, owners, and those who may act as a replica."""
    connection = monolith.connection
    known = [row["rolname"] for row in await connection.fetch("SELECT rolname::text FROM pg_catalog.pg_roles")]
    for service, rules in subject.plan.services.items():
        infos = subject.infos(service)
        for name in rules.app_roles:
            if name not in known:
                findings.blocking(
                    "app_role_unknown", f"plan: services.{service}.app_roles", f"role {name!r} does not exist",
                    "it can be given no rights at the service", f"correct it; {did_you_mean(name, known)}".rstrip("; "),
                )  # fmt: skip
        names = rules.app_roles or await roles.application_roles(connection, [info.name for info in infos])
        for row in await connection.fetch(_ROLE, list(names), [info.oid for info in infos]):
            ways = []
            if row["superuser"]:
                ways.append("is superuser")
            elif row["owners"]:
                owners = [o for o in row["owners"] if o != row["role"]]
                ways.append(f"belongs to the owner {', '.join(owners)}" if owners else "owns tables")
            asks = not row["superuser"] and monolith.facts.major >= 15
            if asks and await connection.fetchval(_REPLICA_ROLE, row["role"]):
                ways.append("may set session_replication_role")
            if ways:
                findings.advice(
                    "could_unfence", f"{monolith.name}: role {row['role']} ({service})", f"it {' and '.join(ways)}",
                    "it could lift the fence (ALTER TABLE … DISABLE TRIGGER) and write to the wrong side",
                    "let another role own the tables and give this one SELECT, INSERT, UPDATE, DELETE alone",
                )  # fmt: skip
