"""The seam between the batch lane and the providers: what a batch is made of, how it is, what came of its rows.

As `base.py`, an adapter translates and classifies; it never retries, waits or stores.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Protocol

from waybill.errors import ProviderError
from workers.providers.base import Answer, Call

SKEW_S: Final = 120.0
"""So much may a provider's clock differ from ours when a batch is looked for by when it was made."""
_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(\d{1,5})\Z")


def row_name(job_id: str, number: int) -> str:
    """`custom_id` of an attempt: at most 42 characters of [0-9a-f-]."""
    return f"{job_id}-{number}"


def read_name(name: object) -> tuple[str, int] | None:
    """The inverse of `row_name`; None for a name that is none of ours."""
    found = _NAME.match(name) if isinstance(name, str) else None
    return (found.group(1), int(found.group(2))) if found else None


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it is sent: its name and the request as JSON."""

    name: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """How a batch is.

    Attributes:
        state: `working`; `ended`: its results can be read; `refused`: it failed as a whole and none of its rows was done.
        failure: Of a refused one.
        is_full: Refused because too much is enqueued already; the same batch may be sent later.
    """

    state: Literal["working", "ended", "refused"]
    failure: ProviderError | None = None
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one row: an answer, or the failure that takes its place."""

    name: str
    outcome: Literal["succeeded", "errored", "expired", "cancelled"]
    answer: Answer | None = None
    failure: ProviderError | None = None


class BatchProvider(Protocol):
    """The batch endpoints of one account. All methods raise as `Provider.call` does."""

    most_rows: int
    most_bytes: int

    def line(self, name: str, call: Call) -> Line:
        """A row's request. Pure."""
        ...

    async def create(self, marker: str, lines: Sequence[Line], *, timeout_s: float) -> str:
        """Make a batch; the provider's id of it."""
        ...

    async def find(
        self, marker: str, names: Collection[str], *, rows: int, since: datetime, not_ours: Collection[str]
    ) -> str | None:
        """Look for a batch that may have been made under `marker`, or with these rows; None = it is not there."""
        ...

    async def look(self, provider_id: str) -> Look:
        """How it is."""
        ...

    def results(self, provider_id: str, calls: Mapping[str, Call]) -> AsyncIterator[Row]:
        """What came of its rows, in any order. Rows that are not in `calls` come without being read."""
        ...

    async def cancel(self, provider_id: str) -> None:
        """Ask the provider to stop it; one that has ended is left alone."""
        ...

    async def forget(self, provider_id: str) -> None:
        """Delete what the provider keeps of texts, where it can be deleted."""
        ...


def json_lines(content: bytes) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a line that is none is left out, so that its row counts as missing."""
    found = []
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
