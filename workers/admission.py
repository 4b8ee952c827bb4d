"""Which attempts of a claimed chunk may start now: asks the limiter, and parks at no cost what it does not admit.

A job that is not admitted loses its claim again, with its row in `attempts`, in one statement, and stands in the lane's
line in Redis. Control wakes exactly as many as the buckets admit (workers/control.py). The line is a hint: a job whose
place is lost asks again by itself at the time that the ledger has.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from policies.limits import SLEEP_MAX_S, Verdict, turned_away
from waybill.contract import JobState
from waybill.errors import Throttled, Unavailable
from waybill.ledger import queries
from waybill.streaming import publish_end
from workers.limiter import Ended, Grant, LimiterAway, LimitLane, Wanted
from workers.telemetry import emit

if TYPE_CHECKING:
    from workers.attempt import Attempt
    from workers.runtime import Runtime

SLEEPS: Final = 3
"""How often a job waits in its coroutine before it is parked: with many asking, a short wait may have to be repeated."""
# When a parked job asks again by itself. The line wakes it earlier; this is for a line that was lost.
_PATROL_INTERACTIVE_S: Final = 5.0
_PATROL_BATCH_S: Final = 120.0
_AWAY_S: Final = 2.0
"""After this a job asks again that found the limiter's Redis away."""
_THROTTLED_S: Final = 1.0
"""How long a lane is left alone after a 429 that does not say."""


def is_limited(attempt: Attempt) -> bool:
    """Whether the attempt goes to a provider that has limits; our own models wait in their queue."""
    return attempt.call is not None and attempt.decision is None and attempt.candidate.provider != "local"


Refused = tuple["Attempt", Verdict, LimitLane | None]
"""Who was not admitted, why, and the lane to wait for; None = the limiter is away."""


async def admit(runtime: Runtime, attempts: Sequence[Attempt]) -> tuple[list[Attempt], list[Refused]]:
    """Reserve for a chunk.

    Returns:
        The attempts that go on (with a grant, or with a decision that moves them elsewhere), and those to be parked.
    """
    going = [attempt for attempt in attempts if not is_limited(attempt)]
    asking = [attempt for attempt in attempts if is_limited(attempt)]
    for sleeps in range(SLEEPS + 1):
        refused = [pair for group in _by_lane(asking) for pair in await _reserve(runtime, group)]
        going += [attempt for attempt in asking if attempt.grant is not None]
        going += [attempt for attempt, _, _ in refused if attempt.decision is not None]
        refused = [pair for pair in refused if pair[0].decision is None]
        is_short = all(v.kind in ("rate", "busy") and v.wait_s <= SLEEP_MAX_S for _, v, _ in refused)
        # Who is admitted does not wait for the others: they are parked, and woken within moments.
        if not refused or going or not is_short or sleeps == SLEEPS or runtime.draining.is_set():
            break
        asking = [attempt for attempt, _, _ in refused]
        await asyncio.sleep(max(0.01, min(v.wait_s for _, v, _ in refused)))
    return going, refused


def _by_lane(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    groups: dict[tuple[str, str, str], list[Attempt]] = {}
    for attempt in attempts:
        key = (attempt.candidate.provider, attempt.candidate.model, attempt.priority)
        groups.setdefault(key, []).append(attempt)
    return list(groups.values())


async def _reserve(runtime: Runtime, group: Sequence[Attempt]) -> list[Refused]:
    """Ask for one lane's attempts, account after account, the one with most left first."""
    candidate = group[0].candidate
    is_batch = group[0].priority == "lo"
    asking = {attempt.job_id: attempt for attempt in group}
    best: dict[str, tuple[Verdict, LimitLane]] = {}
    accounts = runtime.by_headroom(candidate.provider, candidate.model)
    for account in accounts:
        lane = runtime.limiter.lane(candidate.provider, account, candidate.model)
        wanted = [_wanted(runtime, attempt) for attempt in asking.values()]
        try:
            found = await runtime.limiter.reserve(lane, wanted, is_batch=is_batch)
        except LimiterAway as exc:
            emit("service.away", service="limiter", error=str(exc))
            break
        runtime.headroom[lane.name] = (found.headroom, time.monotonic())
        for want, verdict in zip(wanted, found.verdicts, strict=True):
            attempt = asking[want.job_id]
            grant = found.grants.get(want.slot)
            if grant is not None:
                attempt.grant, attempt.account = grant, account
                del asking[want.job_id]
            elif want.job_id not in best or verdict.wait_us < best[want.job_id][0].wait_us:
                best[want.job_id] = (verdict, lane)
        if len(accounts) > 1:
            await _release_promises(runtime, group, account, accounts)
        if not asking:
            return []
    refused: list[Refused] = []
    for job_id, attempt in asking.items():
        if job_id not in best:
            refused.append((attempt, Verdict("blocked", int(_AWAY_S * 1e6)), None))
            continue
        verdict, lane = best[job_id]
        attempt.decision = turned_away(verdict, attempt.history, is_batch=is_batch, jitter=random.random())
        refused.append((attempt, verdict, lane))
    return refused


async def _release_promises(runtime: Runtime, group: Sequence[Attempt], account: str, accounts: Sequence[str]) -> None:
    """Jobs that one account admitted may have been woken for another one: that promise must not hold others up."""
    candidate = group[0].candidate
    admitted = [attempt.job_id for attempt in group if attempt.grant is not None and attempt.account == account]
    for other in accounts:
        if other != account:
            with suppress(LimiterAway):
                await runtime.limiter.forget(runtime.limiter.lane(candidate.provider, other, candidate.model), admitted)


def _wanted(runtime: Runtime, attempt: Attempt) -> Wanted:
    assert attempt.call is not None  # is_limited has checked it
    need = runtime.limiter.estimates.need(
        attempt.call.model,
        attempt.intent,
        payload_bytes=attempt.payload_bytes,
        max_output_tokens=attempt.call.max_output_tokens,
        output_counted=runtime.limiter.spec(attempt.candidate.model).output_counted,
    )
    return Wanted(attempt.job_id, attempt.number, need, attempt.job.tenant)


async def park(runtime: Runtime, parked: Sequence[Refused]) -> dict[str, str]:
    """Undo the claims and let the jobs stand in line. Returns what became of them, by job id."""
    if not parked:
        return {}
    if runtime.settings.limiter_scope == "process":
        # Another process would be woken than the one that has the quota: each job asks again after its own wait.
        parked = [(attempt, verdict, None) for attempt, verdict, _ in parked]
    attempts = {attempt.job_id: (attempt, lane) for attempt, _, lane in parked}
    rows = await runtime.ledger.fetch_patiently(
        queries.PARK,
        {
            "ids": list(attempts),
            "tokens": [attempt.token for attempt, _, _ in parked],
            "numbers": [attempt.number for attempt, _, _ in parked],
            "delays": [_patrol_s(attempt, verdict, lane) for attempt, verdict, lane in parked],
        },
    )
    states = {row["id"]: JobState(row["state"]) for row in rows}
    lines: dict[tuple[str, bool], list[tuple[Attempt, LimitLane]]] = {}
    for job_id, (attempt, lane) in attempts.items():
        if states.get(job_id) is JobState.PARKED and lane is not None:
            lines.setdefault((lane.name, attempt.priority == "lo"), []).append((attempt, lane))
    for (_, is_batch), members in lines.items():
        wanted = [_wanted(runtime, attempt) for attempt, _ in members]
        try:
            await runtime.limiter.stand_in_line(members[0][1], wanted, is_batch=is_batch)
        except LimiterAway as exc:
            emit("service.away", service="limiter", error=str(exc))
    await tell_cancelled(runtime, [job_id for job_id, state in states.items() if state is JobState.CANCELLED])
    emit("jobs.parked", level=10, jobs=len(states), lane=parked[0][0].lane)
    return {job_id: f"{state.value} {attempts[job_id][0].candidate.model} (quota)" for job_id, state in states.items()}


def _patrol_s(attempt: Attempt, verdict: Verdict, lane: LimitLane | None) -> float:
    """When a parked job asks again by itself. From a line it is woken earlier."""
    in_line_s = _PATROL_BATCH_S if attempt.priority == "lo" else _PATROL_INTERACTIVE_S
    alone_s = max(verdict.wait_s, SLEEP_MAX_S)
    wait_s = (alone_s if lane is None else in_line_s) * (1 + 0.5 * random.random())
    # At its deadline a job must hear that it is too late, wherever it stands.
    slack_s = attempt.history.slack_s
    return wait_s if slack_s is None else min(wait_s, max(0.05, slack_s))


async def tell_cancelled(runtime: Runtime, job_ids: list[str]) -> None:
    """Wake clients that wait for jobs which turned out to be cancelled. A hint."""
    from redis.exceptions import RedisError

    if not job_ids:
        return
    try:
        await publish_end(runtime.redis, job_ids, job_ids)
    except (RedisError, OSError) as exc:
        emit("service.away", service="redis", error=str(exc))


def give_back(runtime: Runtime, attempt: Attempt) -> None:
    """Settle an attempt's reservation with what is known now. Harmless when it holds none, or twice."""
    grant = attempt.grant
    if grant is None:
        return
    attempt.grant = None
    if attempt.answer is not None and attempt.usage_of_answer is not None and attempt.call is not None:
        runtime.limiter.estimates.observe(
            attempt.candidate.model, attempt.intent, attempt.payload_bytes, attempt.usage_of_answer
        )
    runtime.limiter.settle(grant, ended_of(attempt, grant))


def ended_of(attempt: Attempt, grant: Grant) -> Ended:
    """What the limiter is to know about a call: tokens as the provider counts them against its limits, and its complaints."""
    if not attempt.called:
        return Ended("unused")
    failure, usage = attempt.failure, attempt.usage_of_answer
    if isinstance(failure, Throttled) and failure.code != "no_capacity":
        return Ended("throttled", retry_s=_THROTTLED_S if failure.retry_after_s is None else failure.retry_after_s)
    if isinstance(failure, Throttled) or (isinstance(failure, Unavailable) and failure.code == "overloaded"):
        return Ended("overloaded")
    if failure is not None and failure.billed is False:
        return Ended("failed")
    if usage is None:
        return Ended("failed" if failure is not None else "ok", grant.need.input, grant.need.output)
    # Claude's cache reads do not count against its input limit (providers.md 1.5); OpenAI's cached tokens do.
    counted = (
        usage.input_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens
        if attempt.candidate.provider == "anthropic"
        else usage.prompt_tokens
    )
    limits = attempt.answer.limits if attempt.answer is not None else None
    return Ended("failed" if failure is not None else "ok", counted, usage.output_tokens, limits=limits)
