"""Sessions at both sides of a comparison, and what their errors mean to a person."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncpg

from cutover.errors import NotYet, Refused, Unreachable
from cutover.postgres import compare
from cutover.postgres.databases import CONNECTION_ERRORS, Direction, Pair

T = TypeVar("T")


async def at_once(left: Coroutine[Any, Any, T], right: Coroutine[Any, Any, T]) -> tuple[T, T]:
    """Both sides' answers. Where one fails the other is ended first, so that its session can be used again."""
    tasks = asyncio.create_task(left), asyncio.create_task(right)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


@contextmanager
def translated(pair: Pair, direction: Direction) -> Iterator[None]:
    """Errors of the servers leave the block as errors of ours: Refused, NotYet, Unreachable."""
    source, sink = pair.source(direction).name, pair.sink(direction).name
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise Refused(
            f"{pair.service}: {error.args[0]} (comparing {source!r} with {sink!r}): grant the privilege "
            "(BYPASSRLS where the table has row security) to cutover's role on that side"
        ) from None
    except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.SerializationError) as error:
        raise NotYet(
            f"{pair.service}: comparing {source!r} with {sink!r} was held up ({type(error).__name__}): "
            "look for DDL or a lock on the table (or, on a replica, for what its replay has to clear away); run again, "
            "it goes on where it stood"
        ) from None
    except CONNECTION_ERRORS as error:
        # asyncpg reports a wrong argument as an InterfaceError that is a ValueError: a mistake, no lost server
        if isinstance(error, ValueError):
            raise
        raise Unreachable(
            f"{pair.service}: {source!r} or {sink!r} went away during a comparison: {type(error).__name__}"
        ) from None


@asynccontextmanager
async def both_sides(
    pair: Pair, direction: Direction, purpose: str, *, replicas: bool = False, **settings: str
) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection]]:
    """Compare sessions at source and sink (or at their replicas, where there are some), with settings of their own."""
    at_source, at_sink = pair.source(direction), pair.sink(direction)
    if replicas:
        at_source, at_sink = (pair.replicas.get(one.name, one) for one in (at_source, at_sink))
    with translated(pair, direction):
        async with (
            compare.compare_session(at_source, purpose, **settings) as source,
            compare.compare_session(at_sink, purpose, **settings) as sink,
        ):
            yield source, sink
