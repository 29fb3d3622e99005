"""A network that can be cut between a process and its database."""

import asyncio
from contextlib import suppress
from dataclasses import replace

from cutover.devstack.cluster import free_port
from cutover.postgres.databases import Database


class Relay:
    """A TCP way to a database that can be cut."""

    def __init__(self, database: Database) -> None:
        self.target = database
        self.port = free_port()
        self.writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Relay":
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    @property
    def database(self) -> Database:
        user, _, rest = self.target.dsn.rpartition("@")
        return replace(self.target, dsn=f"{user}@127.0.0.1:{self.port}/{rest.partition('/')[2]}")

    async def mend(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = self.target.dsn.rpartition("@")[2].partition("/")[0]
        host, _, port = address.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        self.writers |= {writer, back}

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, back), copy(there, writer))
        self.writers -= {writer, back}
