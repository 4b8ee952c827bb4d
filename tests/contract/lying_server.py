"""A server on loopback that says exactly what a test tells it to, byte for byte, truth or not, in both wire dialects.

The sandbox is the honest peer; this is for what no honest server sends: resets, half bodies, wrong types, silence.
It runs on the test's own loop. Each connection serves any number of requests; `script` decides what each one gets.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    path: str
    headers: Mapping[str, str]
    body: Json
    raw: bytes = b""

    @property
    def dialect(self) -> str:
        return "anthropic" if self.path.endswith("/messages") else "openai"


Act = Callable[["Connection", Request], Awaitable[None]]


class Connection:
    """One client, with the ways to mistreat it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """End with a TCP reset instead of a FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()

    def close(self) -> None:
        self._writer.close()


@dataclass
class LyingServer:
    """Attributes:
    script: What the next requests get; replaced by each test.
    requests: Everything that came, in order.
    came: Set when the first request is there.
    gone: Set when a client closed its connection while the script was still busy with it.
    """

    script: Act
    requests: list[Request] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                self.came.set()
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    await self.script(connection, request)
                finally:
                    self.at_once -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            writer.close()


@asynccontextmanager
async def lying_server() -> AsyncIterator[LyingServer]:
    """Start one on a free port; it is gone afterwards, with every connection."""

    async def nothing(connection: Connection, request: Request) -> None:
        raise AssertionError("the test gave the server no script")

    state = LyingServer(nothing)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await state._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return None
    lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        if line:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(lines[0].split(" ")[1], headers, json.loads(body) if body else {}, body)


# What a script can do -----------------------------------------------------------------------------------------------


def body(content: bytes | Json, *, status: int = 200, kind: str = "application/json", **headers: str) -> Act:
    """Answer with a whole body. Header names take _ for -."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def act(connection: Connection, request: Request) -> None:
        await connection.send(_head(status, kind, headers, len(data)) + data)

    return act


def half_body(content: Json) -> Act:
    """A 200 that promises all of it, sends half and closes."""
    data = json.dumps(content).encode()

    async def act(connection: Connection, request: Request) -> None:
        await connection.send(_head(200, "application/json", {}, len(data)) + data[: len(data) // 2])
        connection.close()

    return act


def sse(frames: Sequence[bytes], *, end: str = "clean", kind: str = "text/event-stream", **headers: str) -> Act:
    """Answer with a stream; `end` is clean, reset, cut (FIN without the last chunk) or hang."""

    async def act(connection: Connection, request: Request) -> None:
        await connection.send(_head(200, kind, {**headers, "transfer_encoding": "chunked"}, None))
        for frame in frames:
            await connection.send(b"%x\r\n" % len(frame) + frame + b"\r\n")
        if end == "clean":
            await connection.send(b"0\r\n\r\n")
        elif end == "hang":
            await until_gone(connection)
        else:
            await asyncio.sleep(0.05)  # let the client read what was sent; a reset throws away what it has not read
            connection.reset() if end == "reset" else connection.close()

    return act


async def until_gone(connection: Connection) -> None:
    """Say nothing until the client closes, then report it as gone."""
    if await connection.reader.read(1) == b"":
        raise ConnectionResetError


async def hang(connection: Connection, request: Request) -> None:
    """Say nothing at all."""
    await until_gone(connection)


async def reset(connection: Connection, request: Request) -> None:
    """A TCP reset after the request was read, before the status line."""
    connection.reset()


async def not_http(connection: Connection, request: Request) -> None:
    """Something that is not HTTP."""
    await connection.send(b"220 mail.example ESMTP ready\r\n\r\n")
    connection.close()


def _head(status: int, kind: str, headers: Mapping[str, str], length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# What honest answers look like --------------------------------------------------------------------------------------

STOPS = {
    "anthropic": {"complete": "end_turn", "truncated": "max_tokens", "refused": "refusal", "unknown": "tired"},
    "openai": {"complete": "stop", "truncated": "length", "refused": "content_filter", "unknown": "tired"},
}
REQUEST_ID = {"anthropic": "request_id", "openai": "x_request_id"}


def usage(dialect: str, *, output: int = 5) -> Json:
    """10 prompt tokens at full price, 3 read from the cache, 2 written, `output` generated of which 1 was thinking."""
    if dialect == "anthropic":
        return {
            "input_tokens": 10,
            "cache_read_input_tokens": 3,
            "cache_creation_input_tokens": 2,
            "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": 1},
            "service_tier": "standard",
        }
    return {
        "prompt_tokens": 15,
        "completion_tokens": output,
        "total_tokens": 15 + output,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


def message(dialect: str, text: str, *, stop: str | None = "complete", **changed: Any) -> Json:
    """A whole answer; `changed` replaces top-level keys, None removes them."""
    reason = STOPS[dialect].get(stop, stop) if stop else None
    if dialect == "anthropic":
        answer: Json = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "served-model",
            "content": [{"type": "text", "text": text}],
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage(dialect),
        }
    else:
        answer = {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "served-model",
            "service_tier": "standard",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": usage(dialect),
        }
    answer.update(changed)
    return {key: value for key, value in answer.items() if value is not ...}


def frames(dialect: str, pieces: Sequence[str], *, stop: str = "complete", last_usage: Any = None) -> list[bytes]:
    """The events of a streamed answer, the first `len - 2` of which carry or precede text."""
    reason = STOPS[dialect].get(stop, stop)
    if dialect == "anthropic":
        counts = usage(dialect) if last_usage is None else last_usage
        start = message(dialect, "", stop=None, content=[], usage={**usage(dialect), "output_tokens": 1})
        return [
            event("message_start", {"type": "message_start", "message": start}),
            event("ping", {"type": "ping"}),
            event(
                "content_block_start",
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            ),
            *(
                event(
                    "content_block_delta",
                    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}},
                )
                for piece in pieces
            ),
            event("content_block_stop", {"type": "content_block_stop", "index": 0}),
            event(
                "message_delta",
                {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": counts},
            ),
            event("message_stop", {"type": "message_stop"}),
        ]

    def chunk(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "served-model",
            "service_tier": "standard",
            "choices": [choice],
        }

    counts = usage(dialect) if last_usage is None else last_usage
    return [
        event(None, chunk({"role": "assistant", "content": ""})),
        *(event(None, chunk({"content": piece})) for piece in pieces),
        event(None, chunk({}, reason)),
        event(None, {**chunk({}), "choices": [], "usage": counts}),
        b"data: [DONE]\n\n",
    ]


def event(name: str | None, data: Json) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def error(dialect: str, kind: str, *, code: str | None = None, text: str = "no") -> Json:
    """An error body."""
    if dialect == "anthropic":
        details = {"details": {"error_code": code}} if code else {}
        return {"type": "error", "error": {"type": kind, "message": text, **details}, "request_id": "req_body"}
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


def error_event(dialect: str, kind: str) -> bytes:
    """An error inside a stream that began with 200."""
    return event("error" if dialect == "anthropic" else None, error(dialect, kind))
