"""A decision as the row that is stored: the next state of the job, what became of the attempt, what it cost."""

from __future__ import annotations

import json
from typing import Any, assert_never

from policies.fallback import (
    Accept,
    Escalate,
    GiveUp,
    Reroute,
    Retry,
    Snooze,
)
from policies.pricing import PRICE_VERSION
from waybill.contract import AttemptState, JobState
from waybill.errors import Broken, Throttled
from workers.attempt import Attempt
from workers.providers.base import Answer
from workers.writer import Settlement, printable

_ATTEMPT_OF_ERROR = {Throttled: AttemptState.THROTTLED, Broken: AttemptState.BROKEN}


def settlement_of(attempt: Attempt, *, hand_back: bool, policy_version: str) -> Settlement:
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
        cpu_s=answer.cpu_s if answer else None,
        price_version=PRICE_VERSION,
        policy_version=policy_version,
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
