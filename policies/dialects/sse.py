"""Server-sent events as bytes: cutting a stream into frames, reading one, writing one."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from policies.dialects.neutral import dumps

_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
DONE: Final = b"data: [DONE]\n\n"
MAX_FRAME: Final = 16 * 1024 * 1024
"""A frame longer than this is no event of an answer."""


class Frames:
    """Cuts bytes into whole frames, each with its blank line, none changed."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now."""
        data = self._rest + data
        frames, start = [], 0
        for end in _END.finditer(data):
            frames.append(data[start : end.end()])
            start = end.end()
        self._rest = data[start:]
        if len(self._rest) > MAX_FRAME:
            raise ValueError(f"an event of more than {MAX_FRAME:,} bytes")
        return frames

    @property
    def rest(self) -> bytes:
        """What came after the last whole frame."""
        return self._rest


def data_of(frame: bytes) -> bytes | None:
    """The frame's data; None for a comment, or an event without any."""
    lines = [line[5:].removeprefix(b" ") for line in frame.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def event_of(frame: bytes) -> Any:
    """The frame's data as JSON; None for a comment and for [DONE].

    Raises:
        ValueError: It is not JSON.
    """
    data = data_of(frame)
    return None if data is None or data == b"[DONE]" else json.loads(data)


def frame(event: dict[str, Any], name: str | None = None) -> bytes:
    """An event as a frame; with a name for the dialects that have named events."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + dumps(event).encode() + b"\n\n"
