"""Writes settlements to the ledger in batches: many attempts that end within 10 ms are one statement.

A settlement is durable when `settle` returns. While Postgres is away it is kept and sent again; a row that Postgres
refuses is found by halving the batch, so that it cannot take its neighbours with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from decimal import Decimal

import psycopg

from waybill.contract import AttemptState, CostSource, JobState, Usage
from waybill.ledger import queries
from waybill.ledger.engine import Ledger

log = logging.getLogger("waybill.writer")

LINGER_S = 0.01
BATCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How an attempt ended and what becomes of its job.

    Attributes:
        job_id, token, number: Which attempt, under which lease.
        state: The job's next state: final, `routed` or `parked`.
        route_index: The candidate whose turn is next; None = the same.
        delay_s: For `parked`: seconds from now.
        uses: 1 when the attempt counts against the budget, else 0.
        error_code, error: Of the attempt, and of the job when it failed; ASCII-safe text.
        body: The answer as ASCII JSON, for `succeeded`.
        outcome, reason, detail: For the decision's row (detail: JSON text or None).
        attempt_state: How the call itself ended.
        usage: Of the call, None when there was none or it is unknown.
        cost_usd: None only with cost_source `unpriced`.
        flagship_usd, list_usd, uncached_usd: The same tokens on the flagship, on this model, and on this lane, nothing
            cached: what the savings stack subtracts from one another.
        cpu_s: CPU seconds of our own model; None elsewhere.
    """

    job_id: str
    token: int
    number: int
    state: JobState
    outcome: str
    reason: str
    attempt_state: AttemptState
    cost_usd: Decimal | None
    cost_source: CostSource
    uses: int = 1
    route_index: int | None = None
    delay_s: float = 0.0
    error_code: str | None = None
    error: str | None = None
    body: str | None = None
    detail: str | None = None
    first_token_s: float | None = None
    served_model: str | None = None
    request_id: str | None = None
    stop: str | None = None
    usage: Usage | None = None
    flagship_usd: Decimal | None = None
    list_usd: Decimal | None = None
    uncached_usd: Decimal | None = None
    cpu_s: float | None = None
    price_version: str | None = None
    policy_version: str | None = None


class Writer:
    """One per process; lives in the pool's loop."""

    def __init__(
        self, ledger: Ledger, on_awaited: Callable[[list[str]], Coroutine[None, None, None]] | None = None
    ) -> None:
        """Begins with `start`.

        Args:
            ledger: Where to.
            on_awaited: Is given the ids of final jobs whose end other jobs wait for, once it is committed.
        """
        self._ledger = ledger
        self._on_awaited = on_awaited
        self._queue: list[tuple[Settlement, asyncio.Future[JobState | None]]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._written = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to write. Call in the loop."""
        self._task = asyncio.create_task(self._run(), name="ledger-writer")

    async def settle(self, settlement: Settlement) -> JobState | None:
        """Store a settlement; returns once it is committed.

        Returns:
            The job's state now; None when the lease was lost (the cost is booked, the answer is not used).
        """
        future: asyncio.Future[JobState | None] = asyncio.get_running_loop().create_future()
        self._queue.append((settlement, future))
        self._wake.set()
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Write what is left and stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _run(self) -> None:
        while self._queue or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            # The first after a pause goes at once: somebody may wait for it, and there is nothing to share its commit with.
            idle_s = time.monotonic() - self._written
            if not self._closing and len(self._queue) < BATCH and idle_s < LINGER_S:
                await asyncio.sleep(LINGER_S)
            while self._queue:
                batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
                await self._write(batch)
                self._written = time.monotonic()

    async def _write(self, batch: Sequence[tuple[Settlement, asyncio.Future[JobState | None]]]) -> None:
        try:
            rows = await self._ledger.fetch_patiently(queries.SETTLE, parameters([s for s, _ in batch]))
        except psycopg.Error as exc:
            if len(batch) == 1:
                log.error("the ledger refuses the settlement of job %s: %s", batch[0][0].job_id, type(exc).__name__)
                batch[0][1].set_exception(exc)
                return
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        states = {row["id"]: JobState(row["state"]) for row in rows}
        for settlement, future in batch:
            if not future.done():
                future.set_result(states.get(settlement.job_id))
        awaited = [row["id"] for row in rows if row["is_awaited"] and JobState(row["state"]).is_final]
        if awaited and self._on_awaited is not None:
            task = asyncio.create_task(self._on_awaited(awaited), name="hand-on")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def parameters(settlements: Sequence[Settlement]) -> dict[str, list[object]]:
    """The arrays of queries.SETTLE."""

    def tokens(field: str) -> list[object]:
        return [None if s.usage is None else getattr(s.usage, field) for s in settlements]

    return {
        "ids": [s.job_id for s in settlements],
        "tokens": [s.token for s in settlements],
        "numbers": [s.number for s in settlements],
        "states": [s.state.value for s in settlements],
        "indexes": [s.route_index for s in settlements],
        "delays": [s.delay_s for s in settlements],
        "uses": [s.uses for s in settlements],
        "codes": [s.error_code for s in settlements],
        "errors": [printable(s.error) for s in settlements],
        "bodies": [s.body for s in settlements],
        "outcomes": [s.outcome for s in settlements],
        "reasons": [printable(s.reason) for s in settlements],
        "details": [s.detail for s in settlements],
        "attempt_states": [s.attempt_state.value for s in settlements],
        "first_tokens": [s.first_token_s for s in settlements],
        "served": [printable(s.served_model) for s in settlements],
        "request_ids": [printable(s.request_id) for s in settlements],
        "stops": [s.stop for s in settlements],
        "inputs": tokens("input_tokens"),
        "outputs": tokens("output_tokens"),
        "reads": tokens("cache_read_tokens"),
        "writes": tokens("cache_write_tokens"),
        "writes_1h": tokens("cache_write_1h_tokens"),
        "thinking": tokens("thinking_tokens"),
        "costs": [s.cost_usd for s in settlements],
        "sources": [s.cost_source.value for s in settlements],
        "flagships": [s.flagship_usd for s in settlements],
        "lists": [s.list_usd for s in settlements],
        "uncacheds": [s.uncached_usd for s in settlements],
        "cpus": [s.cpu_s for s in settlements],
        "price_versions": [s.price_version for s in settlements],
        "policies": [s.policy_version for s in settlements],
    }


def printable(text: str | None, limit: int = 1000) -> str | None:
    """Untrusted text fit for a text column and a terminal: no control characters, no lone surrogates, bounded."""
    if text is None:
        return None
    clean = "".join(c if c.isprintable() else " " for c in text[: limit * 2])
    return clean.encode("utf-8", "replace").decode("utf-8")[:limit]
