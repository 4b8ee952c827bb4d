"""One attempt as a pipeline of named steps: claim -> prepare -> afford -> admit -> call -> price -> judge -> settle.

The first three are done for a whole chunk at once; who may not start now is parked by admission.py and keeps no trace.

The order of an attempt's life is in this file, its steps in the modules named after them, and only `settle` changes
anything: the decision it carries out is a value that a policy returned. The answer's cost and the decision are stored in
one transaction, so a paid call is never lost between the two; a process that dies before it leaves the attempt `started`,
which the reconciler books as `unknown`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from policies.catalog import HEAD
from policies.dialects.carry import said
from policies.fallback import decide
from waybill.bells import hear, ring_quickly
from waybill.broker import execute_doorbells
from waybill.contract import Job, JobState
from waybill.errors import Broken, ProviderError, Rejected, Throttled
from waybill.ledger import queries
from waybill.ledger.engine import Row
from waybill.names import provider_queue
from workers.admission import admit, give_back, park
from workers.affording import afford
from workers.attempt import Attempt, attempt_of
from workers.cascades import bring_cascades
from workers.concluding import conclude, interrupted, price
from workers.crashpoint import crash_point
from workers.detour import hold_back, learn, let_through
from workers.heads import ask_head
from workers.preparing import prepare
from workers.providers.base import Answer, Call, Frames, Limits
from workers.providers.failures import failure
from workers.redaction import hide
from workers.runtime import Lease, Runtime
from workers.settling import settlement_of
from workers.telemetry import emit
from workers.telling import post, post_end, show, tell, tell_log, told_of
from workers.warming import abandon, remember, warm

log = logging.getLogger("waybill.execute")

URGENT = 500
"""Quick bells that one process answers at a time."""


async def execute(runtime: Runtime, job_ids: Sequence[str]) -> dict[str, str]:
    """Run the jobs of one doorbell that are still to be run by this process.

    Returns:
        Job id -> what became of it, with model and cost: the line that Flower shows. Jobs that somebody else has taken,
        that are finished or that belong to another provider are simply not in it.
    """
    began = time.monotonic()
    claimed = await claim(runtime, job_ids)
    attempts = [attempt_of(runtime, row) for row in claimed]
    await bring_cascades(runtime, [attempt.candidate for attempt in attempts])
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
        await asyncio.sleep(0)  # their claims leave before the next bell is asked for


async def claim(runtime: Runtime, job_ids: Sequence[str]) -> Sequence[Row]:
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
        interrupted(attempt, by_submitter=lease.cancelled)
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


def heed_block(runtime: Runtime, attempt: Attempt) -> None:
    """Leave a lane alone that has no limiter and has asked us to wait; the job is parked and uses up no attempt."""
    if attempt.decision is not None or attempt.grant is not None:
        return
    wait_s = runtime.lane(attempt.lane).blocked_until - time.monotonic()
    if wait_s > 0:
        blocked = Throttled(f"the lane is blocked for {wait_s:.1f} s more", code="lane_blocked", retry_after_s=wait_s)
        attempt.decision = decide(blocked, attempt.history, jitter=random.random())


async def call(runtime: Runtime, attempt: Attempt) -> None:
    """Make the call. Everything a provider can do wrong ends here as a classified failure."""
    if attempt.decision is not None or attempt.call is None:
        return
    if attempt.candidate.model == HEAD:
        _call_head(runtime, attempt)
        return
    provider = runtime.provider(attempt.candidate.provider, attempt.account)
    attempt.called, attempt.called_at = True, time.monotonic()
    crash_point("before_call")
    try:
        # A leader is streamed too: the others are let go when its answer begins, not when it ends.
        if (attempt.job.stream and not attempt.is_gated) or attempt.leads is not None:
            attempt.answer = await _stream(runtime, attempt, _telling(runtime, attempt, attempt.call))
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


def _call_head(runtime: Runtime, attempt: Attempt) -> None:
    """Ask our own head, which is no provider: it has no queue, no lane that could be out, and answers at once."""
    attempt.answer = ask_head(runtime, attempt)
    attempt.called = attempt.answer is not None
    attempt.called_at = time.monotonic()
    if attempt.answer is None:
        attempt.failure = failure("no_head", "no head is fitted for the job's instructions and labels")


def _texts(job: Job) -> list[str]:
    """What was asked, in pieces."""
    wire = () if job.wire is None else said(job.wire.body)
    return [job.prompt, job.system or "", *(turn.content for turn in job.messages), *wire]


def _telling(runtime: Runtime, attempt: Attempt, call: Call) -> Call:
    """The call, telling the limiter when its answer begins: a long one must not hold up those that follow."""
    grant, tell_prefix = attempt.grant, call.on_begin
    if grant is None:
        return call

    def begun(limits: Limits) -> None:
        runtime.limiter.begun(grant, limits)
        if tell_prefix is not None:
            tell_prefix(limits)

    return replace(call, on_begin=begun)


async def _stream(runtime: Runtime, attempt: Attempt, call: Call) -> Answer:
    provider = runtime.provider(attempt.candidate.provider, attempt.account)
    heard = True
    async for piece in provider.stream(call):
        if isinstance(piece, Answer):
            return piece if attempt.job.stream else replace(piece, first_token_s=None)
        if isinstance(piece, Frames):
            post(runtime, attempt, piece)
            continue
        if piece and heard and attempt.job.stream:
            attempt.shown = True
            heard = await show(runtime, attempt.job_id, piece)
    raise Broken("the stream ended without a checked answer", code="no_terminal_event", billed=None)


async def settle(runtime: Runtime, attempt: Attempt, *, hand_back: bool = False) -> str:
    """Carry out the decision: store it with the cost, then tell whoever waits or ring for the next attempt."""
    settlement = settlement_of(attempt, hand_back=hand_back, policy_version=runtime.policy.version)
    crash_point("before_commit")
    state = await runtime.writer.settle(settlement)
    crash_point("after_commit")
    if state is not None and state.is_final:
        post_end(runtime, attempt, settlement, state)
        await asyncio.sleep(0)  # it leaves before anything else is done: somebody waits for it
    seconds = time.monotonic() - attempt.started
    cost = "unpriced" if settlement.cost_usd is None else f"${settlement.cost_usd.normalize():f}"
    if runtime.tracing is not None:
        runtime.tracing.settled(settlement, told_of(attempt), state)
    if state is None:
        emit("lease.lost", job=attempt.job_id, attempt=attempt.number)
        return f"fenced {attempt.candidate.model} {cost}"
    if state.is_final:
        await tell(runtime, attempt)
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
    tell_log(attempt, settlement, state, seconds, cost)
    return f"{state.value} {attempt.intent} {attempt.candidate.model} {cost}"
