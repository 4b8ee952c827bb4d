"""A row of a batch is an attempt like any other: the same request, price, judgement and settlement, only later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from policies.fallback import Retry
from waybill.contract import Candidate, Job
from waybill.errors import ProviderError
from waybill.ledger import providerbatches
from workers.attempt import Attempt, attempt_of
from workers.cascades import bring_cascades
from workers.concluding import conclude
from workers.execute import settle
from workers.preparing import prepare
from workers.providers.batches import Row, row_name

if TYPE_CHECKING:
    from workers.runtime import Runtime

CHUNK: Final = 200
"""Rows settled at a time."""


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A row without an outcome. `is_live`: its job still waits for it (it was neither hedged nor cancelled)."""

    attempt: Attempt
    is_live: bool

    @property
    def name(self) -> str:
        """What it is called at the provider."""
        return row_name(self.attempt.job_id, self.attempt.number)


async def open_rows(runtime: Runtime, batch_id: str) -> list[OpenRow]:
    """The open rows of a batch, prepared."""
    rows = await runtime.ledger.fetch_patiently(
        providerbatches.ROWS, {"id": batch_id, "ids": None}, give_up=runtime.draining
    )
    return [_open_row(runtime, row) for row in rows]


def _open_row(runtime: Runtime, row: Mapping[Any, Any]) -> OpenRow:
    known = dict(row)
    if not row["is_live"]:
        # The job's route may be another one by now; what was called is the attempt's own.
        lane = Candidate(row["provider"], row["model"], row["service"], row["reason"], row["estimate_usd"])
        known |= {"route": [lane.as_json()], "route_index": 0}
    if row["payload"] is None:  # dropped by hand meanwhile; only the cost is still of interest
        known["payload"] = Job(intent=row["intent"], prompt="-").payload()
    # An answer that comes after the deadline is paid for; `prepare` must not refuse it.
    attempt = attempt_of(runtime, known | {"slack_s": None})
    prepare(runtime, attempt)
    attempt.history = replace(attempt.history, slack_s=row["slack_s"])
    return OpenRow(attempt, row["is_live"])


async def settle_rows(runtime: Runtime, batch_id: str, ended: Sequence[tuple[OpenRow, Row]]) -> None:
    """Book what came of rows, as attempts, and close them. Harmless when done twice."""
    await bring_cascades(runtime, [row.attempt.candidate for row, _ in ended])
    await asyncio.gather(*(_settle_row(runtime, row.attempt, result) for row, result in ended))
    await _close(runtime, batch_id, [(row, result.outcome) for row, result in ended])


async def _settle_row(runtime: Runtime, attempt: Attempt, result: Row) -> None:
    attempt.called, attempt.called_at = True, time.monotonic()
    attempt.answer, attempt.failure = result.answer, result.failure
    if attempt.answer is None and attempt.failure is None:
        attempt.failure = ProviderError("the row's answer cannot be read", code="garbled", billed=None)
    if attempt.answer is not None and attempt.answer.usage is not None:
        runtime.limiter.estimates.observe(
            attempt.candidate.model, attempt.intent, attempt.payload_bytes, attempt.answer.usage
        )
    conclude(runtime, attempt)
    await settle(runtime, attempt)


async def lose_rows(runtime: Runtime, batch_id: str, rows: Sequence[OpenRow], failure: ProviderError) -> None:
    """Book rows of which the provider says nothing; the fallback policy says where their jobs go."""
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        await asyncio.gather(*(_settle_row(runtime, row.attempt, Row("", "errored", failure=failure)) for row in part))
        await _close(runtime, batch_id, [(row, "missing") for row in part])


async def hand_back(runtime: Runtime, batch_id: str, rows: Sequence[OpenRow], reason: str) -> None:
    """Rows that were not sent: nothing was paid, no attempt is used up. Those with a decision of their own follow it."""
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        for row in part:
            row.attempt.decision = row.attempt.decision or Retry(0.0, reason)
        await asyncio.gather(
            *(settle(runtime, row.attempt, hand_back=isinstance(row.attempt.decision, Retry)) for row in part)
        )
        await _close(runtime, batch_id, [(row, "unsent") for row in part])


async def forget_rows(runtime: Runtime, batch_id: str, rows: Sequence[OpenRow]) -> None:
    """Close rows whose claim has been undone already."""
    await _close(runtime, batch_id, [(row, "unsent") for row in rows])


async def _close(runtime: Runtime, batch_id: str, rows: Sequence[tuple[OpenRow, str]]) -> None:
    if rows:
        await runtime.ledger.fetch_patiently(
            providerbatches.CLOSE_ROWS,
            {
                "batch": batch_id,
                "jobs": [row.attempt.job_id for row, _ in rows],
                "states": [state for _, state in rows],
            },
        )
