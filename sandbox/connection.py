"""One HTTP exchange down to its socket: faults need to reset it, the log needs to know whether the client left.

uvicorn's own protocol class is extended by one line, which lets the application reach the transport.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_LINGER_OFF = struct.pack("ii", 1, 0)
# A reset discards what the client has not read yet; this long it gets to read what was sent before.
_GRACE_S = 0.03


class ReachableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the transport in the scope."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class BodyTooLargeError(Exception):
    """The request's body is above the limit."""


class Exchange:
    """One request and its response."""

    __slots__ = ("_receive", "_send", "_transport", "headers", "method", "path", "query", "started_ns", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, started_ns: int) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started_ns = started_ns
        # status: what was sent; 0 while nothing was.
        self.status = 0
        self._receive = receive
        self._send = send
        self._transport: asyncio.Transport = scope["state"]["transport"]

    def header(self, name: bytes) -> str | None:
        """Return a request header, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def body(self, limit: int) -> bytes:
        """Return the whole request body.

        Raises:
            BodyTooLargeError: it has more than `limit` bytes.
        """
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return b""
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise BodyTooLargeError
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def client_left(self) -> bool:
        """Whether the connection is gone, as far as the kernel has told."""
        return self._transport.is_closing()

    async def until_client_leaves(self) -> None:
        """Wait until the connection is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and headers."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, part: bytes, *, more: bool = False) -> None:
        """Send a piece of the body; the last one has `more` False."""
        await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body)

    async def close(self) -> None:
        """Send what is buffered and close, whatever the headers promised."""
        await asyncio.sleep(_GRACE_S)
        self._transport.close()
        await self.until_client_leaves()

    async def reset(self) -> None:
        """Reset the connection (TCP RST)."""
        await asyncio.sleep(_GRACE_S)
        if (sock := self._transport.get_extra_info("socket")) is not None and not self.client_left:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        self._transport.abort()
        await self.until_client_leaves()
