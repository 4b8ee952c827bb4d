"""The rows between feeder and collector, in input order: the only thing that grows while a run goes on, and bounded.

Two bounds: on jobs under way, so that the fleet's queues stay short and Ctrl-C leaves little behind; and on rows that
wait for an earlier one, so that one slow row does not stop the others for a long while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Final

MAX_OPEN: Final = 2000
"""Jobs under way: at 200 jobs/s ten seconds of work."""
MAX_ROWS: Final = 20_000
"""Rows held in order, about 400 bytes each."""


@dataclass(slots=True)
class Slot:
    """One row that was read and not yet written.

    Attributes:
        mark: Hash of the row, to know it again when it is read for writing.
        job_id: Its job; None for an invalid row.
        problem: Why it is invalid; None otherwise.
        state: The job's final state; None while it goes on.
        was_final: Whether the job had ended before this command began: it costs nothing now.
    """

    mark: bytes
    job_id: str | None
    problem: str | None = None
    state: str | None = None
    was_final: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it can be written."""
        return self.job_id is None or self.state is not None


class Window:
    """Filled at one end by the feeder, emptied at the other by the collector. One event loop."""

    def __init__(self, *, max_open: int = MAX_OPEN, max_rows: int = MAX_ROWS) -> None:
        self._slots: deque[Slot] = deque()
        self._open: dict[str, Slot] = {}
        self._max_open, self._max_rows = max_open, max_rows
        self._room = asyncio.Event()
        self.filled = asyncio.Event()
        """Set when slots come in; the collector clears it."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def waiting(self) -> int:
        """Jobs under way."""
        return len(self._open)

    async def room_for(self, count: int) -> None:
        """Wait until `count` more rows are allowed; an empty window takes any number."""
        while self._slots and (len(self._open) + count > self._max_open or len(self._slots) + count > self._max_rows):
            self._room.clear()
            await self._room.wait()

    def add(self, slots: Iterable[Slot]) -> None:
        """Append rows, in input order."""
        for slot in slots:
            self._slots.append(slot)
            if slot.job_id is not None:
                self._open[slot.job_id] = slot
        self.filled.set()

    def open_ids(self) -> list[str]:
        """Jobs not known to be final, oldest first."""
        return list(self._open)

    def finish(self, job_id: str, state: str) -> Slot:
        """Note that a job has ended."""
        slot = self._open.pop(job_id)
        slot.state = state
        self._room.set()
        return slot

    def ready(self, count: int) -> list[Slot]:
        """Up to `count` rows at the head that can be written, without a gap."""
        return list(takewhile(lambda slot: slot.is_ready, islice(self._slots, count)))

    def head(self, count: int) -> list[Slot]:
        """Up to `count` rows at the head, ready or not."""
        return list(islice(self._slots, count))

    def drop(self, count: int) -> None:
        """Forget the first rows: they are written."""
        for _ in range(count):
            self._slots.popleft()
        self._room.set()
