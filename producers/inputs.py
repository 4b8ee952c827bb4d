"""INPUT of a batch -> rows, read lazily and as often as wanted: a folder, .jsonl/.ndjson, .csv or .parquet.

A row that cannot be read becomes a row with a `problem` and never stops the rest. Memory does not grow with the number
of rows; a folder costs the names of one directory at a time.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from producers.refusal import Refused

if TYPE_CHECKING:
    import pyarrow

MAX_ROW_BYTES: Final = 10 * 1024 * 1024
"""A document, line or cell longer than this is not read: one such row as a prompt would be 2.5 million tokens."""
MAX_COLUMNS: Final = 2000
TOO_LONG: Final = f"is longer than {MAX_ROW_BYTES // 1024 // 1024} MB; split the document"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    Attributes:
        number: Position in the input, from 0.
        place: Where a person finds it: "line 17", "row 3", "letters/a.txt".
        fields: The columns; as far as known where there is a problem.
        problem: Why it cannot be used, None when it can.
    """

    number: int
    place: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(slots=True)
class Survey:
    """What one look over the whole input tells.

    Attributes:
        rows: How many rows there are, unreadable ones included.
        columns: Every column with the kinds of value seen in it (`bool int long float str other`;
            `long` = a whole number that a float cannot hold exactly), in order of appearance.
        first_problem: The first unreadable row, for the message when none is readable.
        types: The columns' own Arrow types, where the input has such.
    """

    rows: int = 0
    columns: dict[str, set[str]] = field(default_factory=dict)
    first_problem: str | None = None
    types: Mapping[str, pyarrow.DataType] = field(default_factory=dict)

    def note(self, row: Row) -> None:
        """Count a row in."""
        self.rows += 1
        if row.problem is not None and self.first_problem is None:
            self.first_problem = f"{row.place} {row.problem}"
        for name, value in row.fields.items():
            kinds = self.columns.setdefault(name, set())
            if value is not None:
                kinds.add(_kind(value))


class Source(Protocol):
    """An input that can be read again from the start."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    def rows(self) -> Generator[Row]:
        """All rows, in order. Close it, or read it to its end: it holds a file open."""
        ...

    def survey(self, limit: int | None) -> Survey:
        """Number of rows (at most `limit`) and their columns."""
        ...


def open_source(path: Path) -> Source:
    """The source for a path.

    Raises:
        Refused: There is no such file, it cannot be read, or it has a form we do not know.
    """
    if path.is_dir():
        from producers.folder import Folder

        return Folder(path)
    if not path.exists():
        raise Refused(f"INPUT {path}: there is no such file or folder")
    if not path.is_file():
        raise Refused(f"INPUT {path}: is not a regular file; it is read twice, so write it to a file first")
    readers: dict[str, type[JsonLines | CsvFile]] = {".jsonl": JsonLines, ".ndjson": JsonLines, ".csv": CsvFile}
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as exc:
        raise Refused(f"INPUT {path}: cannot be read: {exc.strerror}") from None
    if suffix == ".parquet":
        from producers.parquet import ParquetFile

        return ParquetFile(path)
    if suffix not in readers:
        raise Refused(
            f"INPUT {path}: {suffix or 'a file without an extension'} is not supported; give a folder of text files,"
            " or a .jsonl, .ndjson, .csv or .parquet file"
        )
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refused(f"INPUT {path}: is UTF-16; write it as UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
    return readers[suffix](path)


@contextmanager
def reading(source: Source, limit: int | None) -> Iterator[Iterator[Row]]:
    """The first rows of a source, for the length of a block."""
    rows = source.rows()
    try:
        yield itertools.islice(rows, limit)
    finally:
        # A thread that we were cancelled out of may be reading still; then the file is closed when it lets go.
        with suppress(ValueError):
            rows.close()


def take(rows: Iterator[Row], count: int, max_bytes: int) -> list[Row]:
    """The next rows: `count` of them, or fewer once their texts pass `max_bytes`; [] at the end."""
    taken: list[Row] = []
    size = 0
    for row in itertools.islice(rows, count):
        taken.append(row)
        size += sum(len(value) for value in row.fields.values() if isinstance(value, str | bytes))
        if size >= max_bytes:
            break
    return taken


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line. Empty lines do not count."""

    path: Path

    def rows(self) -> Generator[Row]:
        """All rows, in order."""
        number = 0
        with self.path.open("rb") as file:
            for line_number in itertools.count(1):
                line = file.readline(MAX_ROW_BYTES + 1)
                if not line:
                    return
                place = f"line {line_number}"
                if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                        pass
                    yield Row(number, place, problem=TOO_LONG)
                elif not line.strip():
                    continue
                else:
                    yield _json_row(number, place, line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line)
                number += 1

    def survey(self, limit: int | None) -> Survey:
        """Number of rows and their columns."""
        return _surveyed(self, limit)


def _json_row(number: int, place: str, line: bytes) -> Row:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as exc:
        return Row(number, place, problem=f"is not UTF-8 (byte 0x{line[exc.start]:02x} at {exc.start})")
    except RecursionError:
        return Row(number, place, problem="is nested too deeply")
    except ValueError as exc:
        return Row(number, place, problem=f"is not JSON: {str(exc).splitlines()[0]}")
    if not isinstance(value, dict):
        return Row(number, place, problem=f"is {_JSON_NAMES.get(type(value), 'a number')}, not an object with fields")
    return Row(number, place, value)


_JSON_NAMES = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class CsvFile:
    """Comma-separated, with a header; UTF-8, with or without a byte order mark. All values are text."""

    path: Path

    def rows(self) -> Generator[Row]:
        """All rows, in order. A record with another number of cells than the header is a problem of that row."""
        csv.field_size_limit(MAX_ROW_BYTES)
        # Bytes that are not UTF-8 come through as lone surrogates, so that they spoil their own record only.
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = self._header(reader)
            number = 0
            while True:
                place = f"line {reader.line_num + 1}"
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as exc:
                    problem = f"is not CSV ({exc})"
                    if "field larger" in str(exc):
                        problem = (
                            f"has a cell that {TOO_LONG}, or close its quote (lines to {reader.line_num} are lost)"
                        )
                    elif "unexpected end" in str(exc):
                        problem = "opens a quote that is never closed: the rest of the file is lost"
                    yield Row(number, place, problem=problem)
                else:
                    if not cells:
                        continue
                    yield _csv_row(number, place, header, cells)
                number += 1

    def _header(self, reader: Any) -> list[str]:
        try:
            header: list[str] = next(reader, [])
        except csv.Error as exc:
            raise Refused(f"INPUT {self.path}: the header is not CSV ({exc})") from None
        if not header or not all(header):
            raise Refused(f"INPUT {self.path}: the first line must name every column, separated by commas")
        if any(_bad_byte(name) for name in header):
            raise Refused(f"INPUT {self.path}: the header is not UTF-8; convert the file to UTF-8")
        for name in header:
            if header.count(name) > 1:
                raise Refused(f"INPUT {self.path}: the header names the column {name!r} twice; rename one")
        return header

    def survey(self, limit: int | None) -> Survey:
        """Number of rows and their columns, also when there is no row."""
        found = _surveyed(self, limit)
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = self._header(csv.reader(file, strict=True))
        return Survey(found.rows, {name: {"str"} for name in header}, found.first_problem)


def _csv_row(number: int, place: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(
            number,
            place,
            {name: _clean(cell) for name, cell in zip(header, cells, strict=False)},
            f"has {len(cells)} cells, the header has {len(header)}",
        )
    bad = next((found for cell in cells if (found := _bad_byte(cell))), None)
    if bad is not None:
        fields = {name: _clean(cell) for name, cell in zip(header, cells, strict=True)}
        return Row(number, place, fields, f"is not UTF-8 (byte {bad})")
    return Row(number, place, dict(zip(header, cells, strict=True)))


def _bad_byte(text: str) -> str | None:
    """The first byte that was not UTF-8, as 0x.."""
    if text.isascii():
        return None
    return next((f"0x{ord(char) - 0xDC00:02x}" for char in text if "\udc80" <= char <= "\udcff"), None)


def _clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _surveyed(source: Source, limit: int | None) -> Survey:
    survey = Survey()
    with reading(source, limit) as rows:
        for row in rows:
            survey.note(row)
            if len(survey.columns) > MAX_COLUMNS:
                raise Refused(
                    f"INPUT {source.path}: has more than {MAX_COLUMNS} columns by {row.place}; put varying names into a"
                    " field of their own"
                )
    return survey


def _kind(value: Any) -> str:
    # bool before int: True is an int in Python.
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= _EXACT_IN_FLOAT else "long" if -_INT64 <= value < _INT64 else "other"
    return "float" if isinstance(value, float) else "str" if isinstance(value, str) else "other"


_EXACT_IN_FLOAT = 2**53
_INT64 = 2**63
