"""Tell whoever waits: the gateway and clients of a stream piece by piece, all of them the end, and log and trace."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from waybill.contract import JobState, lane_name
from waybill.streaming import publish_delta, publish_end
from workers.attempt import Attempt
from workers.providers.base import Frames
from workers.runtime import Runtime
from workers.telemetry import emit
from workers.tracing import Told
from workers.writer import Settlement

SHOW_TIMEOUT_S = 2.0
"""A Redis that hangs must not hold a stream up until the provider gives it up."""


def post(runtime: Runtime, attempt: Attempt, frames: Frames) -> None:
    """Send frames to the gateway that waits; the first time with who answers."""
    first, attempt.shown = not attempt.shown, True
    if attempt.reply_to is None:
        return
    if first:
        head = json.dumps({"model": attempt.candidate.model, "lane": attempt.lane, "reason": attempt.why})
        runtime.outbox.put(attempt.reply_to, "head", attempt.job_id, attempt.number, head.encode())
    runtime.outbox.put(attempt.reply_to, "data", attempt.job_id, attempt.number, frames.data)


async def show(runtime: Runtime, job_id: str, piece: str) -> bool:
    """Pass a piece on; False when Redis does not take it. Then no more are sent: a gap would be worse than an end."""
    from redis.exceptions import RedisError

    try:
        async with asyncio.timeout(SHOW_TIMEOUT_S):
            await publish_delta(runtime.redis, job_id, piece)
    except (RedisError, OSError, TimeoutError) as exc:
        emit("service.away", service="redis", error=f"{type(exc).__name__}: {exc}")
        return False
    return True


def post_end(runtime: Runtime, attempt: Attempt, settlement: Settlement, state: JobState) -> None:
    """Tell the gateway that the job is final, with all it needs to answer: it need not ask the ledger for it again."""
    if attempt.reply_to is None:
        return
    answer, failure = attempt.answer, attempt.failure
    end: dict[str, Any] = {
        "state": state.value,
        "model": attempt.candidate.model,
        "lane": attempt.lane,
        "reason": attempt.why,
        # Earlier attempts may have cost something, too: the ledger adds them up.
        "usd": None if attempt.number > 1 or settlement.cost_usd is None else str(settlement.cost_usd),
        "attempt": attempt.number,
    }
    if state is JobState.SUCCEEDED and answer is not None:
        end["tail"] = answer.tail.decode("utf-8", "replace")
        if not attempt.shown and answer.wire is not None:
            end["answer"] = answer.wire
    else:
        end |= {"code": settlement.error_code, "error": settlement.error}
        if failure is not None:
            end["failure"] = failure.code
            end["retry_after_s"] = getattr(failure, "retry_after_s", None)
    runtime.outbox.put(
        attempt.reply_to, "end", attempt.job_id, attempt.number, json.dumps(end, ensure_ascii=True).encode()
    )


async def tell(runtime: Runtime, attempt: Attempt) -> None:
    """Notify waiting clients. A hint: whoever misses it finds the result in the ledger."""
    from redis.exceptions import RedisError

    try:
        await publish_end(runtime.redis, [attempt.job_id], [attempt.job_id] if attempt.job.stream else [])
    except (RedisError, OSError) as exc:
        emit("service.away", service="redis", error=str(exc))


def told_of(attempt: Attempt) -> Told:
    return Told(
        job=attempt.job,
        provider=attempt.candidate.provider,
        model=attempt.candidate.model,
        service=attempt.candidate.service,
        submitted_at=attempt.submitted_at or attempt.started_at,
        started_at=attempt.started_at,
        ended_at=datetime.now(UTC),
        traceparent=attempt.traceparent,
        intent=attempt.intent,
        priority=attempt.priority,
        max_output_tokens=attempt.call.max_output_tokens if attempt.call is not None else None,
    )


def tell_log(attempt: Attempt, settlement: Settlement, state: JobState, seconds: float, cost: str) -> None:
    common: dict[str, Any] = {"job": attempt.job_id, "attempt": attempt.number}
    emit(
        "attempt.finished",
        level=10,
        **common,
        lane=attempt.lane,
        state=settlement.attempt_state.value,
        usd=cost,
        seconds_s=seconds,
    )
    if state in (JobState.FAILED, JobState.CANCELLED):
        emit("job.failed", **common, code=settlement.error_code)
    elif state is not JobState.SUCCEEDED:
        following = attempt.route[attempt.index if settlement.route_index is None else settlement.route_index]
        emit(
            "job.rerouted",
            **common,
            outcome=settlement.outcome,
            code=settlement.error_code or "-",
            lane=attempt.lane,
            to=lane_name(following.provider, following.model, following.service),
        )
