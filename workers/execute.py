"""One attempt as a pipeline of named steps: claim -> prepare -> afford -> admit -> call -> price -> judge -> settle.

The first three are done for a whole chunk at once; who may not start now is parked by admission.py and keeps no trace.

The whole life of an attempt is in this file, and only `settle` changes anything: the decision it carries out is a value
that a policy returned. The answer's cost and the decision are stored in one transaction, so a paid call is never lost
between the two; a process that dies before it leaves the attempt `started`, which the reconciler books as `unknown`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, assert_never

from sqlalchemy.engine import RowMapping

from policies.caching import Prefix
from policies.catalog import Model
from policies.dialects.carry import said
from policies.dialects.messages import DEFAULT_MAX_TOKENS
from policies.fallback import (
    Accept,
    Decision,
    Escalate,
    GiveUp,
    History,
    Reroute,
    Retry,
    Snooze,
    decide,
    with_more_room,
)
from policies.goodenough import Asked, Given, LocalCheck, judge
from policies.policyfile import Plan
from policies.pricing import PRICE_VERSION, uncached
from policies.routing import Request, output_limit
from waybill.bells import hear, ring_quickly
from waybill.broker import execute_doorbells
from waybill.contract import AttemptState, Candidate, CostSource, Job, JobState, Message, Usage, lane_name
from waybill.errors import Broken, ProviderError, Rejected, Throttled
from waybill.ledger import queries
from waybill.names import provider_queue
from waybill.streaming import publish_delta, publish_end
from workers.admission import admit, give_back, park
from workers.affording import afford
from workers.crashpoint import crash_point
from workers.detour import hold_back, learn, let_through
from workers.limiter import Grant
from workers.providers.base import Answer, Call, Frames, Stop
from workers.redaction import hide
from workers.runtime import Lease, Runtime
from workers.telemetry import emit
from workers.tracing import Told
from workers.warming import abandon, remember, warm
from workers.writer import Settlement, printable

log = logging.getLogger("waybill.execute")

# Tiers as the providers name them -> our service. Unknown tiers have no price, so their attempts become `unpriced`.
_SERVICE_OF_TIER = {
    "standard": "interactive",
    "default": "interactive",
    "auto": "interactive",
    "flex": "flex",
    "batch": "batch",
}
URGENT = 500
"""Quick bells that one process answers at a time."""
_OWN_TRUTH = ("local", "batch")
"""Services that the answer's tier does not name: OpenAI says `default` of what it bills as a batch (providers.md 2.6)."""
FLEX_TIMEOUT_S = 900.0
"""Half the price for patience: the provider advises to wait this long."""
SHOW_TIMEOUT_S = 2.0
"""A Redis that hangs must not hold a stream up until the provider gives it up."""
_ATTEMPT_OF_ERROR = {Throttled: AttemptState.THROTTLED, Broken: AttemptState.BROKEN}


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
        said: Fingerprints of earlier answers, where answers are compared.
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
    said: tuple[str, ...] = ()
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
        """Whether the answer is a local label: whether it counts is known only once its gate was asked."""
        return self.candidate.provider == "local" and bool(self.job.labels)

    @property
    def usage_of_answer(self) -> Usage | None:
        """What the provider said it counted, where it said so."""
        if self.answer is not None:
            return self.answer.usage
        return self.failure.usage if self.failure is not None else None


async def execute(runtime: Runtime, job_ids: Sequence[str]) -> dict[str, str]:
    """Run the jobs of one doorbell that are still to be run by this process.

    Returns:
        Job id -> what became of it, with model and cost: the line that Flower shows. Jobs that somebody else has taken,
        that are finished or that belong to another provider are simply not in it.
    """
    began = time.monotonic()
    claimed = await claim(runtime, job_ids)
    attempts = [attempt_of(runtime, row) for row in claimed]
    leases = {attempt.job_id: Lease(attempt.token, attempt.number) for attempt in attempts}
    runtime.leases.update(leases)
    try:
        for attempt in attempts:
            prepare(runtime, attempt)
        attempts, held = await hold_back(runtime, attempts)
        attempts, short = await afford(runtime, attempts)
        going, refused = await admit(runtime, attempts)
        going, late = await let_through(runtime, going)
        _let_go(runtime, leases, keep={attempt.job_id for attempt in going})
        # Who is admitted does not wait until the others are parked.
        parking = asyncio.ensure_future(park(runtime, refused))
        told = await asyncio.gather(*(_leased(runtime, attempt) for attempt in going))
        parked = await parking
    finally:
        _let_go(runtime, leases, keep=set())
    emit("chunk.executed", jobs=len(job_ids), taken=len(claimed), seconds_s=time.monotonic() - began)
    return held | short | late | parked | dict(zip((a.job_id for a in going), told, strict=True))


def _let_go(runtime: Runtime, leases: Mapping[str, Lease], *, keep: set[str]) -> None:
    """Renew these leases no more. A later claim of the same job has a lease of its own, which stays."""
    for job_id, lease in leases.items():
        if job_id not in keep and runtime.leases.get(job_id) is lease:
            del runtime.leases[job_id]


async def hear_urgent(runtime: Runtime, queues: Sequence[str]) -> None:
    """Until cancelled or draining: run the jobs that quick bells ring for, `URGENT` bells at a time."""
    seats = asyncio.Semaphore(URGENT)

    async def run(job_ids: Sequence[str]) -> None:
        try:
            await execute(runtime, job_ids)
        except Exception:  # the ledger goes on: control rings again for what was not claimed
            log.exception("urgent jobs failed")
        finally:
            seats.release()

    async for job_ids in hear(runtime.redis, queues):
        for job_id in job_ids:  # one by one: who waits must not wait for another's claim to be parked or priced
            await seats.acquire()
            if runtime.draining.is_set():
                await ring_quickly(runtime.redis, queues[0], [job_id])
                return
            task = asyncio.create_task(run([job_id]))
            runtime.urgent.add(task)
            task.add_done_callback(runtime.urgent.discard)


async def claim(runtime: Runtime, job_ids: Sequence[str]) -> Sequence[RowMapping]:
    """Take the jobs under a lease, count the attempt and write its row. The message is only a hint; the rows decide."""
    crash_point("before_claim")
    rows = await runtime.ledger.fetch_patiently(
        queries.CLAIM,
        {
            "ids": list(job_ids),
            "providers": list(runtime.providers),
            "owner": runtime.owner,
            "lease_s": runtime.settings.lease_s,
        },
        give_up=runtime.draining,
    )
    crash_point("after_claim")
    return rows


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


async def _leased(runtime: Runtime, attempt: Attempt) -> str:
    """Run an attempt while its lease is kept alive; cancellation of the task means lost lease, cancelled job or drain."""
    lease = runtime.leases.setdefault(attempt.job_id, Lease(attempt.token, attempt.number))
    task = lease.task = asyncio.ensure_future(_steps(runtime, attempt))
    if lease.lost or lease.cancelled:  # while it waited to be admitted
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        if attempt.settling is not None:  # its end is being stored: a second one would contradict it
            return await attempt.settling
        if lease.lost:
            give_back(runtime, attempt)
            return "taken over by another worker"
        _interrupted(attempt, by_submitter=lease.cancelled)
        give_back(runtime, attempt)
        price(runtime, attempt)
        return await settle(runtime, attempt, hand_back=not lease.cancelled)
    finally:
        runtime.leases.pop(attempt.job_id, None)


async def _steps(runtime: Runtime, attempt: Attempt) -> str:
    try:
        await warm(runtime, attempt)
        async with runtime.lane(attempt.lane).slots:
            heed_block(runtime, attempt)
            await call(runtime, attempt)
        remember(runtime, attempt)
    finally:
        abandon(runtime, attempt)
    give_back(runtime, attempt)
    conclude(runtime, attempt)
    learn(runtime, attempt)
    # From here on nothing is waited for but our own ledger: a cancellation must not separate the answer from its cost.
    attempt.settling = asyncio.ensure_future(settle(runtime, attempt))
    return await asyncio.shield(attempt.settling)


def conclude(runtime: Runtime, attempt: Attempt) -> None:
    """Price the call and decide what follows."""
    price(runtime, attempt)
    try:
        assess(runtime, attempt)
    except Exception as exc:  # a bug in a policy: the call is paid, so its cost is stored before anything else
        log.exception("job %s: the answer cannot be judged", attempt.job_id)
        attempt.decision = GiveUp("internal_error", f"a bug stopped the judging of the answer: {type(exc).__name__}")


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
        max_output_tokens=_room(runtime, attempt, model, most),
        effort=effort if effort in model.efforts else None,
        service=candidate.service,
        timeout_s=_timeout_s(attempt, longest_s),
        idle_timeout_s=runtime.settings.idle_timeout_s,
        job_id=attempt.job_id,
        attempt=attempt.number,
    )


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


def heed_block(runtime: Runtime, attempt: Attempt) -> None:
    """Leave a lane alone that has no limiter and has asked us to wait; the job is parked and uses up no attempt."""
    if attempt.decision is not None or attempt.grant is not None:
        return
    wait_s = runtime.lane(attempt.lane).blocked_until - time.monotonic()
    if wait_s > 0:
        failure = Throttled(f"the lane is blocked for {wait_s:.1f} s more", code="lane_blocked", retry_after_s=wait_s)
        attempt.decision = decide(failure, attempt.history, jitter=random.random())


async def call(runtime: Runtime, attempt: Attempt) -> None:
    """Make the call. Everything a provider can do wrong ends here as a classified failure."""
    if attempt.decision is not None or attempt.call is None:
        return
    provider = runtime.provider(attempt.candidate.provider, attempt.account)
    attempt.called, attempt.called_at = True, time.monotonic()
    crash_point("before_call")
    try:
        # A leader is streamed too: the others are let go when its answer begins, not when it ends.
        if (attempt.job.stream and not attempt.is_gated) or attempt.leads is not None:
            attempt.answer = await _stream(runtime, attempt, attempt.call)
        else:
            attempt.answer = await provider.call(attempt.call)
    except ProviderError as exc:
        exc.args = (hide(str(exc), _texts(attempt.job), runtime.keys), *exc.args[1:])
        attempt.failure = exc
        if isinstance(exc, Throttled):
            lane = runtime.lane(attempt.lane)
            lane.blocked_until = max(lane.blocked_until, time.monotonic() + (exc.retry_after_s or 0.5))
    except UnicodeEncodeError as exc:  # a lone surrogate that came in through a tool or template; no wire can carry it
        attempt.failure = Rejected(f"the request is not valid Unicode: {exc.reason}", code="bad_request")
    crash_point("after_call")


def _texts(job: Job) -> list[str]:
    """What was asked, in pieces."""
    wire = () if job.wire is None else said(job.wire.body)
    return [job.prompt, job.system or "", *(turn.content for turn in job.messages), *wire]


async def _stream(runtime: Runtime, attempt: Attempt, call: Call) -> Answer:
    provider = runtime.provider(attempt.candidate.provider, attempt.account)
    heard = True
    async for piece in provider.stream(call):
        if isinstance(piece, Answer):
            return piece if attempt.job.stream else replace(piece, first_token_s=None)
        if isinstance(piece, Frames):
            _post(runtime, attempt, piece)
            continue
        if piece and heard and attempt.job.stream:
            attempt.shown = True
            heard = await _show(runtime, attempt.job_id, piece)
    raise Broken("the stream ended without a checked answer", code="no_terminal_event", billed=None)


def _post(runtime: Runtime, attempt: Attempt, frames: Frames) -> None:
    """Send frames to the gateway that waits; the first time with who answers."""
    first, attempt.shown = not attempt.shown, True
    if attempt.reply_to is None:
        return
    if first:
        head = json.dumps({"model": attempt.candidate.model, "lane": attempt.lane, "reason": attempt.why})
        runtime.outbox.put(attempt.reply_to, "head", attempt.job_id, attempt.number, head.encode())
    runtime.outbox.put(attempt.reply_to, "data", attempt.job_id, attempt.number, frames.data)


async def _show(runtime: Runtime, job_id: str, piece: str) -> bool:
    """Pass a piece on; False when Redis does not take it. Then no more are sent: a gap would be worse than an end."""
    from redis.exceptions import RedisError

    try:
        async with asyncio.timeout(SHOW_TIMEOUT_S):
            await publish_delta(runtime.redis, job_id, piece)
    except (RedisError, OSError, TimeoutError) as exc:
        emit("service.away", service="redis", error=f"{type(exc).__name__}: {exc}")
        return False
    return True


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
        compare=plan is not None and plan.compare,
    )


def _given(attempt: Attempt) -> Given:
    assert attempt.answer is not None
    return Given(
        attempt.answer.text,
        attempt.answer.stop.value,
        attempt.answer.confidence,
        is_local=attempt.candidate.provider == "local",
        label_logprobs=attempt.answer.label_logprobs,
        earlier=attempt.said,
    )


def _local_check(runtime: Runtime, attempt: Attempt) -> LocalCheck | None:
    if not attempt.is_gated:
        return None
    provider = runtime.providers["local"]
    # A server behind a URL does not tell which file it has loaded: its model's name stands in.
    return runtime.gates.check(attempt.intent, attempt.job, getattr(provider, "sha256", attempt.candidate.model))


def _fields(history: History) -> dict[str, Any]:
    return {name: getattr(history, name) for name in History.__slots__}


def _interrupted(attempt: Attempt, *, by_submitter: bool) -> None:
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


async def settle(runtime: Runtime, attempt: Attempt, *, hand_back: bool = False) -> str:
    """Carry out the decision: store it with the cost, then tell whoever waits or ring for the next attempt."""
    settlement = _settlement(attempt, hand_back=hand_back)
    crash_point("before_commit")
    state = await runtime.writer.settle(settlement)
    crash_point("after_commit")
    seconds = time.monotonic() - attempt.started
    cost = "unpriced" if settlement.cost_usd is None else f"${settlement.cost_usd.normalize():f}"
    if runtime.tracing is not None:
        runtime.tracing.settled(settlement, _told(attempt), state)
    if state is None:
        emit("lease.lost", job=attempt.job_id, attempt=attempt.number)
        return f"fenced {attempt.candidate.model} {cost}"
    if state.is_final:
        _post_end(runtime, attempt, settlement, state)
        await _tell(runtime, attempt)
    else:
        runtime.outbox.forget(attempt.job_id, attempt.number)
    if state is JobState.ROUTED:
        following = attempt.route[attempt.index if settlement.route_index is None else settlement.route_index]
        if attempt.reply_to is not None:
            queue = provider_queue(following.carrier, attempt.priority)
            await ring_quickly(runtime.redis, queue, [attempt.job_id])
        else:
            await runtime.ring(
                execute_doorbells(
                    [(attempt.job_id, following.carrier, attempt.priority, attempt.intent, following.model)]
                )
            )
    _log(attempt, settlement, state, seconds, cost)
    return f"{state.value} {attempt.intent} {attempt.candidate.model} {cost}"


def _told(attempt: Attempt) -> Told:
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


def _log(attempt: Attempt, settlement: Settlement, state: JobState, seconds: float, cost: str) -> None:
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


async def _tell(runtime: Runtime, attempt: Attempt) -> None:
    """Notify waiting clients. A hint: whoever misses it finds the result in the ledger."""
    from redis.exceptions import RedisError

    try:
        await publish_end(runtime.redis, [attempt.job_id], [attempt.job_id] if attempt.job.stream else [])
    except (RedisError, OSError) as exc:
        emit("service.away", service="redis", error=str(exc))


def _post_end(runtime: Runtime, attempt: Attempt, settlement: Settlement, state: JobState) -> None:
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


def _settlement(attempt: Attempt, *, hand_back: bool) -> Settlement:
    """The decision as a row: every decision is matched, so that a new one cannot be forgotten here."""
    decision = attempt.decision
    state, outcome, index, delay, uses, body = JobState.ROUTED, "retry", None, 0.0, 1, None
    attempt_state = _failed_state(attempt)
    match decision:
        case Accept():
            assert attempt.answer is not None
            state, outcome, attempt_state = JobState.SUCCEEDED, "accept", AttemptState.SUCCEEDED
            text = attempt.answer.text if decision.text is None else decision.text
            body = json.dumps({"text": text, "data": decision.data} | _wire_of(attempt.answer))
        case Retry():
            delay = decision.delay_s
            state = JobState.PARKED if delay > 0 else JobState.ROUTED
            outcome, uses = ("hand_back", 0) if hand_back else ("retry", 1)
            if attempt.answer is not None:
                attempt_state = AttemptState.WEAK
        case Reroute():
            outcome, index = "fallback", decision.index
            uses = 0 if not attempt.called else 1
        case Escalate():
            outcome, index, attempt_state = "escalate", decision.index, AttemptState.WEAK
        case Snooze():
            state, outcome, delay, uses = JobState.PARKED, "snooze", decision.delay_s, 0
        case GiveUp():
            state = JobState.CANCELLED if decision.code == "cancelled" else JobState.FAILED
            outcome = "cancel" if decision.code == "cancelled" else "give_up"
            if attempt.answer is not None:
                attempt_state = AttemptState.WEAK
        case None:
            raise AssertionError("settle without a decision")
        case _:
            assert_never(decision)
    answer, failure = attempt.answer, attempt.failure
    error = printable(str(failure)) if failure is not None else None
    code = failure.code if failure is not None else None
    if isinstance(decision, GiveUp):
        code, error = decision.code, printable(decision.reason)
    return Settlement(
        job_id=attempt.job_id,
        token=attempt.token,
        number=attempt.number,
        state=state,
        route_index=index,
        delay_s=delay,
        uses=uses,
        error_code=code,
        error=error,
        body=body,
        outcome=outcome,
        reason=decision.reason,
        detail=json.dumps(decision.detail) if isinstance(decision, Escalate) and decision.detail else None,
        attempt_state=attempt_state,
        first_token_s=answer.first_token_s if answer else None,
        served_model=answer.served_model if answer else None,
        request_id=(answer.request_id if answer else None) or (failure.request_id if failure else None),
        stop=answer.stop.value if answer else None,
        usage=attempt.usage,
        cost_usd=attempt.cost_usd,
        cost_source=attempt.cost_source,
        flagship_usd=attempt.flagship_usd,
        list_usd=attempt.list_usd,
        uncached_usd=attempt.uncached_usd,
        price_version=PRICE_VERSION,
    )


def _wire_of(answer: Answer) -> dict[str, Any]:
    return {} if answer.wire is None else {"wire": answer.wire}


def _failed_state(attempt: Attempt) -> AttemptState:
    if not attempt.called:
        return AttemptState.RELEASED
    if attempt.failure is None:
        return AttemptState.FAILED
    if attempt.failure.code == "cancelled":
        return AttemptState.CANCELLED
    return _ATTEMPT_OF_ERROR.get(type(attempt.failure), AttemptState.FAILED)
