"""An HTTP server for as long as a command runs: a clear word where it cannot listen, and a graceful end."""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from cutover.errors import ConfigError

#: Seconds that running requests get after SIGTERM or Ctrl-C.
GRACE = 5


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError where the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            why = f"{host!r} is no address of this machine: choose another with --host"
        elif error.errno == errno.EADDRINUSE:
            why = "the port is in use: choose another with --port, or end what listens there"
        elif error.errno == errno.EACCES:
            why = "this user may not listen there: choose a port above 1023 with --port"
        else:
            why = error.strerror or type(error).__name__
        raise ConfigError(f"cannot listen on {host}:{port}: {why}") from None


async def serve(app: Starlette, listening: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answers requests until SIGTERM or SIGINT; calls `ready` before the first. Needs the main thread."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
    )

    def stop() -> None:
        server.should_exit = True

    # uvicorn ends gracefully on both, and raises them again after that: then they end here and not the process
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        ready()
        await server.serve(sockets=[listening])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
