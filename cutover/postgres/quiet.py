"""Statements that hold a secret stay out of the server's log, where the role may say so."""

import asyncpg


async def silence_log(connection: asyncpg.Connection) -> bool:
    """For the rest of the caller's transaction; False where only a superuser could (PostgreSQL manual, 20.8)."""
    try:
        async with connection.transaction():
            await connection.execute(
                "SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1;"
                "SET LOCAL log_min_error_statement = 'panic'; SET LOCAL log_min_duration_sample = -1"
            )
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True
