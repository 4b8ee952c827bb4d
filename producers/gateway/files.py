"""OpenAI's Files API, as far as batches need it: upload, list, show, read, delete.

An upload goes to the ledger in pieces of 1 MiB while it comes. A file's name is kept and not judged: clients send `upload`,
or nothing. What a batch wrote has no bytes of its own; it is made from the ledger when it is read (batchlines.py).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from producers.gateway.batchlines import output_lines
from producers.gateway.body import too_large
from producers.gateway.errors import Kind, Refusal
from producers.gateway.principal import authorize
from waybill.ledger import batches

if TYPE_CHECKING:
    from waybill.ledger.engine import Ledger

MOST_FILE_BYTES: Final = 200 * 1024 * 1024
"""As at OpenAI."""
PART_BYTES: Final = 1024 * 1024
_MOST_FIELD_BYTES: Final = 10_000
_MOST_HEADER_BYTES: Final = 10_000


@dataclass(slots=True)
class _Form:
    """What a multipart body holds so far: small fields whole, the file as pieces that were not stored yet."""

    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    pieces: list[bytes] = field(default_factory=list)
    waiting: int = 0
    name: str = ""
    header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    header_bytes: int = 0

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": lambda data, start, end: self._add(data[start:end]),
            },
        )

    def _begin(self) -> None:
        self.name = ""

    def _add_header(self, which: int, data: bytes) -> None:
        self.header_bytes += len(data)
        if self.header_bytes > _MOST_HEADER_BYTES:
            raise Refusal(Kind.INVALID, "the form has too many or too long headers")
        self.header[which].extend(data)

    def _end_header(self) -> None:
        name, value = bytes(self.header[0]).lower(), bytes(self.header[1])
        self.header[0].clear()
        self.header[1].clear()
        if name == b"content-disposition":
            _, options = parse_options_header(value)
            self.name = options.get(b"name", b"").decode("utf-8", "replace")
            if self.name == "file":
                self.filename = options.get(b"filename", b"upload").decode("utf-8", "replace")
            else:
                self.fields.setdefault(self.name, bytearray())

    def _add(self, data: bytes) -> None:
        if self.name == "file":
            self.pieces.append(data)
            self.waiting += len(data)
            return
        found = self.fields.setdefault(self.name, bytearray())
        found.extend(data)
        if len(found) > _MOST_FIELD_BYTES or len(self.fields) > 20:
            raise Refusal(
                Kind.INVALID, "has a value that is too long, or too many fields", param=self.name[:50] or None
            )

    def take(self) -> bytes:
        """The waiting pieces as one."""
        whole = b"".join(self.pieces)
        self.pieces.clear()
        self.waiting = 0
        return whole


class FileWriter:
    """Stores bytes as they come; the file is there for others only after `end`."""

    def __init__(self, ledger: Ledger, tenant: str, purpose: str) -> None:
        self.id = f"file-{secrets.token_hex(12)}"
        self.bytes = 0
        self._ledger, self._tenant, self._purpose = ledger, tenant, purpose
        self._number = 0
        self._rest = b""

    async def begin(self, filename: str) -> None:
        """Make its row."""
        await self._ledger.fetch(
            batches.BEGIN_FILE,
            {
                "id": self.id,
                "tenant": self._tenant,
                "purpose": self._purpose,
                "filename": printable_name(filename),
                "batch": None,
            },
        )

    async def add(self, data: bytes) -> None:
        """Append.

        Raises:
            Refusal: It becomes too large.
        """
        self.bytes += len(data)
        if self.bytes > MOST_FILE_BYTES:
            raise too_large(MOST_FILE_BYTES)
        self._rest += data
        while len(self._rest) >= PART_BYTES:
            await self._store(self._rest[:PART_BYTES])
            self._rest = self._rest[PART_BYTES:]

    async def _store(self, body: bytes) -> None:
        await self._ledger.fetch(batches.ADD_PART, {"id": self.id, "number": self._number, "body": body})
        self._number += 1

    async def end(self) -> Any:
        """All of it is here. Returns its row."""
        if self._rest:
            await self._store(self._rest)
        return (await self._ledger.fetch(batches.END_FILE, {"id": self.id, "bytes": self.bytes}))[0]

    async def drop(self) -> None:
        """It will not be finished."""
        await self._ledger.fetch(batches.DROP_FILE, {"id": self.id})


def printable_name(name: str) -> str:
    """A file's name as it may be shown and stored."""
    clean = "".join(char if char.isprintable() else "_" for char in name[:200])
    return clean.encode("utf-8", "replace").decode() or "upload"


async def read_parts(ledger: Ledger, file_id: str) -> AsyncIterator[bytes]:
    """An upload's bytes, piece by piece."""
    number = 0
    while rows := await ledger.fetch(batches.PART, {"id": file_id, "number": number}):
        yield bytes(rows[0]["body"])
        number += 1


async def upload(request: Request) -> Response:
    """Take a file for a batch."""
    who = await authorize(request, "jobs")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise Refusal(Kind.INVALID, "send the file as multipart/form-data with the fields `purpose` and `file`")
    form = _Form()
    parser = form.parser(boundary)
    writer = FileWriter(request.app.state.gateway.client.ledger, who.tenant, "batch")
    begun = False
    try:
        async for chunk in request.stream():
            if chunk:
                parser.write(chunk)
            if form.filename is not None and not begun:
                await writer.begin(form.filename)
                begun = True
            if form.waiting >= PART_BYTES:
                await writer.add(form.take())
        parser.finalize()
        _check_fields(form)
        if not begun:
            raise Refusal(Kind.INVALID, "is required", param="file")
        await writer.add(form.take())
        row = await writer.end()
    except BaseException as exc:
        if begun:
            await writer.drop()
        if isinstance(exc, FormParserError):
            raise Refusal(Kind.INVALID, f"this is not multipart/form-data: {exc}"[:300]) from None
        raise
    return JSONResponse(shown(row))


def _check_fields(form: _Form) -> None:
    for name in form.fields:
        if name != "purpose":
            raise Refusal(
                Kind.INVALID, "is not supported here; a file stays until it is deleted", param=name[:50] or None
            )
    purpose = bytes(form.fields.get("purpose", b"")).decode("utf-8", "replace")
    if purpose != "batch":
        raise Refusal(
            Kind.INVALID, f"must be `batch`, not {purpose[:50]!r}: other files are not kept here", param="purpose"
        )


def shown(row: Any) -> dict[str, Any]:
    """A file as OpenAI shows it."""
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": seconds(row["created_at"]),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


def seconds(at: datetime | None) -> int | None:
    """Seconds since the epoch, as OpenAI gives times."""
    return None if at is None else int(at.timestamp())


async def find_file(ledger: Ledger, tenant: str, file_id: str, *, param: str | None = None) -> Any:
    """A tenant's file.

    Raises:
        Refusal: It has none of this id.
    """
    params = {"tenant": tenant, "id": file_id, "purpose": None, "after": None, "limit": 1}
    rows = await ledger.fetch(batches.FILES, params) if "\0" not in file_id else []
    if not rows:
        raise Refusal(Kind.NOT_FOUND, f"No such File object: {file_id[:100]}", param=param or "id")
    return rows[0]


def limit_of(request: Request, most: int, default: int) -> int:
    """?limit.

    Raises:
        Refusal: It is no number in range.
    """
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 1 <= int(text) <= most):
        raise Refusal(Kind.INVALID, f"must be a number from 1 to {most}", param="limit")
    return int(text)


def cursor_of(request: Request, name: str) -> str | None:
    """?after and its like: an id, whatever it looks like."""
    text = request.query_params.get(name)
    if text is not None and ("\0" in text or len(text) > 100):
        raise Refusal(Kind.INVALID, "must be an id", param=name)
    return text or None


async def list_files(request: Request) -> Response:
    """The tenant's files, newest first."""
    who = await authorize(request, "jobs")
    limit = limit_of(request, 10_000, 10_000)
    params = {
        "tenant": who.tenant,
        "id": None,
        "purpose": cursor_of(request, "purpose"),
        "after": cursor_of(request, "after"),
        "limit": limit + 1,
    }
    rows = await request.app.state.gateway.client.ledger.fetch(batches.FILES, params)
    return JSONResponse(listing([shown(row) for row in rows], limit))


def listing(data: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page as OpenAI shows it, from one row more than it holds."""
    page = data[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(data) > limit,
    }


async def get_file(request: Request) -> Response:
    """One of them."""
    who = await authorize(request, "jobs")
    ledger = request.app.state.gateway.client.ledger
    return JSONResponse(shown(await find_file(ledger, who.tenant, request.path_params["id"])))


async def content(request: Request) -> Response:
    """Its bytes."""
    who = await authorize(request, "jobs")
    client = request.app.state.gateway.client
    row = await find_file(client.ledger, who.tenant, request.path_params["id"])
    if row["batch_id"] is None:
        return StreamingResponse(read_parts(client.ledger, row["id"]), media_type="application/octet-stream")
    params = {
        "tenant": who.tenant,
        "dialect": "openai",
        "id": row["batch_id"],
        "after": None,
        "before": None,
        "limit": 1,
    }
    found = await client.ledger.fetch(batches.LIST, params)
    if not found:
        raise Refusal(Kind.NOT_FOUND, "the batch that wrote this file is gone")
    wants_errors = row["id"] == found[0]["error_file_id"]
    lines = output_lines(client, found[0], wants_errors=wants_errors)
    return StreamingResponse(lines, media_type="application/octet-stream")


async def delete(request: Request) -> Response:
    """Delete a file; a batch that was made from it goes on."""
    who = await authorize(request, "jobs")
    file_id = request.path_params["id"]
    ledger = request.app.state.gateway.client.ledger
    await find_file(ledger, who.tenant, file_id)
    await ledger.fetch(batches.REMOVE_FILE, {"id": file_id, "tenant": who.tenant})
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


routes = [
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files", upload, methods=["POST"]),
    Route("/v1/files/{id}", get_file, methods=["GET"]),
    Route("/v1/files/{id}", delete, methods=["DELETE"]),
    Route("/v1/files/{id}/content", content, methods=["GET"]),
]
