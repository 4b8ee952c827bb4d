"""What the breakers do to attempts: keep them off lanes that are out, and learn from each call how its lane is."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from policies.detour import Wait, detour, may_wait, next_open, wait_out
from policies.fallback import Escalate, GiveUp, asked_to_wait
from policies.health import Outage, Seen
from waybill.contract import JobState
from waybill.errors import Broken, Rejected, Throttled, Unavailable
from waybill.ledger import oncall
from waybill.streaming import publish_end
from workers.admission import give_back
from workers.health import account_field
from workers.limiter import LimiterAway
from workers.providers.base import Stop
from workers.telemetry import emit

if TYPE_CHECKING:
    from workers.attempt import Attempt
    from workers.runtime import Runtime

BEHIND_S: Final = 0.2
"""When our own loop is later than this, what it measures is its own slowness."""


async def hold_back(runtime: Runtime, attempts: Sequence[Attempt]) -> tuple[list[Attempt], dict[str, str]]:
    """Keep claimed attempts off lanes that are out: another lane for who cannot wait, the queue of the parked for who can.

    Asks nobody. Where a few calls may pass, `let_through` decides later which.

    Returns:
        The attempts that go on (some with the decision to take another lane), and what became of the others by job id.
    """
    going: list[Attempt] = []
    waiting: list[tuple[Attempt, Wait]] = []
    for attempt in attempts:
        here = runtime.health.outage(attempt.candidate) if attempt.decision is None else None
        if here is None or not here.blocks(urgent=_is_pressed(runtime, attempt, here)):
            going.append(attempt)
        else:
            _turn_away(runtime, attempt, here, going, waiting)
    if not waiting:
        return going, {}
    # The limiter may have woken some of them and keeps quota for them; others can have it.
    await _give_up_places(runtime, [attempt for attempt, _ in waiting])
    return going, await _park(runtime, waiting)


async def let_through(runtime: Runtime, attempts: Sequence[Attempt]) -> tuple[list[Attempt], dict[str, str]]:
    """Give out the few calls that lanes on their way back let through, to attempts that the limiter has admitted.

    In this order, because two gates in a row that each choose for themselves would let nobody through: whose turn it is
    at the one would not have a place at the other. Returns as `hold_back`.
    """
    going: list[Attempt] = []
    waiting: list[tuple[Attempt, Wait]] = []
    for attempt in attempts:
        here = runtime.health.outage(attempt.candidate) if attempt.decision is None else None
        if here is None or await runtime.health.take(attempt.candidate, urgent=_is_pressed(runtime, attempt, here)):
            going.append(attempt)
        else:
            _turn_away(runtime, attempt, here, going, waiting)
    for attempt, _ in waiting:
        give_back(runtime, attempt)
    return going, await _park(runtime, waiting) if waiting else {}


def _is_pressed(runtime: Runtime, attempt: Attempt, here: Outage) -> bool:
    """Whether the attempt must not wait and has another lane to go to; without one it may be a probe as well."""
    if _is_patient(attempt, here):
        return False
    return next_open(_outages(runtime, attempt), attempt.index, urgent=True) is not None


def _outages(runtime: Runtime, attempt: Attempt) -> list[Outage | None]:
    return [runtime.health.outage(candidate) for candidate in attempt.route]


def _turn_away(
    runtime: Runtime,
    attempt: Attempt,
    here: Outage,
    going: list[Attempt],
    waiting: list[tuple[Attempt, Wait]],
) -> None:
    decision = detour(attempt.history, _outages(runtime, attempt), patient=_is_patient(attempt, here))
    if isinstance(decision, Wait):
        waiting.append((attempt, decision))
    else:
        attempt.decision = decision
        going.append(attempt)


async def _give_up_places(runtime: Runtime, attempts: Sequence[Attempt]) -> None:
    by_candidate: dict[tuple[str, str], list[str]] = {}
    for attempt in attempts:
        by_candidate.setdefault((attempt.candidate.provider, attempt.candidate.model), []).append(attempt.job_id)
    for (provider, model), job_ids in by_candidate.items():
        if provider == "local":
            continue
        for account in runtime.accounts.get(provider, ()):
            try:
                await runtime.limiter.give_up_places(runtime.limiter.lane(provider, account, model), job_ids)
            except LimiterAway:
                return  # the places run out by themselves


def _is_patient(attempt: Attempt, here: Outage) -> bool:
    return may_wait(priority=attempt.priority, slack_s=attempt.history.slack_s, outage_s=here.age_s)


async def _park(runtime: Runtime, waiting: Sequence[tuple[Attempt, Wait]]) -> dict[str, str]:
    delays = []
    for attempt, wait in waiting:
        delay_s = runtime.health.delay_s(attempt.lane, wait.delay_s, is_returning=wait.is_returning)
        slack_s = attempt.history.slack_s
        # At its deadline a job must hear that it is too late, whatever it waits for.
        delays.append(delay_s if slack_s is None else max(0.05, min(delay_s, slack_s)))
    rows = await runtime.ledger.fetch_patiently(
        oncall.HOLD_BACK,
        {
            "ids": [attempt.job_id for attempt, _ in waiting],
            "tokens": [attempt.token for attempt, _ in waiting],
            "numbers": [attempt.number for attempt, _ in waiting],
            "delays": delays,
            "reasons": [wait.reason for _, wait in waiting],
            "code": "lane_held",
        },
    )
    states = {row["id"]: JobState(row["state"]) for row in rows}
    cancelled = [job_id for job_id, state in states.items() if state is JobState.CANCELLED]
    if cancelled:
        from redis.exceptions import RedisError

        try:
            await publish_end(runtime.redis, cancelled, cancelled)
        except (RedisError, OSError) as exc:
            emit("service.away", service="redis", error=str(exc))
    emit("jobs.parked", level=10, jobs=len(states), lane=waiting[0][0].lane)
    models = {attempt.job_id: attempt.candidate.model for attempt, _ in waiting}
    return {job_id: f"{state.value} {models[job_id]} (lane out)" for job_id, state in states.items()}


def learn(runtime: Runtime, attempt: Attempt) -> None:
    """Tell the fleet how an attempt's call went; a patient job whose lane turns out to be out stays with it."""
    if not attempt.called or attempt.decision is None:
        return
    health, failure = runtime.health, attempt.failure
    account = account_field(attempt.candidate.provider, attempt.account)
    if isinstance(failure, Rejected) and failure.account_wide:
        began = health.now() - (time.monotonic() - attempt.called_at)
        health.learn(account, Seen(began, failed=True, why=str(failure)))
        return
    seen = _seen(runtime, attempt)
    if seen is None:
        return
    health.learn(attempt.lane, seen)
    if not seen.failed and health.knows_trouble(account):
        health.learn(account, Seen(seen.began))
    if failure is not None and seen.failed:
        here = health.outage(attempt.candidate)
        if here is not None:
            attempt.decision = wait_out(
                attempt.decision,
                failure,
                here,
                attempt.history,
                patient=_is_patient(attempt, here),
                delay_s=max(
                    health.delay_s(attempt.lane, here.wait_s, is_returning=here.is_returning),
                    asked_to_wait(failure, random.random()),
                ),
            )


def _seen(runtime: Runtime, attempt: Attempt) -> Seen | None:
    """What the call says about its lane; None when it says nothing."""
    seconds = time.monotonic() - attempt.called_at
    began = runtime.health.now() - seconds
    failure, answer = attempt.failure, attempt.answer
    if failure is not None:
        if isinstance(failure, Throttled) or failure.code in ("cancelled", "closed"):
            return None
        if isinstance(failure, Rejected):
            # The lane answers, only this request is wrong. Where every job would hear the same (no such model) waiting
            # does not help either: they fail at once.
            return Seen(began)
        return Seen(
            began,
            failed=isinstance(failure, Unavailable),
            malformed=isinstance(failure, Broken),
            why=str(failure),
        )
    if answer is None:
        return None
    is_local = attempt.candidate.provider == "local"
    decision = attempt.decision
    # That a second answer is wanted beside one that passed the checks says nothing about the lane.
    is_unfit = isinstance(decision, GiveUp) or (isinstance(decision, Escalate) and not decision.has_passed)
    is_weak = is_unfit and answer.stop is Stop.COMPLETE
    timely = runtime.health.behind_s < BEHIND_S
    return Seen(
        began,
        # Our own model is asked because it may be unsure; that is no illness.
        unfit=is_weak and not is_local,
        refused=answer.stop is Stop.REFUSED,
        seconds=seconds if timely and not attempt.job.stream else None,
        output_tokens=answer.usage.output_tokens if answer.usage is not None else 0,
        first_token_s=answer.first_token_s if timely else None,
    )
