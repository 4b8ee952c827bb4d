"""Parquet as input, read batch by batch. pyarrow is loaded only when this is needed (it takes half a second)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import parquet

from producers.inputs import MAX_ROW_BYTES, TOO_LONG, Row, Survey
from producers.refusal import Refused

_BATCH_ROWS = 500


@dataclass(frozen=True)
class ParquetFile:
    """Rows of a Parquet file with their own types."""

    path: Path

    def rows(self) -> Generator[Row]:
        """All rows, in order."""
        with self._open() as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for fields in batch.to_pylist():
                    long = any(isinstance(v, str | bytes) and len(v) > MAX_ROW_BYTES for v in fields.values())
                    yield Row(number, f"row {number + 1}", fields, TOO_LONG if long else None)
                    number += 1

    def survey(self, limit: int | None) -> Survey:
        """Number of rows and the columns, from the file's footer."""
        with self._open() as file:
            rows = file.metadata.num_rows
            schema = file.schema_arrow
        columns: dict[str, set[str]] = {name: set() for name in schema.names}
        if len(columns) < len(schema.names):
            raise Refused(f"INPUT {self.path}: has two columns of the same name; rename one")
        types = {column.name: column.type for column in schema}
        return Survey(rows if limit is None else min(rows, limit), columns, types=types)

    def _open(self) -> parquet.ParquetFile:
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, ValueError) as exc:
            line = str(exc).splitlines()[0]
            raise Refused(f"INPUT {self.path}: cannot be read as Parquet: {line}") from None
