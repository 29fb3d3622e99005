"""A network that swallows what is sent: nobody hears an answer, and nobody hears that there is none."""

import asyncio

from cutover.postgres.databases import Database
from tests.relay import Relay


class BlackHole(Relay):
    """A TCP way to a database on which all goes through at first."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        #: While it is clear, a new connection is accepted and gets no answer.
        self.answering = asyncio.Event()
        self.answering.set()
        self.accepted = 0

    def swallow(self) -> None:
        """From now on nothing passes, on open connections and on new ones."""
        self.answering.clear()
        for writer in self.writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport reads too

    async def cut(self) -> None:
        await super().cut()
        self.answering.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        await self.answering.wait()
        await super()._serve(reader, writer)
