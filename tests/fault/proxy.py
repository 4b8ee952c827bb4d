"""A TCP proxy that stands between a process and a service, and can go silent in either direction, or cut.

Silence is what a network partition looks like to both ends: nothing arrives, nothing is closed, and what was on its way
arrives when the partition heals (TCP sends it again). A cut is a reset of every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

_RESET = struct.pack("ii", 1, 0)
BLOCK = 64 * 1024


class Proxy:
    """One service behind a proxy; lives in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._open: set[socket.socket] = set()
        for flow in self._flows.values():
            flow.set()
        self._bound = socket.create_server(("127.0.0.1", 0))
        self._bound.setblocking(False)
        self.port = int(self._bound.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def silence(self, *directions: str) -> None:
        """Let nothing through: `up` is towards the service, `down` towards its client; both without arguments."""
        for direction in directions or ("up", "down"):
            self._loop.call_soon_threadsafe(self._flows[direction].clear)

    def point_at(self, host: str, port: int) -> None:
        """New connections go there: what a service address does after a failover. `cut` ends the old ones."""
        self._target = (host, port)

    def heal(self) -> None:
        """Let everything through again, what was held back first."""
        for flow in self._flows.values():
            self._loop.call_soon_threadsafe(flow.set)

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def close(self) -> None:
        """Cut and end."""
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        accepting.cancel()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    def _stop(self) -> None:
        self._reset_all()
        self._bound.close()
        self._loop.stop()

    def _reset_all(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # Wakes the reader and closes what it holds; the reset is sent with the last copy of the descriptor.
                one.shutdown(socket.SHUT_RD)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._bound)
            client.setblocking(False)
            self._loop.create_task(self._carry(client))

    async def _carry(self, client: socket.socket) -> None:
        service = socket.socket()
        service.setblocking(False)
        self._open |= {client, service}
        try:
            # A connection attempt is silent, too, while the way up is.
            await self._flows["up"].wait()
            await self._loop.sock_connect(service, self._target)
            ends = [
                self._loop.create_task(self._pump(client, service, "up")),
                self._loop.create_task(self._pump(service, client, "down")),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        except OSError:
            return
        finally:
            self._open -= {client, service}
            client.close()
            service.close()

    async def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while piece := await self._loop.sock_recv(source, BLOCK):
                await self._flows[direction].wait()
                await self._loop.sock_sendall(sink, piece)


@contextmanager
def before(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the service of a URL, and the URL that goes through it."""
    parts = urlsplit(url)
    proxy = Proxy(str(parts.hostname), int(parts.port or 0))
    login, at, _ = parts.netloc.rpartition("@")
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{proxy.port}"))
    finally:
        proxy.close()
