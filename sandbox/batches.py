"""Batches of both providers: when their rows are done, how each ends, what they cost. The wire is in batchapi.py.

A row is done at a seeded moment within `turnaround_s` of the sandbox's clock (POST /admin/clock moves it), answered like any
other request at half the price. Faults fall on rows (endpoint `batch`): an error makes the row `errored`, `batch_expired`
leaves it undone, so that its batch ends only after 24 hours and keeps what was done until then. Nothing of a row can be seen
before its whole batch has ended. What was not done costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandbox.exchange import ApiError, Call, Dialect, Json
from sandbox.faults import Rule

WINDOW_NS = 24 * 3600 * 10**9
_SECOND_NS = 10**9
VALIDATING_NS = _SECOND_NS // 5


@dataclass(frozen=True, slots=True)
class Pace:
    """How the batch endpoints behave; POST /admin/batches changes it for batches made afterwards.

    Attributes:
        turnaround_s: Until a batch without expired rows has ended.
        enqueued_tokens: OpenAI: prompt tokens of one model that may wait in batches at a time.
        queued_requests: Anthropic: requests that may wait in batches at a time.
    """

    turnaround_s: float = 5.0
    enqueued_tokens: int = 2_000_000_000
    queued_requests: int = 100_000


@dataclass(slots=True)
class Row:
    """One request of a batch: either `call` or `error` is set when it is made."""

    custom_id: str
    call: Call | None
    error: ApiError | None = None
    rule: Rule | None = None
    # done_ns: when it is done, None = never within the window.
    done_ns: int | None = 0
    # outcome: "", then succeeded, errored, expired or canceled. line: as the results file has it.
    outcome: str = ""
    line: Json = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """One batch. `ended_ns` is set when the last row has its outcome."""

    id: str
    account: str
    dialect: Dialect
    rows: list[Row]
    created_ns: int
    ends_ns: int
    visible_ns: int = 0
    cancel_ns: int | None = None
    ended_ns: int | None = None
    # problems: OpenAI found the input file unusable; the batch fails and no row is done.
    problems: list[Json] = field(default_factory=list)
    metadata: Json | None = None
    input_file_id: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def provider(self) -> str:
        """Whose dialect it speaks."""
        return self.dialect.provider

    @property
    def expires_ns(self) -> int:
        """24 hours after it was made."""
        return self.created_ns + WINDOW_NS

    @property
    def waits(self) -> bool:
        """Whether its rows count against what may be enqueued."""
        return self.ended_ns is None and not self.problems

    def count(self, *outcomes: str) -> int:
        """Rows with one of these outcomes; nothing but `""` is known before the end."""
        if self.ended_ns is None:
            return len(self.rows) if "" in outcomes else 0
        return sum(row.outcome in outcomes for row in self.rows)

    def results(self, seed: int) -> list[Row]:
        """The rows in the order of the results file, which is not the order of the requests."""
        shuffled = list(self.rows)
        random.Random(f"{seed}:{self.id}").shuffle(shuffled)
        return shuffled


class Batches:
    """All batches, in the order they were made."""

    def __init__(self, seed: int, finish: Callable[[Batch, Row, str], None]) -> None:
        """`finish` gives a row its outcome and line, and charges for it."""
        self.pace = Pace()
        self._seed = seed
        self._finish = finish
        self._batches: dict[str, Batch] = {}

    def plan(self, rows: Iterable[Row], batch_id: str, now_ns: int) -> int:
        """Give rows the moments at which they are done; returns when their batch ends."""
        turnaround_ns = int(self.pace.turnaround_s * _SECOND_NS)
        end_ns = now_ns + turnaround_ns
        chance = random.Random(f"{self._seed}:{batch_id}")
        for row in rows:
            row.done_ns = now_ns + int(turnaround_ns * chance.random())
            if row.rule is not None and row.rule.kind.name == "batch_expired":
                row.done_ns, end_ns = None, now_ns + WINDOW_NS
        return end_ns

    def add(self, batch: Batch) -> Batch:
        """Take a batch in."""
        self._batches[batch.id] = batch
        return batch

    def cancel(self, batch: Batch, now_ns: int) -> None:
        """Stop a batch: what is done by now stays done and is charged."""
        self.look(batch, now_ns)
        if batch.waits and batch.cancel_ns is None:
            batch.cancel_ns = now_ns

    def look(self, batch: Batch, now_ns: int) -> Batch:
        """Bring a batch up to the present."""
        end_ns = batch.ends_ns if batch.cancel_ns is None else min(batch.ends_ns, batch.cancel_ns + _SECOND_NS)
        if batch.ended_ns is not None or batch.problems or now_ns < end_ns:
            return batch
        left = "expired" if batch.cancel_ns is None else "canceled"
        until_ns = end_ns if batch.cancel_ns is None else batch.cancel_ns
        batch.ended_ns = end_ns
        for row in batch.rows:
            is_done = row.done_ns is not None and row.done_ns <= until_ns
            self._finish(batch, row, "done" if is_done else left)
        return batch

    def look_at_all(self, now_ns: int) -> None:
        """Bring every batch up to the present: before a bill or log is shown."""
        for batch in self._batches.values():
            self.look(batch, now_ns)

    def of(self, account: str, provider: str, now_ns: int) -> list[Batch]:
        """An account's batches that can be seen, newest first."""
        found = [
            self.look(batch, now_ns)
            for batch in self._batches.values()
            if batch.account == account and batch.provider == provider and batch.visible_ns <= now_ns
        ]
        return found[::-1]

    def find(self, account: str, provider: str, batch_id: str, now_ns: int) -> Batch | None:
        """One batch of an account; None where it is not (yet) to be seen."""
        batch = self._batches.get(batch_id)
        if batch is None or (batch.account, batch.provider) != (account, provider) or now_ns < batch.visible_ns:
            return None
        return self.look(batch, now_ns)

    def waiting(self, account: str, provider: str, now_ns: int, model: str | None = None) -> tuple[int, int]:
        """Requests and prompt tokens of an account (and model) that wait in batches."""
        rows = [
            row
            for batch in self._batches.values()
            if batch.account == account and batch.provider == provider and self.look(batch, now_ns).waits
            for row in batch.rows
            if row.call is not None and (model is None or row.call.model.id == model)
        ]
        return len(rows), sum(row.call.prompt_tokens for row in rows if row.call is not None)

    def remove(self, batch_id: str) -> None:
        """Forget a batch and its results."""
        self._batches.pop(batch_id, None)

    def clear(self) -> None:
        """Forget all of them; the pace stays."""
        self._batches.clear()

    def __len__(self) -> int:
        return len(self._batches)
