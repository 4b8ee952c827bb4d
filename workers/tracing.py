"""One span for each attempt and one for each job, made from what was settled. Off unless a collector is configured.

On when OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set (OpenTelemetry's own variables, which the
exporter reads, headers and time-outs too). Span ids are made from the job's id and the attempt's number, so a settlement that
is stored twice is one span, and an attempt can name its job's span although that ends last. A job that was submitted outside
of any trace begins one whose id is the job's own.

Prompts and answers are left out; WAYBILL_TRACE_TEXT=true puts them in. Weakness: a job that ends without a worker (cancelled
while it waits, refused at routing, put aside as dead) has no span of its own; its attempts have.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from waybill.contract import AttemptState, CostSource, JobState
from waybill.trace import parse
from workers import genai, otlp

if TYPE_CHECKING:
    from waybill.contract import Job, Usage
    from workers.writer import Settlement

_GOOD: Final = (AttemptState.SUCCEEDED, AttemptState.RELEASED)
_SAMPLED: Final = 1


def is_wanted() -> bool:
    """Whether a collector is configured."""
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


@dataclass(frozen=True, slots=True)
class Told:
    """What of an attempt and its job a span tells, beside the settlement.

    Attributes:
        job: The request.
        provider, model, service: The lane.
        submitted_at, started_at, ended_at: Aware times of the job's and the attempt's beginning, and of now.
        traceparent: Of whoever submitted it.
        intent, priority: Of the job.
        max_output_tokens: As it was sent; None = the call was not prepared.
    """

    job: Job
    provider: str
    model: str
    service: str
    submitted_at: datetime
    started_at: datetime
    ended_at: datetime
    traceparent: str | None
    intent: str
    priority: str
    max_output_tokens: int | None


class Tracing:
    """One per worker process."""

    def __init__(self, post: Callable[[bytes], None], *, with_text: bool = False) -> None:
        """Spans of what is settled.

        Args:
            post: Takes one span as bytes (workers/otlp.py).
            with_text: Whether prompts and answers are in them.
        """
        self._post = post
        self._with_text = with_text

    def settled(self, settlement: Settlement, told: Told, state: JobState | None) -> None:
        """An attempt ended; with it the job, when `state` is final. None = it was fenced."""
        trace_id, parent, flags = _context(settlement.job_id, told.traceparent)
        if not flags & _SAMPLED:
            return
        job_span = _span_id(settlement.job_id)
        self._end(
            f"{genai.CHAT} {told.model}",
            trace_id,
            _span_id(f"{settlement.job_id}:{settlement.number}"),
            job_span,
            flags,
            told.started_at,
            told,
            self._attempt_attributes(settlement, told),
            is_call=told.provider != "local",
            error=None
            if settlement.attempt_state in _GOOD
            else settlement.error_code or settlement.attempt_state.value,
        )
        if state is None or not state.is_final:
            return
        attributes = {
            genai.JOB_ID: settlement.job_id,
            genai.INTENT: told.intent,
            genai.PRIORITY: told.priority,
            genai.JOB_STATE: state.value,
            genai.QUEUED_S: (told.started_at - told.submitted_at).total_seconds(),
        }
        error = None if state is JobState.SUCCEEDED else settlement.error_code or state.value
        self._end("waybill.job", trace_id, job_span, parent, flags, told.submitted_at, told, attributes, error=error)

    def _attempt_attributes(self, settlement: Settlement, told: Told) -> dict[str, Any]:
        job, usage = told.job, settlement.usage
        found: dict[str, Any] = {
            genai.OPERATION: genai.CHAT,
            genai.PROVIDER: genai.PROVIDER_NAMES.get(told.provider, told.provider),
            genai.REQUEST_MODEL: told.model,
            genai.REQUEST_MAX_TOKENS: told.max_output_tokens,
            genai.REQUEST_STREAM: job.stream,
            genai.OUTPUT_TYPE: "json" if job.json_schema is not None else "text",
            genai.RESPONSE_MODEL: settlement.served_model,
            genai.RESPONSE_ID: settlement.request_id,
            genai.FINISH_REASONS: (settlement.stop,) if settlement.stop else None,
            genai.FIRST_CHUNK: settlement.first_token_s,
            genai.JOB_ID: settlement.job_id,
            genai.INTENT: told.intent,
            genai.ATTEMPT: settlement.number,
            genai.ATTEMPT_STATE: settlement.attempt_state.value,
            genai.OUTCOME: settlement.outcome,
            genai.SERVICE: told.service,
            genai.COST_SOURCE: settlement.cost_source.value,
        }
        if settlement.cost_usd is not None and settlement.cost_source is not CostSource.UNPRICED:
            found[genai.COST] = float(settlement.cost_usd)
        if usage is not None:
            found |= _tokens(usage)
        if self._with_text:
            found |= _text(job, settlement.body)
        return {name: value for name, value in found.items() if value is not None}

    def _end(
        self,
        name: str,
        trace_id: bytes,
        span_id: bytes,
        parent: bytes,
        flags: int,
        began: datetime,
        told: Told,
        attributes: dict[str, Any],
        *,
        is_call: bool = False,
        error: str | None,
    ) -> None:
        if error:
            attributes[genai.ERROR_TYPE] = error
        self._post(
            otlp.span(
                name,
                trace_id,
                span_id,
                parent,
                flags=flags,
                kind=otlp.CLIENT if is_call else otlp.INTERNAL,
                start_ns=_ns(began),
                end_ns=_ns(told.ended_at),
                attributes=attributes,
                is_error=bool(error),
            )
        )


def _context(job_id: str, traceparent: str | None) -> tuple[bytes, bytes, int]:
    """Trace id, parent span of the job, flags. Outside of any trace: the job's own id, no parent, sampled."""
    given = parse(traceparent)
    if given is None:
        return UUID(job_id).bytes, b"", _SAMPLED
    trace_id, parent, flags = given
    return trace_id.to_bytes(16), parent.to_bytes(8), flags


def _span_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        genai.INPUT_TOKENS: usage.prompt_tokens,
        genai.OUTPUT_TOKENS: usage.output_tokens,
        genai.CACHE_READ: usage.cache_read_tokens,
        genai.CACHE_WRITE: usage.cache_write_tokens + usage.cache_write_1h_tokens,
        genai.REASONING_TOKENS: usage.thinking_tokens,
    }


def _text(job: Job, body: str | None) -> dict[str, str]:
    turns = [(turn.role, turn.content) for turn in job.messages] or [("user", job.prompt)]
    asked = [{"role": role, "parts": [{"type": "text", "content": content}]} for role, content in turns]
    found = {genai.INPUT_MESSAGES: json.dumps(asked)}
    if job.system:
        found[genai.SYSTEM_INSTRUCTIONS] = json.dumps([{"type": "text", "content": job.system}])
    if body is not None:
        answer = [{"role": "assistant", "parts": [{"type": "text", "content": json.loads(body).get("text")}]}]
        found[genai.OUTPUT_MESSAGES] = json.dumps(answer)
    return found
