"""A control database that says nothing."""

import asyncio
import time

import pytest

from cutover.control.database import Control
from tests.relay import Relay


async def test_a_call_to_a_silent_control_database_ends_as_soon_as_it_is_cancelled(control: Control) -> None:
    async with Relay(control.database) as relay:
        silent = await Control.open(relay.database)
        try:
            for call in (_transaction, _statement):
                await call(silent)
                relay.speaking.clear()
                for _ in range(2):  # on the session that there is, and on one that would have to be opened
                    begun = time.monotonic()
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.2):
                            await call(silent)
                    assert time.monotonic() - begun < 1
                relay.speaking.set()
        finally:
            silent.pool.terminate()


async def _statement(control: Control) -> None:
    assert await control.fetchval("SELECT 1") == 1


async def _transaction(control: Control) -> None:
    async with control.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1
