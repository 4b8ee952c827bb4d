"""Price a call that has ended and ask the policies what follows. Nothing is stored or told here."""

from __future__ import annotations

import logging
import random
from typing import Any

from policies.cascading import Said, spoken, weigh
from policies.dialects.carry import said
from policies.fallback import Accept, Decision, GiveUp, History, Retry, decide, with_more_room
from policies.goodenough import Asked, Given, LocalCheck, judge
from policies.pricing import uncached
from waybill.contract import CostSource
from waybill.errors import ProviderError
from workers.attempt import Attempt
from workers.providers.base import Stop
from workers.runtime import Runtime

log = logging.getLogger("waybill.execute")

# Tiers as the providers name them -> our service. Unknown tiers have no price, so their attempts become `unpriced`.
_SERVICE_OF_TIER = {
    "standard": "interactive",
    "default": "interactive",
    "auto": "interactive",
    "flex": "flex",
    "batch": "batch",
}
_OWN_TRUTH = ("local", "batch")
"""Services that the answer's tier does not name: OpenAI says `default` of what it bills as a batch (providers.md 2.6)."""


def conclude(runtime: Runtime, attempt: Attempt) -> None:
    """Price the call and decide what follows."""
    price(runtime, attempt)
    try:
        assess(runtime, attempt)
    except Exception as exc:  # a bug in a policy: the call is paid, so its cost is stored before anything else
        log.exception("job %s: the answer cannot be judged", attempt.job_id)
        attempt.decision = GiveUp("internal_error", f"a bug stopped the judging of the answer: {type(exc).__name__}")


def price(runtime: Runtime, attempt: Attempt) -> None:
    """What the call cost: from the provider's usage; an upper estimate where nobody knows; nothing where none was made."""
    answer, failure = attempt.answer, attempt.failure
    if not attempt.called or (failure is not None and failure.billed is False):
        return
    attempt.usage = attempt.usage_of_answer
    candidate = attempt.candidate
    if attempt.usage is None:
        attempt.cost_usd, attempt.cost_source = candidate.estimate_usd, CostSource.ESTIMATED
        return
    served = answer.served_model if answer is not None else candidate.model
    model = served if served in runtime.policy.models else candidate.model
    tier = answer.service_tier if answer is not None else None
    service = candidate.service if tier is None or candidate.service in _OWN_TRUTH else _SERVICE_OF_TIER.get(tier, tier)
    attempt.cost_usd = runtime.prices.cost(model, service, attempt.usage, attempt.started_at)
    attempt.cost_source = CostSource.UNPRICED if attempt.cost_usd is None else CostSource.USAGE
    plain = uncached(attempt.usage)
    attempt.flagship_usd = runtime.prices.cost(runtime.policy.flagship, "interactive", plain, attempt.started_at)
    attempt.list_usd = runtime.prices.cost(model, "interactive", plain, attempt.started_at)
    attempt.uncached_usd = runtime.prices.cost(model, service, plain, attempt.started_at)


def assess(runtime: Runtime, attempt: Attempt) -> None:
    """Ask the policies what follows: from the answer, or from the failure."""
    if attempt.decision is not None:
        return
    history = attempt.history
    may_restart = attempt.job.wire is not None and attempt.job.wire.restart and attempt.answer is None
    if attempt.shown and not may_restart:
        history = History(**{**_fields(history), "streamed": True})
    if attempt.failure is not None:
        attempt.decision = decide(attempt.failure, history, jitter=random.random())
    elif attempt.answer is not None:
        if attempt.answer.stop is Stop.TRUNCATED and attempt.call is not None:
            sent = attempt.call.max_output_tokens
            attempt.decision = with_more_room(history, sent=sent, most=attempt.most_output_tokens)
        attempt.decision = attempt.decision or judge(
            _asked(runtime, attempt), _given(attempt), history, _local_check(runtime, attempt)
        )
        if isinstance(attempt.decision, Accept) and not attempt.is_gated:
            attempt.decision = _weigh(runtime, attempt, attempt.decision, history)


def _weigh(runtime: Runtime, attempt: Attempt, accepted: Accept, history: History) -> Decision:
    """Ask the cascade that the job began with, if it began with one."""
    number = attempt.candidate.cascade
    # A client of a provider's dialect gets a cut answer as it came: a stronger model would be cut at the same place.
    if number is None or attempt.answer is None or attempt.answer.stop is not Stop.COMPLETE:
        return accepted
    return weigh(
        accepted,
        runtime.cascades.get(number),
        prompt=spoken(attempt.job.model_dump(include={"system", "prompt", "messages", "wire"})) or "",
        text=attempt.answer.text,
        earlier=[Said.from_json(each) for each in attempt.said if "shape" in each],
        history=history,
        flagship=runtime.policy.flagship,
    )


def _asked(runtime: Runtime, attempt: Attempt) -> Asked:
    job, plan = attempt.job, runtime.policy.plans.get(attempt.intent)
    source = None
    if plan is not None and plan.grounded:
        texts = said(job.wire.body) if job.wire is not None else [message.content for message in job.messages]
        source = "\n".join([job.context or "", job.prompt, *texts])
    return Asked(
        job.json_schema,
        job.labels,
        as_is=job.wire is not None,
        source=source,
        compare=plan is not None and plan.compare and attempt.candidate.cascade is None,
    )


def _given(attempt: Attempt) -> Given:
    assert attempt.answer is not None
    return Given(
        attempt.answer.text,
        attempt.answer.stop.value,
        attempt.answer.confidence,
        is_local=attempt.candidate.provider == "local",
        label_logprobs=attempt.answer.label_logprobs,
        value_logprobs=attempt.answer.value_logprobs,
        earlier=tuple(each["said"] for each in attempt.said),
    )


def _local_check(runtime: Runtime, attempt: Attempt) -> LocalCheck | None:
    if not attempt.is_gated:
        return None
    assert attempt.answer is not None
    # A server behind a URL does not tell which file it has loaded: its model's name stands in.
    return runtime.gates.check(attempt.intent, attempt.job, attempt.answer.model_hash or attempt.candidate.model)


def _fields(history: History) -> dict[str, Any]:
    return {name: getattr(history, name) for name in History.__slots__}


def interrupted(attempt: Attempt, *, by_submitter: bool) -> None:
    """The call was broken off by us; whether it was billed nobody knows."""
    attempt.answer = None
    attempt.failure = (
        ProviderError("cancelled while the call was under way", code="cancelled", billed=None)
        if attempt.called
        else None
    )
    attempt.decision = (
        GiveUp("cancelled", "cancelled on request")
        if by_submitter
        else Retry(0.0, "handed back: the worker is shutting down")
    )
