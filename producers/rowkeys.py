"""Which job is a row's: hashes of what is asked, by which the same command finds its jobs again.

A key covers everything that changes an answer (prompt as rendered, system, context, schema, labels, model, limits) and nothing
that does not (path of the input, priority, deadline). Rows that are the same in all of it are told apart by their
occurrence, counted in a scratch file on disk: a count for each of ten million rows must not sit in memory.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def digest(*parts: object) -> str:
    """Hex SHA-256 of JSON values; equal only for equal parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def work_digest(job: Mapping[str, Any]) -> str:
    """Hash of what all rows of a run have in common.

    Args:
        job: The fields of a Job that are the same for every row.
    """
    return digest(
        *(job.get(name) for name in ("tenant", "intent", "system", "json_schema", "model", "max_output_tokens")),
        # The order of labels is part of the prompt.
        list(job.get("labels") or ()),
        # Left out where there is none: runs from before there was one go on where they were.
        *([{"context": job["context"]}] if job.get("context") else []),
        *([{"quality": job["quality"]}] if job.get("quality") else []),
    )


def row_digest(work: str, prompt: str, *, row_id: str | None, local_only: bool, generation: str) -> str:
    """Hash of one row's request.

    Args:
        work: From `work_digest`.
        prompt: As rendered.
        row_id: Value of the id column, None without one.
        local_only: Whether it must stay local.
        generation: "" for the first run of a command; later ones, begun with --fresh, share nothing with it.
    """
    return digest("row", work, prompt, row_id, local_only, generation)


@dataclass(slots=True)
class Occurrences:
    """Counts how often a digest came before. One per pass over the input; close it."""

    _database: sqlite3.Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # An empty name is a temporary database: in memory up to cache_size (4 MB), on disk beyond, gone when closed.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("pragma cache_size = -4096")
        self._database.execute("pragma journal_mode = off")
        self._database.execute("create table seen (digest blob primary key, times integer not null) without rowid")

    def number(self, digests: Sequence[str]) -> list[int]:
        """For each: how often it came before (0 the first time)."""
        numbers = []
        for one in digests:
            (times,) = self._database.execute(
                "insert into seen values (?, 1) on conflict (digest) do update set times = times + 1 returning times",
                (bytes.fromhex(one)[:16],),
            ).fetchone()
            numbers.append(times - 1)
        return numbers

    def close(self) -> None:
        """Remove the scratch file."""
        self._database.close()


def idempotency_key(row: str, occurrence: int) -> str:
    """The key of a row's job."""
    return f"row-{row}-{occurrence}"
