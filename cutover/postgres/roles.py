"""The application's roles at the service database: the same grants as on the monolith, and nothing more.

The tables there belong to cutover's own role. An application role owns nothing, so that it cannot lift a fence.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from cutover.errors import ConfigError
from cutover.postgres import catalog
from cutover.postgres.catalog import TableInfo
from cutover.postgres.databases import Database
from cutover.postgres.identifiers import TableName, columns_sql, quote, quote_literal
from cutover.postgres.quiet import silence_log
from cutover.postgres.suggestions import did_you_mean

#: What an application may get on tables and sequences; REFERENCES, TRIGGER and MAINTAIN are an owner's business.
TABLE_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
SEQUENCE_PRIVILEGES = ("USAGE", "SELECT", "UPDATE")
DML = ("SELECT", "INSERT", "UPDATE", "DELETE")

_GRANTS = """
SELECT r.rolname::text AS role, n.nspname::text AS schema, c.relname::text AS name, c.relkind = 'S' AS is_sequence,
       NULL::text AS column, x.privilege_type AS privilege
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) x JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
WHERE c.oid = ANY($1::oid[]) AND x.grantee <> c.relowner
UNION ALL
SELECT r.rolname::text, n.nspname::text, c.relname::text, false, a.attname::text, x.privilege_type
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) x JOIN pg_catalog.pg_roles r ON r.oid = x.grantee
WHERE c.oid = ANY($1::oid[]) AND NOT a.attisdropped AND x.grantee <> c.relowner
UNION ALL
-- an owner needs no grant where it owns; at the service it owns nothing
SELECT r.rolname::text, n.nspname::text, c.relname::text, c.relkind = 'S', NULL, p.privilege
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
CROSS JOIN unnest(CASE WHEN c.relkind = 'S' THEN $2::text[] ELSE $3::text[] END) p(privilege)
WHERE c.oid = ANY($1::oid[])
"""

# Superusers and the server's own roles need no grant and get none; nor does the role that runs this.
_ROLES = """
SELECT r.rolname::text AS name, r.rolcanlogin AS can_login, r.rolinherit AS inherits, r.rolconnlimit AS limit,
       r.rolsuper OR pg_catalog.starts_with(r.rolname::text, 'pg_') OR r.rolname = current_user AS passed_over
FROM pg_catalog.pg_roles r
"""

_MEMBERS = """
SELECT g.rolname::text AS role, m.rolname::text AS member FROM pg_catalog.pg_auth_members am
JOIN pg_catalog.pg_roles g ON g.oid = am.roleid JOIN pg_catalog.pg_roles m ON m.oid = am.member
"""


@dataclass(frozen=True)
class RoleReport:
    """One role: whether it was made, whether a password came with it (None: it was there, or cannot log in)."""

    role: str
    created: bool
    password_copied: bool | None
    grants: int


@dataclass(frozen=True)
class _Grant:
    """One object's privileges for one role; `columns` for grants on columns alone."""

    role: str
    object: TableName
    is_sequence: bool
    privilege: str
    column: str | None


async def _grants(connection: asyncpg.Connection, infos: list[TableInfo]) -> list[_Grant]:
    tables = await catalog.find_tables(connection, [name for info in infos for name in info.everywhere])
    sequences = await catalog.sequences_of(connection, infos)
    oids = [info.oid for info in tables] + [
        await connection.fetchval("SELECT $1::regclass::oid", s.name.sql) for s in sequences
    ]
    rows = await connection.fetch(_GRANTS, oids, list(SEQUENCE_PRIVILEGES), list(DML))
    return [
        _Grant(row["role"], TableName(row["schema"], row["name"]), row["is_sequence"], row["privilege"], row["column"])
        for row in rows
        if row["privilege"] in (SEQUENCE_PRIVILEGES if row["is_sequence"] else TABLE_PRIVILEGES)
    ]


async def application_roles(connection: asyncpg.Connection, tables: Iterable[TableName]) -> tuple[str, ...]:
    """The roles with a write privilege on these tables, granted or by owning them, but for superusers and ourselves."""
    infos = await catalog.tables(connection, tables)
    passed_over = {row["name"] for row in await connection.fetch(_ROLES) if row["passed_over"]}
    grants = await _grants(connection, infos)
    writing = {g.role for g in grants if not g.is_sequence and g.privilege in ("INSERT", "UPDATE", "DELETE")}
    return tuple(sorted(writing - passed_over))


async def copy_roles(
    source: Database, target: Database, tables: Iterable[TableName], names: Iterable[str] = ()
) -> list[RoleReport]:
    """Gives the application's roles at the target the grants they have at the source; makes those that are missing.

    `names`: the plan's `app_roles`; without any, every role with DML on the tables. A NOLOGIN group comes with its
    login members. A role that is there keeps its attributes and password. Run again, it changes nothing.
    Raises ConfigError for an unknown role or where cutover's role may not create roles or grant.
    """
    async with source.session("cutover-roles") as here, target.session("cutover-roles") as there:
        infos = await catalog.tables(here, tables)
        grants = await _grants(here, infos)
        known = {row["name"]: row for row in await here.fetch(_ROLES)}
        wanted = list(names) or await application_roles(here, tables)
        for name in wanted:
            if name not in known:
                raise ConfigError(
                    f"role {name!r} does not exist at {source.name!r}: correct app_roles; {did_you_mean(name, known)}"
                )
        memberships = [
            (row["role"], row["member"])
            for row in await here.fetch(_MEMBERS)
            if row["role"] in wanted and not known[row["member"]]["passed_over"]
        ]
        roles = sorted({*wanted, *(member for _, member in memberships)})
        made: dict[str, bool | None] = {}
        try:
            for name in roles:
                made |= await _create_role(here, there, known[name])
            async with there.transaction():
                await _apply(there, [g for g in grants if g.role in roles], roles, memberships)
        except asyncpg.InsufficientPrivilegeError as e:
            raise ConfigError(
                f"cutover's role may not set up roles at {target.name!r} ({e}): give it CREATEROLE and let it own the "
                "service's tables, or create and grant the roles by hand"
            ) from None
        return [
            RoleReport(name, name in made, made.get(name), sum(1 for g in grants if g.role == name)) for name in roles
        ]


async def _create_role(
    here: asyncpg.Connection, there: asyncpg.Connection, role: asyncpg.Record
) -> dict[str, bool | None]:
    """Makes one role with the source's LOGIN, INHERIT and CONNECTION LIMIT. Returns nothing where it was there."""
    name = role["name"]
    if await there.fetchval("SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", name):
        return {}
    options = [
        "LOGIN" if role["can_login"] else "NOLOGIN",
        "INHERIT" if role["inherits"] else "NOINHERIT",
        f"CONNECTION LIMIT {int(role['limit'])}",
    ]
    password = await _password(here, name) if role["can_login"] else None
    try:
        async with there.transaction():
            copied = password is not None and await silence_log(there)
            secret = f" PASSWORD {quote_literal(password)}" if copied and password else ""
            await there.execute(f"CREATE ROLE {quote(name)} {' '.join(options)}{secret}")
    except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        return {}  # roles belong to the cluster; another service's run was faster
    return {name: copied if role["can_login"] else None}


async def _password(connection: asyncpg.Connection, role: str) -> str | None:
    """The stored hash, where this role may read it (superusers); never clear text."""
    if not await connection.fetchval("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')"):
        return None
    value = await connection.fetchval("SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1", role)
    return str(value) if value else None


async def _apply(
    connection: asyncpg.Connection, grants: list[_Grant], roles: list[str], memberships: list[tuple[str, str]]
) -> None:
    """All grants in one transaction; a GRANT of what is there already changes nothing."""
    [row] = await connection.fetch("SELECT current_database() AS name")
    for role in roles:
        await connection.execute(f"GRANT CONNECT ON DATABASE {quote(row['name'])} TO {quote(role)}")
    for group, member in memberships:
        if not await connection.fetchval("SELECT pg_has_role($1, $2, 'MEMBER')", member, group):
            await connection.execute(f"GRANT {quote(group)} TO {quote(member)}")
    for role, schema in sorted({(g.role, g.object.schema) for g in grants}):
        await connection.execute(f"GRANT USAGE ON SCHEMA {quote(schema)} TO {quote(role)}")
    there = {
        (row["schema"], row["name"])
        for row in await connection.fetch(
            "SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'S')"
        )
    }
    for g in grants:
        if (g.object.schema, g.object.name) in there:
            columns = f" ({columns_sql([g.column])})" if g.column else ""
            kind = "SEQUENCE" if g.is_sequence else "TABLE"
            await connection.execute(f"GRANT {g.privilege}{columns} ON {kind} {g.object.sql} TO {quote(g.role)}")
