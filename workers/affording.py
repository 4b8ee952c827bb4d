"""Which attempts of a claimed chunk their budgets pay for: reserves before the call, and moves or parks what is not paid for.

What is reserved and what follows from a refusal is decided in policies/budgets.py. Jobs without a budget do not come here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from policies.budgets import Ask, Hold, Rates, affordable_tokens, ask, cheaper, settle_for, turned_down
from policies.estimates import MARGIN
from policies.fallback import GiveUp, Reroute
from policies.routing import Request, output_limit
from waybill.contract import Candidate, JobState, Usage
from waybill.ledger import oncall
from workers.admission import tell_cancelled
from workers.telemetry import emit
from workers.till import Denied, Granted, Reserving

if TYPE_CHECKING:
    from workers.attempt import Attempt
    from workers.runtime import Runtime

ROUNDS: Final = 3
"""How often an attempt asks again at once for less, before it waits."""
_PER: Final = 1000
"""Tokens a rate is measured over."""


async def afford(runtime: Runtime, attempts: Sequence[Attempt]) -> tuple[list[Attempt], dict[str, str]]:
    """Reserve what the calls are likely to cost.

    Returns:
        The attempts that go on (with a reservation, without a budget, or with a decision that moves them elsewhere), and
        what became of the parked ones by job id.
    """
    going = [a for a in attempts if not a.has_budget or a.decision is not None or a.call is None]
    asking: list[tuple[Attempt, Ask, Decimal]] = []
    for attempt in attempts:
        if attempt.has_budget and attempt.decision is None and attempt.call is not None:
            wanted = _wanted(runtime, attempt)
            if wanted is None:
                attempt.decision = _without_price(runtime, attempt)
                going.append(attempt)
            elif wanted.amount <= 0:
                going.append(attempt)  # our own model: free
            else:
                asking.append((attempt, wanted, wanted.amount))
    waiting: list[tuple[Attempt, Hold]] = []
    for left_rounds in range(ROUNDS, 0, -1):
        if not asking:
            break
        verdicts = await runtime.till.reserve([Reserving(a.job_id, a.number, usd) for a, _, usd in asking])
        again: list[tuple[Attempt, Ask, Decimal]] = []
        for (attempt, wanted, usd), verdict in zip(asking, verdicts, strict=True):
            match verdict:
                case Granted(left_usd):
                    _limit_answer(runtime, attempt, left_usd)
                    going.append(attempt)
                case Denied(views):
                    smaller = settle_for(wanted, min(view.left_usd for view in views))
                    if smaller is not None and left_rounds > 1 and smaller < usd and not again:
                        again.append((attempt, wanted, smaller))
                        continue
                    likely = [_likely_usd(runtime, attempt, candidate) for candidate in attempt.route]
                    decision = turned_down(views, wanted, index=attempt.index, likely=likely)
                    if isinstance(decision, Hold):
                        waiting.append((attempt, decision))
                    else:
                        attempt.decision = decision
                        going.append(attempt)
        asking = again
    return going, await _park(runtime, waiting)


def _rates(runtime: Runtime, attempt: Attempt, candidate: Candidate) -> Rates | None:
    """What a call to a candidate costs; None when it has no price."""
    model = runtime.policy.models.get(candidate.model)
    if model is None:
        return None
    tokens = int(runtime.limiter.estimates.input_tokens(model, attempt.intent, attempt.payload_bytes) * (1 + MARGIN))
    now = datetime.now(UTC)
    prompt = runtime.prices.cost(candidate.model, candidate.service, Usage(input_tokens=tokens), now)
    answered = runtime.prices.cost(
        candidate.model, candidate.service, Usage(input_tokens=tokens, output_tokens=_PER), now
    )
    if prompt is None or answered is None:
        return None
    return Rates(prompt, (answered - prompt) / _PER)


def _learned(runtime: Runtime, attempt: Attempt, candidate: Candidate) -> int | None:
    return runtime.limiter.estimates.learned_output(candidate.model, attempt.intent)


def _wanted(runtime: Runtime, attempt: Attempt) -> Ask | None:
    rates = _rates(runtime, attempt, attempt.candidate)
    if rates is None or attempt.call is None:
        return None
    return ask(rates, limit=attempt.call.max_output_tokens, learned=_learned(runtime, attempt, attempt.candidate))


def _likely_usd(runtime: Runtime, attempt: Attempt, candidate: Candidate) -> Decimal | None:
    rates, model = _rates(runtime, attempt, candidate), runtime.policy.models.get(candidate.model)
    if rates is None or model is None:
        return None
    request = Request(attempt.intent, attempt.payload_bytes, max_output_tokens=attempt.job.max_output_tokens)
    limit = output_limit(request, model, runtime.policy.plans.get(attempt.intent))
    return ask(rates, limit=limit, learned=_learned(runtime, attempt, candidate)).least


def _without_price(runtime: Runtime, attempt: Attempt) -> GiveUp | Reroute:
    """A model that nobody can price cannot be held to a budget."""
    likely = [_likely_usd(runtime, attempt, candidate) for candidate in attempt.route]
    reason = f"{attempt.candidate.model} has no price, so no budget can pay for it; add [prices] to the policy file"
    for index in range(attempt.index + 1, len(likely)):
        if likely[index] is not None:
            return Reroute(index, reason)
    other = cheaper(likely, attempt.index, Decimal("Infinity"))
    return GiveUp("unpriced", reason) if other is None else Reroute(other, reason)


def _limit_answer(runtime: Runtime, attempt: Attempt, left_usd: Decimal | None) -> None:
    """No call may write more than what was left pays for, whatever the client allows it."""
    rates = _rates(runtime, attempt, attempt.candidate)
    if left_usd is None or rates is None or attempt.call is None:
        return
    tokens = affordable_tokens(rates, limit=attempt.call.max_output_tokens, left_usd=left_usd)
    attempt.call = replace(attempt.call, max_output_tokens=tokens)


async def _park(runtime: Runtime, waiting: Sequence[tuple[Attempt, Hold]]) -> dict[str, str]:
    """Undo the claims of those that have to wait, each kind of waiting under its own code."""
    told: dict[str, str] = {}
    for code in dict.fromkeys(hold.code for _, hold in waiting):
        some = [(attempt, hold) for attempt, hold in waiting if hold.code == code]
        rows = await runtime.ledger.fetch_patiently(
            oncall.HOLD_BACK,
            {
                "ids": [attempt.job_id for attempt, _ in some],
                "tokens": [attempt.token for attempt, _ in some],
                "numbers": [attempt.number for attempt, _ in some],
                "delays": [_delay_s(attempt, hold, place) for place, (attempt, hold) in enumerate(some)],
                "reasons": [hold.reason for _, hold in some],
                "code": code,
            },
        )
        states = {row["id"]: JobState(row["state"]) for row in rows}
        emit("jobs.parked", level=10, jobs=len(states), lane=code)
        told |= {job_id: f"{state.value} ({code})" for job_id, state in states.items()}
        await tell_cancelled(runtime, [job_id for job_id, state in states.items() if state is JobState.CANCELLED])
    return told


def _delay_s(attempt: Attempt, hold: Hold, place: int) -> float:
    """Those that came later ask again later; at its deadline a job must hear that it is too late."""
    delay_s = hold.delay_s * (1 + random.random()) + 0.01 * place
    slack_s = attempt.history.slack_s
    return delay_s if slack_s is None else min(delay_s, max(0.05, slack_s))
