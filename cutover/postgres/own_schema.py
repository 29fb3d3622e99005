"""The end of the schema `cutover` in a migrated database: it goes with the last service that used it.

Only what was made here is dropped, by name and without CASCADE: an object of somebody else, or one of ours that is
still in use (a fence, a capture trigger), keeps the schema.
"""

import asyncpg

from cutover.errors import Refused
from cutover.postgres import loose_keys
from cutover.postgres.epoch import GONE, SCHEMA
from cutover.postgres.identifiers import TableName

#: Tables (those ending in % by the beginning of their name) and functions of `epoch`, `loose_keys` and `outbox_schema`.
_TABLES = (
    "epoch", "flush", "loose_key_queue", "marker_%", "quarantine", "row_version", "relay_lease", "relay_member",
    "outbox_stream", "backfill_table", "backfill_chunk", "decision",
)  # fmt: skip
_FUNCTIONS = ("refuse()", "queue_loose_key()", "prune_decisions()")

_FOUND = """
SELECT c.relname::text AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = 'r' AND c.relname LIKE ANY ($2::text[]) ORDER BY 1
"""


def is_taken_away(error: BaseException) -> bool:
    """Whether a statement found no more of ours at its server: the stream was dropped, or the whole schema with it."""
    names = (*GONE, asyncpg.UndefinedFunctionError)
    return isinstance(error, names) and any(name in str(error) for name in ("cutover.", '"cutover"'))


async def drop_if_unused(connection: asyncpg.Connection) -> str:
    """Drops the schema where no service is installed any more; "" once it is gone, else in words what keeps it.

    Raises Refused while deleted parents of a loose key wait in its queue: they would be forgotten. Idempotent.
    """
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('cutover.install'))")
            if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", SCHEMA):
                return ""
            if await connection.fetchval("SELECT to_regclass('cutover.epoch') IS NOT NULL"):
                users = await connection.fetch("SELECT service FROM cutover.epoch ORDER BY 1")
                if users:
                    return "used by " + ", ".join(row["service"] for row in users)
            if waiting := await loose_keys.pending(connection):
                raise Refused(
                    f"{waiting} deleted parents wait in cutover.loose_key_queue for children of keys that nobody "
                    "follows any more: look at them, let the children follow, and delete them from the queue"
                )
            patterns = [name.replace("_", r"\_") for name in _TABLES]
            for row in await connection.fetch(_FOUND, SCHEMA, patterns):
                await connection.execute(f"DROP TABLE {TableName(SCHEMA, row['name']).sql}")
            for function in _FUNCTIONS:
                await connection.execute(f"DROP FUNCTION IF EXISTS {SCHEMA}.{function}")
            await connection.execute(f"DROP SCHEMA {SCHEMA}")
    except asyncpg.DependentObjectsStillExistError as error:
        return f"something depends on it: {error.detail}"
    return ""
