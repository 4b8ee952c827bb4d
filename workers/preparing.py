"""Turn a job into a call for its lane: what is sent, how long it may take, how long the answer may be."""

from __future__ import annotations

from policies.catalog import Model
from policies.copying import flat_fields
from policies.dialects.messages import DEFAULT_MAX_TOKENS
from policies.fallback import (
    GiveUp,
)
from policies.policyfile import Plan
from policies.routing import Request, output_limit
from waybill.contract import Job, Message
from workers.attempt import Attempt
from workers.providers.base import Call
from workers.runtime import Runtime

FLEX_TIMEOUT_S = 900.0
"""Half the price for patience: the provider advises to wait this long."""


def prepare(runtime: Runtime, attempt: Attempt) -> None:
    """Turn the job into a call for this lane."""
    job, candidate = attempt.job, attempt.candidate
    model = runtime.policy.models.get(candidate.model)
    if model is None:
        attempt.decision = GiveUp("unknown_model", f"{candidate.model} is no longer in the catalogue of this worker")
        return
    plan = runtime.policy.plans.get(attempt.intent)
    slack_s = attempt.history.slack_s
    if slack_s is not None and slack_s <= 0:
        attempt.decision = GiveUp("deadline", f"the deadline passed {-slack_s:.1f} s before the call")
        return
    effort = plan.effort if plan else None
    longest_s = runtime.settings.call_timeout_s
    if candidate.service == "flex":
        longest_s = max(longest_s, FLEX_TIMEOUT_S)
    most = output_limit(
        Request(attempt.intent, attempt.payload_bytes, max_output_tokens=_wished_tokens(job, plan)), model, plan
    )
    attempt.most_output_tokens = most
    attempt.call = Call(
        model=model,
        messages=job.messages or (Message(role="user", content=job.prompt),),
        wire=job.wire,
        system=job.system,
        context=job.context,
        json_schema=job.json_schema,
        labels=job.labels,
        copied=_is_copied(attempt, plan),
        max_output_tokens=_room(runtime, attempt, model, most),
        effort=effort if effort in model.efforts else None,
        service=candidate.service,
        timeout_s=_timeout_s(attempt, longest_s),
        idle_timeout_s=runtime.settings.idle_timeout_s,
        job_id=attempt.job_id,
        attempt=attempt.number,
    )


def _is_copied(attempt: Attempt, plan: Plan | None) -> bool:
    """Whether a local model may only copy: where every value must stand in the text, and the schema is flat enough."""
    job = attempt.job
    if attempt.candidate.provider != "local" or plan is None or not plan.grounded or job.json_schema is None:
        return False
    return flat_fields(job.json_schema) is not None


def _wished_tokens(job: Job, plan: Plan | None) -> int | None:
    """The job's limit; a client that speaks a provider's dialect may give none and expect more than a job's default."""
    if job.wire is None or job.max_output_tokens is not None or plan is not None:
        return job.max_output_tokens
    return DEFAULT_MAX_TOKENS


def _timeout_s(attempt: Attempt, longest_s: float) -> float:
    """How long the call may take: a cheap lane is left while there is still time for the interactive one."""
    history, leave_s = attempt.history, attempt.candidate.leave_s
    left_s = [] if history.slack_s is None else [history.slack_s]
    if leave_s is not None and history.due_s is not None and history.has_next:
        left_s.append(max(1.0, history.due_s - leave_s))
    return min(longest_s, *left_s) if left_s else longest_s


def _room(runtime: Runtime, attempt: Attempt, model: Model, most: int) -> int:
    """The limit of this answer: from history where nobody asked for one and a cut answer can be asked for again."""
    job = attempt.job
    is_fixed = job.max_output_tokens is not None or job.wire is not None or job.stream
    # A row of a batch is prepared twice, when it is sent and when its answer comes; a cut one would wait for hours again.
    if is_fixed or attempt.candidate.service in ("local", "batch"):
        return most
    if attempt.history.same_lane > 1:
        return most
    return runtime.limiter.estimates.output_room(model.id, attempt.intent, most)
