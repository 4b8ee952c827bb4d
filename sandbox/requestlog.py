"""The request log: one line of JSON for every request, whole in a file if one is given, the latest in memory.

No prompt, answer or key is in it: the text is a SHA-256, the account a name derived from the key.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pydantic_core import to_json


class RequestLog:
    """Lines numbered from 1 on; memory keeps the last `keep`."""

    def __init__(self, path: Path | None = None, *, keep: int = 50_000) -> None:
        self._lines: deque[bytes] = deque(maxlen=keep)
        self._count = 0
        # Unbuffered: whatever kills the process, every line it logged is in the file.
        self._file: IO[bytes] | None = path.open("ab", buffering=0) if path is not None else None

    def add(self, entry: dict[str, Any]) -> None:
        """Number one entry and keep it."""
        self._count += 1
        line = to_json({"seq": self._count, **entry}) + b"\n"
        self._lines.append(line)
        if self._file is not None:
            self._file.write(line)

    def since(self, seq: int, limit: int | None = None) -> bytes:
        """Return the lines with a number above `seq` that memory still has, oldest first."""
        first = self._count - len(self._lines)
        start = max(0, seq - first)
        stop = len(self._lines) if limit is None else min(len(self._lines), start + limit)
        return b"".join(islice(self._lines, start, stop)) if start < stop else b""

    def clear(self) -> None:
        """Forget the lines in memory and count from 1 again; the file is only ever added to."""
        self._lines.clear()
        self._count = 0

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def count(self) -> int:
        """How many requests were logged since the start or the last reset."""
        return self._count
