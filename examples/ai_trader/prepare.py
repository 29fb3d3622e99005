"""The monolith's schema and roles, put in place before there is anything to migrate."""

from pathlib import Path

import asyncpg

from cutover.postgres.databases import Database
from examples.ai_trader.roles import role_password

SCHEMA = Path(__file__).with_name("schema.sql")

#: Roles belong to a server, not to a database: the services' server needs them as well.
ROLES = """
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['trader_owner', 'trader_app', 'trader_cron'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I %s', wanted,
                           CASE wanted WHEN 'trader_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END);
        END IF;
    END LOOP;
END
$$
"""


async def create_monolith(database_superuser: Database) -> None:
    """Runs schema.sql in one transaction; run again it changes nothing.

    Raises Unreachable where the database does not answer, ConfigError for a DSN that is not a URL.
    """
    async with database_superuser.session("ai-trader prepare") as connection, connection.transaction():
        await connection.execute(SCHEMA.read_text())
        await connection.execute("RESET ROLE")
        await _give_passwords(connection, database_superuser)


async def create_roles(database_superuser: Database) -> None:
    """The three roles alone, for a server that does not hold the monolith; run again it changes nothing."""
    async with database_superuser.session("ai-trader prepare") as connection, connection.transaction():
        await connection.execute(ROLES)
        await _give_passwords(connection, database_superuser)


async def _give_passwords(connection: asyncpg.Connection, database: Database) -> None:
    for role in ("trader_app", "trader_cron"):
        if password := role_password(database, role):
            # ALTER ROLE takes no parameters; the server quotes what it is given.
            statement = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"
            await connection.execute(await connection.fetchval(statement, role, password))
