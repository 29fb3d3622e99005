"""How a method becomes the activity of a signature: name, types, translated errors, heartbeats."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

from temporalio import activity

from activities.errors import translated
from activities.signatures import Kind, Signature

In = TypeVar("In")
Out = TypeVar("Out")
Self = TypeVar("Self")

_MARK = "__cutover_signature__"
#: Seconds between two heartbeats. A cancellation arrives with the answer to one; each costs the server a write.
_BEATS: dict[Kind, float] = {"measure": 5.0, "long": 5.0, "pass": 0.4, "relay": 1.0}


def implements(
    signature: Signature[In, Out],
) -> Callable[[Callable[[Self, In], Awaitable[Out]]], Callable[[Self, In], Awaitable[Out]]]:
    """Register a method under its signature. The method's annotations have to be the signature's."""

    def decorate(method: Callable[[Self, In], Awaitable[Out]]) -> Callable[[Self, In], Awaitable[Out]]:
        @wraps(method)
        async def run(self: Self, argument: In) -> Out:
            with translated():
                if signature.kind in _BEATS:
                    async with beating(_BEATS[signature.kind]):
                        return await method(self, argument)
                return await method(self, argument)

        setattr(run, _MARK, signature)
        return activity.defn(name=signature.name)(run)

    return decorate


@contextlib.asynccontextmanager
async def beating(seconds: float) -> AsyncIterator[None]:
    """Heartbeats while the block runs, so that a killed worker is noticed and a cancellation arrives."""

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(seconds)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def activities_of(*instances: object) -> list[Callable[..., Any]]:
    """The bound methods of these objects that implement a signature."""
    found = []
    for instance in instances:
        for name in sorted(dir(type(instance))):
            method = getattr(instance, name)
            if callable(method) and hasattr(method, _MARK):
                found.append(method)
    return found
