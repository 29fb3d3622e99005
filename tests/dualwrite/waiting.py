"""Waiting for a condition with a deadline, never for luck."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool | Awaitable[bool]], within: float = 10.0) -> None:
    """Returns once the condition holds; fails after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            held = condition()
            if isinstance(held, Awaitable):
                held = await held
            if held:
                return
            await asyncio.sleep(0.01)
