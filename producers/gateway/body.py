"""Reads a request's body with bounds: size while it comes, depth before it is parsed in full."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from starlette.requests import Request

from producers.gateway.errors import Kind, Refusal

MAX_BYTES: Final = 32 * 1024 * 1024
MAX_DEPTH: Final = 200
"""No API of a provider nests deeper than a JSON Schema in a tool in a list; parsers recurse."""
_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)
_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character written as an escape; whether the other half follows is looked at only then."""


async def read_bounded(request: Request, limit: int = MAX_BYTES) -> bytes:
    """The body.

    Raises:
        Refusal: It is larger than `limit`, by its header or while it comes; or it is compressed.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(Kind.INVALID, "send the body uncompressed", param="content-encoding")
    said = request.headers.get("content-length", "0")
    if said.isascii() and said.isdigit() and int(said) > limit:
        raise too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
    return b"".join(parts)


def too_large(limit: int) -> Refusal:
    """The 413."""
    return Refusal(Kind.TOO_LARGE, f"the body has more than {limit:,} bytes; send less at once")


async def read_object(request: Request, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        Refusal: Too large, too deep, no JSON, or something else than an object.
    """
    return parse_object(await read_bounded(request, limit))


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        Refusal: Too deep, no JSON, or something else than an object.
    """
    if is_deep(text):
        raise Refusal(Kind.INVALID, f"the JSON is nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise Refusal(Kind.INVALID, f"this is not JSON: {str(exc)[:200]}") from None
    if not isinstance(value, dict):
        raise Refusal(Kind.INVALID, "this must be a JSON object")
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refusal(Kind.INVALID, "the JSON holds a lone surrogate; it is not valid Unicode") from None
    return value


def is_deep(text: bytes) -> bool:
    """Whether brackets outside of strings nest deeper than `MAX_DEPTH`; one pass, no recursion."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in _BRACKETS.finditer(text):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
