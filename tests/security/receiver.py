"""A receiver on loopback that can misbehave, and a sample of what a real one does (docs/webhooks.md shows `Receiver.take`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from waybill.webhooks import WebhookRefused, verify

Misbehaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Receiver:
    """Keeps what it believed, once each."""

    def __init__(self, secret: str) -> None:
        self.secret, self.seen, self.events = secret, set[str](), list[dict[str, object]]()

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """The status to answer with."""
        try:
            event = verify(self.secret, headers, body)
        except WebhookRefused:
            return 400
        if headers["webhook-id"] not in self.seen:  # a second try of what we have is no second event
            self.seen.add(headers["webhook-id"])
            self.events.append(event)
        return 204


async def read_request(reader: asyncio.StreamReader) -> tuple[dict[str, str], bytes]:
    """Headers and body of one request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    return headers, await reader.readexactly(int(headers["content-length"]))


@asynccontextmanager
async def listening(answer: Misbehaviour) -> AsyncIterator[str]:
    """A server on loopback; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()


def answering(status: str, received: list[tuple[dict[str, str], bytes]] | None = None, extra: str = "") -> Misbehaviour:
    """Takes the request and answers with a status line."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        if received is not None:
            received.append(request)
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n{extra}\r\n".encode())
        await writer.drain()

    return answer
