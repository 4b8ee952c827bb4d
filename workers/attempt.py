"""One attempt: what the steps of execute.py know and find out about one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from policies.caching import Prefix
from policies.fallback import (
    Decision,
    History,
)
from waybill.contract import Candidate, CostSource, Job, Usage, lane_name
from waybill.errors import ProviderError
from workers.limiter import Grant
from workers.providers.base import Answer, Call
from workers.runtime import Runtime


@dataclass(slots=True)
class Attempt:
    """What the steps know and find out about one call.

    Attributes:
        job_id, number, token: Which attempt, under which lease.
        route, index: All candidates and whose turn it is.
        job: The request.
        history: What the fallback policy needs to know.
        reply_to: The gateway process that waits for the answer.
        why: Why this lane, as a word of the gateway's closed list.
        call: As it is sent; set by prepare, told by warm what to cache.
        prefix: What the job has in common with others; None = nothing.
        prefix_name: It in this lane and account (workers/warming.py).
        leads: The same, while others wait for this attempt to write it.
        most_output_tokens: What the answer may have at most, by job and plan; the call may ask for less.
        has_budget: Whether its cost must be reserved first.
        grant: The limiter's reservation, until it is settled; None for our own models.
        account: Which of the provider's accounts it is reserved in.
        said: Earlier answers that passed the checks, where answers are compared or a cascade decides: fingerprints and shapes.
        answer, failure: What came back: one of them after `call`.
        decision: Set by the first step that knows how it ends; later steps then do nothing.
    """

    job_id: str
    number: int
    token: int
    route: tuple[Candidate, ...]
    index: int
    intent: str
    priority: str
    payload_bytes: int
    job: Job
    history: History
    started: float
    started_at: datetime
    has_budget: bool = False
    reply_to: str | None = None
    why: str = "policy"
    prefix: Prefix | None = None
    prefix_name: str | None = None
    leads: str | None = None
    call: Call | None = None
    most_output_tokens: int = 0
    grant: Grant | None = None
    account: str = ""
    said: tuple[Mapping[str, Any], ...] = ()
    answer: Answer | None = None
    failure: ProviderError | None = None
    decision: Decision | None = None
    called: bool = False
    called_at: float = 0.0
    shown: bool = False
    submitted_at: datetime | None = None
    traceparent: str | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = Decimal(0)
    cost_source: CostSource = CostSource.NOTHING
    flagship_usd: Decimal | None = None
    list_usd: Decimal | None = None
    uncached_usd: Decimal | None = None
    settling: asyncio.Future[str] | None = None

    @property
    def candidate(self) -> Candidate:
        """The lane of this attempt."""
        return self.route[self.index]

    @property
    def lane(self) -> str:
        """Its name."""
        return lane_name(self.candidate.provider, self.candidate.model, self.candidate.service)

    @property
    def is_gated(self) -> bool:
        """Whether the answer is a local label or copied: whether it counts is known only once its gate was asked."""
        is_copied = self.call is not None and self.call.copied
        return self.candidate.provider == "local" and (bool(self.job.labels) or is_copied)

    @property
    def usage_of_answer(self) -> Usage | None:
        """What the provider said it counted, where it said so."""
        if self.answer is not None:
            return self.answer.usage
        return self.failure.usage if self.failure is not None else None


def attempt_of(runtime: Runtime, row: Mapping[Any, Any]) -> Attempt:
    """The attempt of a row of queries.CLAIM (or batches.ROWS)."""
    route = tuple(Candidate.from_json(candidate) for candidate in row["route"])
    return Attempt(
        job_id=row["id"],
        number=row["attempt"],
        token=row["lease_token"],
        route=route,
        index=row["route_index"],
        intent=row["intent"],
        priority=row["priority"],
        payload_bytes=row["payload_bytes"],
        job=Job.from_payload(row["payload"]),
        prefix=Prefix(row["prefix"], row["prefix_bytes"]) if row["prefix"] else None,
        history=History(
            route=route,
            index=row["route_index"],
            used=row["used"] + 1,
            max_attempts=runtime.policy.max_attempts,
            same_lane=row["earlier_on_lane"] + 1,
            slack_s=row["slack_s"],
            due_s=row["due_s"],
        ),
        started=time.monotonic(),
        started_at=datetime.now(UTC),
        submitted_at=row["submitted_at"],
        traceparent=row["traceparent"],
        has_budget=row["has_budget"],
        reply_to=row["reply_to"],
        why=_why(row, route),
        said=tuple(row["said"] or ()),
    )


def _why(row: Mapping[Any, Any], route: Sequence[Candidate]) -> str:
    """Why the job is on this lane, as a word that programs can read (docs/gateway.md)."""
    if row["route_index"] > 0:
        # A failure leaves its code with the job, a weak answer leaves none.
        return "fallback" if row["error_code"] else "escalation"
    reason = route[0].reason
    if "; instead: " in reason:
        return "detour"
    return {"the job pins this model": "pinned", "the job must stay on local models": "local_only"}.get(
        reason, "policy"
    )
