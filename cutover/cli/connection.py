"""The command line's way to the control database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cutover.control.database import Control
from cutover.settings import CONTROL, Settings


@asynccontextmanager
async def control(settings: Settings) -> AsyncIterator[Control]:
    """The control database, for one command."""
    opened = await Control.open(settings.database(CONTROL), max_size=2)
    try:
        yield opened
    finally:
        await opened.close()
