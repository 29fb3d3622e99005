"""A network between a process and its database that can be cut, or say nothing."""

import asyncio
from contextlib import suppress
from dataclasses import replace

from cutover.devstack.cluster import free_port
from cutover.postgres.databases import Database


class Relay:
    """A TCP way to a database that can be cut; while `speaking` is cleared it takes everything and brings nothing."""

    def __init__(self, database: Database) -> None:
        self.target = database
        self.port = free_port()
        self.down = True
        self.speaking = asyncio.Event()
        self.speaking.set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        self.speaking.set()
        await asyncio.gather(*self.serving, return_exceptions=True)

    @property
    def database(self) -> Database:
        user, _, rest = self.target.dsn.rpartition("@")
        return replace(self.target, dsn=f"{user}@127.0.0.1:{self.port}/{rest.partition('/')[2]}")

    async def mend(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.down = False

    async def cut(self) -> None:
        self.down = True
        # a connection accepted in this very moment would be lost, and its socket never closed, if the server went first
        for listening in self.server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        await asyncio.sleep(0)
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        if self.down:
            writer.close()
            return
        # before anything is awaited: a cut in this moment cuts it too
        self.writers.add(writer)
        address = self.target.dsn.rpartition("@")[2].partition("/")[0]
        host, _, port = address.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
            self.writers.add(back)
            try:
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
            finally:
                back.close()
                self.writers.discard(back)
        finally:
            writer.close()
            self.writers.discard(writer)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self.speaking.wait()
                sink.write(data)
                await sink.drain()
        sink.close()
