"""Finished rows -> .jsonl, .csv or .parquet: the input's columns, `answer`, and what became of the job.

Rows are written to `OUTPUT.partial` beside the output, which takes the output's name when the last one is in. A run
that is interrupted leaves a valid partial file behind.

What an answer looks like: in JSONL an object where there is a schema, else text; in CSV and Parquet objects are JSON
text, because neither can hold what a schema may allow (unions, free keys). `_usd` is exact everywhere: a JSON number
with all its digits, text in CSV, decimal128(38, 12) in Parquet.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final, Protocol

from producers.inputs import Source, Survey
from producers.refusal import Refused
from producers.template import plain

ANSWER: Final = "answer"
ABOUT: Final = (
    "_status",
    "_error",
    "_model",
    "_lane",
    "_attempts",
    "_usd",
    "_tokens_in",
    "_tokens_out",
    "_reason",
    "_job",
)
FORMATS: Final = (".jsonl", ".ndjson", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Finished:
    """A row of the output.

    Attributes:
        fields: The input's columns.
        answer: Object, label or text; None where there is no answer.
        status: `succeeded`, `failed`, `dead` or `cancelled` as the ledger has it; `invalid` = never submitted.
        error: One line, None when it succeeded.
        model: Model that gave the answer, or that was tried last.
        lane: provider/model/service of the same.
        attempts: Calls made, failed ones included.
        usd: All attempts together; None when one has no known price.
        tokens_in: Prompt tokens of all attempts, cached ones included.
        tokens_out: Generated tokens of all attempts.
        reason: Why that model.
        job: The job's id, None for an invalid row.
    """

    fields: Mapping[str, Any]
    status: str
    answer: Any = None
    error: str | None = None
    model: str | None = None
    lane: str | None = None
    attempts: int = 0
    usd: Decimal | None = Decimal(0)
    tokens_in: int = 0
    tokens_out: int = 0
    reason: str | None = None
    job: str | None = None

    def about(self) -> tuple[Any, ...]:
        """The values of the columns `ABOUT`."""
        return (
            self.status,
            self.error,
            self.model,
            self.lane,
            self.attempts,
            self.usd,
            self.tokens_in,
            self.tokens_out,
            self.reason,
            self.job,
        )


class _Writer(Protocol):
    def write(self, rows: Sequence[Finished]) -> None: ...

    def end(self) -> None: ...


@dataclass(slots=True)
class Output:
    """The output of one run. `write` in input order, then `finish` or `keep`."""

    path: Path
    partial: Path
    _file: IO[bytes] = field(repr=False)
    _writer: _Writer = field(repr=False)

    def write(self, rows: Sequence[Finished]) -> None:
        """Append rows.

        Raises:
            Refused: The disk does not take them.
        """
        with self._told():
            self._writer.write(rows)
            self._file.flush()

    def finish(self) -> Path:
        """Give the file its name; returns it."""
        self._close()
        self.partial.replace(self.path)
        return self.path

    def keep(self) -> Path:
        """End the file as it is, under its `.partial` name; returns that."""
        self._close()
        return self.partial

    def _close(self) -> None:
        if self._file.closed:
            return
        with self._told():
            try:
                self._writer.end()
            finally:
                self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise Refused(
                f"OUTPUT {self.partial}: {exc.strerror or exc}; the answers are in the ledger: make room, then the same"
                " command goes on"
            ) from None


def check_columns(columns: Mapping[str, object], path: Path) -> None:
    """Refuse an input whose columns have names that the output needs."""
    taken = [name for name in (ANSWER, *ABOUT) if name in columns]
    if taken:
        raise Refused(
            f"INPUT {path}: has a column {taken[0]!r}, which the output needs for itself; rename it"
            + (f" (also {', '.join(taken[1:])})" if taken[1:] else "")
        )


def check_format(path: Path) -> None:
    """Refuse an output whose extension tells no format."""
    if path.suffix.lower() not in FORMATS:
        raise Refused(f"OUTPUT {path}: {path.suffix or 'no extension'} is no format; name it .jsonl, .csv or .parquet")


def open_output(path: Path, source: Source, survey: Survey, *, raw_csv: bool = False) -> Output:
    """Create `path`.partial and take it for ourselves.

    Args:
        path: Where the output goes in the end.
        source: For the types of Parquet inputs.
        survey: For the columns.
        raw_csv: Leave CSV cells as they are, also those that a spreadsheet would run as formulas.

    Raises:
        Refused: It cannot be written there, another run is writing it, or it would overwrite the input.
    """
    check_format(path)
    here, there = path.resolve(), source.path.resolve()
    if here == there or (there.is_dir() and here.is_relative_to(there)):
        raise Refused(f"OUTPUT {path}: lies in INPUT {source.path}, which it would change; write it elsewhere")
    if path.is_dir():
        raise Refused(f"OUTPUT {path}: is a folder; name a file in it")
    partial = path.with_name(path.name + ".partial")
    try:
        file = partial.open("ab")
    except FileNotFoundError:
        raise Refused(f"OUTPUT {path}: the folder {path.parent} does not exist; create it") from None
    except OSError as exc:
        raise Refused(f"OUTPUT {path}: cannot be written: {exc.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
    except OSError as exc:
        file.close()
        if isinstance(exc, BlockingIOError):
            raise Refused(f"OUTPUT {path}: another run is writing it now; wait for it, or name another file") from None
        raise Refused(f"OUTPUT {partial}: cannot be written: {exc.strerror}") from None
    suffix = path.suffix.lower()
    writer: _Writer
    if suffix == ".csv":
        writer = _Csv(file, tuple(survey.columns), raw=raw_csv)
    elif suffix == ".parquet":
        from producers.parquetout import ParquetWriter

        writer = ParquetWriter(file, survey)
    else:
        writer = _JsonLines(file)
    return Output(path, partial, file, writer)


@dataclass(slots=True)
class _JsonLines:
    file: IO[bytes]

    def write(self, rows: Sequence[Finished]) -> None:
        # A lone surrogate is written as its JSON escape, which is what it came from.
        self.file.write("".join(json_line(row) for row in rows).encode("utf-8", "backslashreplace"))

    def end(self) -> None:
        pass


def json_line(row: Finished) -> str:
    """One row as a line of JSON, decimals with all their digits."""
    items = [*row.fields.items(), (ANSWER, row.answer), *zip(ABOUT, row.about(), strict=True)]
    return "{" + ", ".join(f"{_json(name)}: {_json(value)}" for name, value in items) + "}\n"


def _json(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=plain)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, as browsers and most databases write it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(child) for child in value]
    return value


def cell_text(value: Any) -> str:
    """A value as text for formats without types: text as it is, nothing for None, else as JSON or `plain` has it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return _json(value) if isinstance(value, bool | int | float | list | tuple | dict) else plain(value)


_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*([eE][+-]?\d+)?%?")


def defused(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: `'` before = + - @ tab and CR, unless it is a plain number."""
    if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(cell):
        return "'" + cell
    return cell


class _Csv:
    def __init__(self, file: IO[bytes], columns: tuple[str, ...], *, raw: bool) -> None:
        self._file, self._columns = file, columns
        self._cell = cell_text if raw else lambda value: defused(cell_text(value))
        self._put([[self._cell(name) for name in (*columns, ANSWER, *ABOUT)]])

    def write(self, rows: Sequence[Finished]) -> None:
        self._put(
            [
                [
                    *(self._cell(row.fields.get(name)) for name in self._columns),
                    *map(self._cell, (row.answer, *row.about())),
                ]
                for row in rows
            ]
        )

    def _put(self, rows: Sequence[Sequence[str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        # No CSV can carry a lone surrogate: a question mark stands for it.
        self._file.write(text.getvalue().encode("utf-8", "replace"))

    def end(self) -> None:
        pass
