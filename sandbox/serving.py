"""Runs a sandbox: binds the port before anything is announced, then serves until told to stop."""

from __future__ import annotations

import socket

import uvicorn

from sandbox.connection import ReachableProtocol
from sandbox.server import Sandbox


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that clients may connect from the moment its port is known.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    return bound


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drop every connection at once: requests that hang on purpose would never end by themselves."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def server_for(sandbox: Sandbox, *, log_level: str = "warning") -> uvicorn.Server:
    """Return a server for `sandbox`, to be run with the socket of `listen`."""
    config = uvicorn.Config(
        sandbox,
        loop="auto",
        http=ReachableProtocol,
        ws="none",
        lifespan="off",
        log_level=log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Clients pool connections; closing an idle one under them would be a fault nobody asked for.
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=1,
        backlog=2048,
    )
    return _Server(config)
