"""Job + what the fleet can do now -> ordered candidates, each with its reason.

`route` puts the models of the policy file's chain in order; `with_lanes` then says by which service each is asked
(policies/lanes.py weighs them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from policies.batching import ONE_MODEL
from policies.catalog import HEAD, Model
from policies.cliffs import before_cliff, cliff
from policies.detour import may_wait, next_open
from policies.health import Outage
from policies.lanes import ALL_MODELS, EVEN, Choice, Latency, Offer, Times, choose
from policies.policyfile import Plan, Policy
from policies.pricing import PriceBook, estimate_tokens
from waybill.contract import BATCH_SERVICE, Candidate, Usage, lane_name


@dataclass(frozen=True, slots=True)
class Request:
    """What routing reads of a job.

    Attributes:
        intent: The producer's tag.
        payload_bytes: UTF-8 bytes of the prompt texts.
        model: Pinned model or None.
        local_only: The text must not leave the local lane.
        needs: `json_schema` and `labels`, where the answer must have a form; `tools`, `vision`; `only:PROVIDER`;
            `live:PROVIDER`: no row of that provider's batches.
        max_output_tokens: As the job asks, or None.
        slack_s: Seconds to the deadline, or None.
        priority: `hi` or `lo`.
        due_s: Seconds in which the answer is wanted; None = at once, so that no cheaper lane comes into question.
        prefix_bytes: Of `payload_bytes`, what a prompt cache may keep.
        quality: What the job itself wants kept, or None; it has a plan of its own then (policies/quality.py).
    """

    intent: str
    payload_bytes: int
    model: str | None = None
    local_only: bool = False
    needs: tuple[str, ...] = ()
    max_output_tokens: int | None = None
    slack_s: float | None = None
    priority: str = "hi"
    due_s: float | None = None
    prefix_bytes: int = 0
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the fleet can do now.

    Attributes:
        off: Providers that are off, with the reason ("no ANTHROPIC_API_KEY"); `batch` where nobody serves that lane.
        now: Time of the decision: prices depend on it.
        providers: Those that are drained by hand or refuse our account.
        lanes: Those that are not simply to be taken, by name.
        times: How long lanes took of late, by name; `provider/*/service` is all models together.
        heads: Intents of which a label head is shown to be right often enough.
    """

    off: Mapping[str, str]
    now: datetime
    providers: Mapping[str, Outage] = field(default_factory=dict)
    lanes: Mapping[str, Outage] = field(default_factory=dict)
    times: Mapping[str, Latency] = field(default_factory=dict)
    heads: frozenset[str] = frozenset()

    def outage(self, candidate: Candidate) -> Outage | None:
        """What stands against a lane now; None = nothing."""
        lane = lane_name(candidate.provider, candidate.model, candidate.service)
        return self.providers.get(candidate.provider) or self.lanes.get(lane)


@dataclass(frozen=True, slots=True)
class Route:
    """Where the job goes: candidates in order (at least one), why, and what was passed over."""

    candidates: tuple[Candidate, ...]
    reason: str
    passed_over: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NoRoute:
    """Nothing can do the job: a stable code and a line for the submitter."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """The job can be done, but not now: it stays in the queue. Seconds after which to ask again, and why."""

    wait_s: float
    reason: str


def route(request: Request, policy: Policy, snapshot: Snapshot, prices: PriceBook) -> Route | NoRoute | Later:
    """Choose the candidates of a job.

    A pinned model is the only candidate. A local-only job sees local models only: a pin that is not local is refused,
    never overruled. Otherwise the intent's chain, minus what cannot do the job, in order. Lanes that are out come last;
    a job with slack waits for a cheaper one that is out for a short while.
    """
    if request.slack_s is not None and request.slack_s <= 0:
        return NoRoute(
            "deadline", f"the deadline passed {-request.slack_s:.1f} s before the job could be sent anywhere"
        )
    plan = policy.plans.get(request.intent)
    if plan is None and request.model is None:
        return NoRoute(
            "unknown_intent",
            f"intent {request.intent!r} has no plan in policy {policy.version}; known: {', '.join(policy.intents())}",
        )
    chain, reason = _chain(request, policy, plan)
    if request.model is not None and request.model not in policy.models:
        return NoRoute(
            "unknown_model",
            f"model {request.model!r} is not in the catalogue; known: {', '.join(sorted(policy.models))}",
        )

    candidates: list[Candidate] = []
    passed_over: dict[str, str] = {}
    for model_id in chain:
        model = policy.models[model_id]
        obstacle = _obstacle(request, model, plan, snapshot)
        if obstacle is not None:
            passed_over[model_id] = obstacle
            continue
        candidates.append(_candidate(request, model, plan, snapshot, prices, first=not candidates, reason=reason))
    if not candidates:
        why = "; ".join(f"{model}: {obstacle}" for model, obstacle in passed_over.items()) or "no local model is known"
        return NoRoute("no_route", f"no model can take this job ({why})")
    over = cliff(policy.models[candidates[0].model], candidates[0], request.payload_bytes, prices, snapshot.now)
    candidates = list(before_cliff(candidates, over))
    return _around_outages(request, Route(tuple(candidates), candidates[0].reason, passed_over), snapshot)


def _around_outages(request: Request, found: Route, snapshot: Snapshot) -> Route | Later:
    """The route with a lane first that lets calls through, or Later."""
    outages = [snapshot.outage(candidate) for candidate in found.candidates]
    first = outages[0]
    if first is None:
        return found
    patient = may_wait(priority=request.priority, slack_s=request.slack_s, outage_s=first.age_s)
    other = next_open(outages, 0, urgent=not patient)
    # With nowhere else to go even urgent work may be a probe.
    if not first.blocks(urgent=not patient and other is not None):
        return found
    head = found.candidates[0]
    if other is None:
        return Later(min(outage.wait_s for outage in outages if outage is not None), f"{head.model} is {first.reason}")
    taken = found.candidates[other]
    if patient and not first.is_drained and taken.estimate_usd > head.estimate_usd:
        return Later(first.wait_s, f"{head.model} is {first.reason}; the job has time, and {taken.model} costs more")
    reason = f"{head.model} is {first.reason}; instead: {taken.reason}"
    blocked = {model.model: outage.reason for model, outage in zip(found.candidates, outages, strict=True) if outage}
    moved = replace(taken, reason=reason)
    rest = found.candidates[other + 1 :]
    return Route((moved, *rest, *found.candidates[:other]), reason, {**found.passed_over, **blocked})


def _chain(request: Request, policy: Policy, plan: Plan | None) -> tuple[tuple[str, ...], str]:
    if request.model is not None:
        return (request.model,), "the job pins this model"
    assert plan is not None  # route() has checked it
    if request.local_only:
        local = tuple(m for m in plan.chain if policy.models[m].provider == "local")
        others = tuple(m for m, model in policy.models.items() if model.provider == "local" and m not in local)
        return local + others, "the job must stay on local models"
    return plan.chain, plan.reason


def output_limit(request: Request, model: Model, plan: Plan | None) -> int:
    """Upper bound of the answer's tokens: the job's wish, else the plan's, never above the model's."""
    return min(request.max_output_tokens or (plan.max_output_tokens if plan else 2048), model.max_output_tokens)


def _obstacle(request: Request, model: Model, plan: Plan | None, snapshot: Snapshot) -> str | None:
    """Why this model cannot take the job; None when it can."""
    if request.local_only and model.provider != "local":
        return "the job must stay on local models"
    if model.provider in snapshot.off:
        return snapshot.off[model.provider]
    if model.id == HEAD:
        if "labels" not in request.needs:
            return "only gives labels"
        if request.intent not in snapshot.heads:
            return "none is shown to be right yet"
    if "json_schema" in request.needs and not model.json_schema:
        return "cannot hold its answer to a schema"
    for need in request.needs:
        if need.startswith("only:") and need != f"only:{model.provider}":
            return f"the request holds what only {need.removeprefix('only:')} takes"
    if "tools" in request.needs and model.provider == "local":
        return "takes no tools"
    if "vision" in request.needs and not model.vision:
        return "takes no images"
    tokens = estimate_tokens(request.payload_bytes, model.bytes_per_token)
    # 35 % is the spread of the estimate (bytes per token differ by text): only what surely does not fit is passed over.
    if tokens * 0.65 + min(output_limit(request, model, plan), 256) > model.context_tokens:
        return f"about {tokens} prompt tokens do not fit its context of {model.context_tokens}"
    return None


def likely_usage(request: Request, model: Model, plan: Plan | None) -> Usage:
    """Upper estimate of what one attempt uses."""
    tokens = estimate_tokens(request.payload_bytes, model.bytes_per_token)
    # What may be written to a prompt cache costs more than what is not.
    written = min(tokens, int(request.prefix_bytes / model.bytes_per_token)) if model.caching != "none" else 0
    return Usage(
        input_tokens=tokens - written,
        cache_write_tokens=written,
        output_tokens=output_limit(request, model, plan),
    )


def _candidate(
    request: Request,
    model: Model,
    plan: Plan | None,
    snapshot: Snapshot,
    prices: PriceBook,
    *,
    first: bool,
    reason: str,
) -> Candidate:
    service = "local" if model.provider == "local" else "interactive"
    usage = likely_usage(request, model, plan)
    estimate = prices.cost(model.id, service, usage, snapshot.now)
    return Candidate(
        provider=model.provider,
        model=model.id,
        service=service,
        reason=reason if first else f"next in the chain of {request.intent}",
        # An unpriced model is booked at the most an unknown call could be thought of: nothing is known, so 0 would lie;
        # the attempt itself says `unpriced`. The estimate only serves attempts whose worker was lost.
        estimate_usd=Decimal(0) if estimate is None else estimate,
    )


# --- the service of each candidate ------------------------------------------------------------------------------------


def with_lanes(
    found: Route, request: Request, policy: Policy, snapshot: Snapshot, prices: PriceBook
) -> tuple[Route, list[dict[str, object]]]:
    """Put the cheap lane of each model before its interactive one, where that is the better choice.

    Args:
        found: As `route` made it: every candidate interactive or local.
        request: The same.
        policy: The same.
        snapshot: The same.
        prices: The same.

    Returns:
        The route, and what was weighed for its first model (empty where nothing was to be chosen).
    """
    due_s = request.due_s
    if due_s is None or due_s <= 0:
        return found, []
    candidates: list[Candidate] = []
    weighed: list[dict[str, object]] = []
    reason = found.reason
    for candidate in found.candidates:
        cheaper = _cheaper(candidate, request, policy, snapshot, prices)
        if cheaper:
            last = Offer("interactive", candidate.estimate_usd, _times(candidate, snapshot))
            choice = choose(last, cheaper, due_s=due_s, target=policy.lanes.target)
            is_first = not candidates
            if is_first:
                weighed = [one.as_json() | {"taken": one is choice.taken} for one in choice.weighed]
                reason = f"{found.reason}; {choice.reason}"
            if choice.taken.service != "interactive":
                candidates.append(_by_cheaper(candidate, choice, snapshot, reason if is_first else choice.reason))
        candidates.append(candidate)
    return replace(found, candidates=tuple(candidates), reason=reason), weighed


def _cheaper(
    candidate: Candidate, request: Request, policy: Policy, snapshot: Snapshot, prices: PriceBook
) -> list[Offer]:
    """The other lanes of the candidate's model that are open and have a price."""
    model = policy.models[candidate.model]
    if candidate.service != "interactive" or candidate.estimate_usd == 0:
        return []
    usage = likely_usage(request, model, policy.plans.get(request.intent))
    offers = []
    for service in policy.lanes.services:
        lane = replace(candidate, service=service)
        if service not in model.services or service in snapshot.off or snapshot.outage(lane) is not None:
            continue
        if service == BATCH_SERVICE and f"live:{model.provider}" in request.needs:
            continue
        usd = prices.cost(model.id, service, usage, snapshot.now)
        if usd is not None:
            wait_s = policy.batches.linger_s if service == "batch" else 0.0
            offers.append(Offer(service, usd, _times(lane, snapshot), wait_s))
    return offers


def _by_cheaper(candidate: Candidate, choice: Choice, snapshot: Snapshot, reason: str) -> Candidate:
    lane = replace(candidate, service=choice.taken.service, estimate_usd=choice.taken.usd, reason=reason)
    leave_s = choice.taken.leave_s
    again_s = leave_s + _times(lane, snapshot).needs_s(EVEN)
    return replace(lane, leave_s=round(leave_s, 1), again_s=round(again_s, 1))


def _times(candidate: Candidate, snapshot: Snapshot) -> Times:
    own, pool = (lane_name(candidate.provider, model, candidate.service) for model in (candidate.model, ALL_MODELS))
    is_mixed = candidate.service == BATCH_SERVICE and candidate.provider not in ONE_MODEL
    return Times(candidate.service, None if is_mixed else snapshot.times.get(own), snapshot.times.get(pool))
