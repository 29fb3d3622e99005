"""Sessions at both ends of an outbox stream, with the settings under which rows travel."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg

from cutover.errors import NotYet
from cutover.postgres import compare, outbox_tables
from cutover.postgres.applier import applier_session
from cutover.postgres.databases import FAILURES, Direction, Pair
from cutover.postgres.outbox_tables import Flow

#: Writers of one kind and service that may be at work at once; each has a replication origin of its own.
_MOST_WRITERS = 32

#: Seconds that opening both ends may take; a network may say nothing.
_OPENING_SECONDS = 60.0

#: Keys are looked up by their index, whatever the planner believes of a table that was never analysed. Locks and
#: statements end, so that a batch is never in flight for long (see `outbox_sink` on pruning).
_SETTINGS = {
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "30s",
    "synchronous_commit": "on",
}
_COPY_SETTINGS = {
    "jit": "off",
    # ranges are read side by side as it is; a checksum by several processes would take the application's CPU
    "max_parallel_workers_per_gather": "0",
    "statement_timeout": "30min",
    "idle_in_transaction_session_timeout": "10min",
}


@dataclass(frozen=True)
class Ends:
    """Open sessions at source and sink (the sink's may write behind the fence) and the tables between them."""

    source: asyncpg.Connection
    sink: asyncpg.Connection
    flows: dict[str, Flow]
    #: The tables' definitions for which the flows were made.
    source_definition: str
    sink_definition: str


@asynccontextmanager
async def open_ends(pair: Pair, direction: Direction, purpose: str, *, copy: bool = False) -> AsyncIterator[Ends]:
    """Raises Unreachable, ConfigError, GateClosed, and NotYet while too many such writers are at work."""
    settings = _COPY_SETTINGS if copy else _SETTINGS
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(_OPENING_SECONDS):
            source = await pair.source(direction).connect(f"cutover-{purpose}/{pair.service}")
            stack.push_async_callback(_close, source)
            sink = await _writer(stack, pair, direction, purpose)
            for connection in (source, sink):
                for name, value in settings.items():
                    await connection.execute("SELECT pg_catalog.set_config($1, $2, false)", name, value)
                await compare.read_alike(connection)
            known = [await outbox_tables.definition(connection, pair.tables) for connection in (source, sink)]
            flows = await outbox_tables.flows(source, sink, pair.tables, pair.compare)
        yield Ends(source, sink, flows, *known)


async def _writer(stack: AsyncExitStack, pair: Pair, direction: Direction, purpose: str) -> asyncpg.Connection:
    for number in range(_MOST_WRITERS):
        try:
            return await stack.enter_async_context(
                applier_session(pair.sink(direction), pair.service, f"{purpose}{number}")
            )
        except NotYet:
            continue
    raise NotYet(f"{pair.service}: {_MOST_WRITERS} writers ({purpose}) are at work at {pair.sink(direction).name!r}")


async def _close(connection: asyncpg.Connection) -> None:
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except FAILURES:
        connection.terminate()
