"""Finished rows -> Parquet. Columns keep the types of the input; a column of mixed JSON values becomes JSON text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import pyarrow
from pyarrow import parquet

from producers.inputs import Survey
from producers.outputs import ABOUT, ANSWER, Finished, cell_text

_GROUP_ROWS: Final = 5000
_GROUP_BYTES: Final = 16 * 1024 * 1024
_MONEY: Final = pyarrow.decimal128(38, 12)
_ABOUT_TYPES: Final = {
    "_attempts": pyarrow.int32(),
    "_usd": _MONEY,
    "_tokens_in": pyarrow.int64(),
    "_tokens_out": pyarrow.int64(),
}


@dataclass(frozen=True)
class _Column:
    """A column of the input: its type, and how a value gets into it."""

    type: pyarrow.DataType
    value: Callable[[Any], Any]


class ParquetWriter:
    """Collects rows into row groups of up to 5,000 rows or about 16 MB of text."""

    def __init__(self, file: IO[bytes], survey: Survey) -> None:
        self._columns = {name: _column(survey.types.get(name), kinds) for name, kinds in survey.columns.items()}
        self._schema = pyarrow.schema(
            [
                *(pyarrow.field(name, column.type) for name, column in self._columns.items()),
                pyarrow.field(ANSWER, pyarrow.string()),
                *(pyarrow.field(name, _ABOUT_TYPES.get(name, pyarrow.string())) for name in ABOUT),
            ]
        )
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._waiting: list[Finished] = []
        self._size = 0

    def write(self, rows: Sequence[Finished]) -> None:
        self._waiting.extend(rows)
        for row in rows:
            self._size += sum(len(v) for v in (row.answer, *row.fields.values()) if isinstance(v, str | bytes))
        if len(self._waiting) >= _GROUP_ROWS or self._size >= _GROUP_BYTES:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows, self._waiting, self._size = self._waiting, [], 0
        self._writer.write_table(pyarrow.Table.from_pylist([self._record(row) for row in rows], schema=self._schema))

    def _record(self, row: Finished) -> dict[str, Any]:
        about = zip(ABOUT, row.about(), strict=True)
        return {
            **{name: column.value(row.fields.get(name)) for name, column in self._columns.items()},
            ANSWER: _text(row.answer),
            **{name: value if name in _ABOUT_TYPES else _text(value) for name, value in about},
        }


def _column(own: pyarrow.DataType | None, kinds: set[str]) -> _Column:
    """The type of a column: the input's own, else the one kind of value that was seen in it, else text."""
    if own is not None:
        return _Column(own, lambda value: value)
    if kinds == {"bool"}:
        return _Column(pyarrow.bool_(), lambda value: value)
    if kinds and kinds <= {"int", "long"}:
        return _Column(pyarrow.int64(), lambda value: value)
    # No float64 holds a `long` exactly: such a mixture stays text.
    if kinds and kinds <= {"int", "float"}:
        return _Column(pyarrow.float64(), lambda value: None if value is None else float(value))
    return _Column(pyarrow.string(), _text)


def _text(value: Any) -> str | None:
    """Text for a string column; a lone surrogate, which UTF-8 cannot carry, becomes a question mark."""
    if value is None:
        return None
    return cell_text(value).encode("utf-8", "replace").decode()
