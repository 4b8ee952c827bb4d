"""A folder of text files as rows `file`, `text`: sorted, recursive, and never out of the folder.

Hidden files and folders (names that begin with a dot) are passed over. Links that lead out of the folder, pipes,
sockets and devices are rows with a problem; they are never opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from producers.inputs import MAX_ROW_BYTES, TOO_LONG, Row, Survey
from producers.refusal import Refused


@dataclass(frozen=True)
class Folder:
    """Text files below `path`; `file` is the path from there, with forward slashes."""

    path: Path

    def rows(self) -> Generator[Row]:
        """All files, folder by folder, by name."""
        root = self.path.resolve()
        for number, path in enumerate(_files(root)):
            name = os.fsencode(path.relative_to(root)).decode("utf-8", "replace").replace(os.sep, "/")
            problem, text = _read(path, root)
            yield Row(number, name, {"file": name, "text": text}, problem)

    def survey(self, limit: int | None) -> Survey:
        """Number of files; nothing is opened."""
        count = 0
        try:
            for _ in _files(self.path.resolve()):
                count += 1
                if count == limit:
                    break
        except OSError as exc:
            raise Refused(f"INPUT {self.path}: {exc.filename or ''} cannot be read: {exc.strerror}") from None
        return Survey(count, {"file": {"str"}, "text": {"str"}})


def _files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in found:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _read(path: Path, root: Path) -> tuple[str | None, str | None]:
    """(problem, None) or (None, text)."""
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(root):
            return "is a link that leaves the folder; copy the file into it", None
        if target.is_dir():
            return "is a link to a folder; its files are rows already", None
        path = target
    try:
        # O_NOFOLLOW and O_NONBLOCK: what was a file a moment ago may be a link or a pipe by now.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}", None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file (a pipe, socket or device)", None
        if status.st_size > MAX_ROW_BYTES:
            return TOO_LONG, None
        content = file.read(MAX_ROW_BYTES + 1)
    if len(content) > MAX_ROW_BYTES:
        return TOO_LONG, None
    try:
        return None, content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        return f"is not UTF-8 text (byte 0x{content[exc.start]:02x} at {exc.start})", None
