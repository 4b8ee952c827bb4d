"""After a failure: who is tried again, who is next, who waits, and that every chain of failures ends."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fallback import PARK_MAX_S, Decision, GiveUp, History, Reroute, Retry, Snooze, decide
from waybill.contract import Candidate
from waybill.errors import Broken, ProviderError, Rejected, Throttled, Unavailable


def history(models: int = 3, index: int = 0, used: int = 1, **more: object) -> History:
    route = [Candidate("p", f"m{i}", "interactive", "why", Decimal(1)) for i in range(models)]
    return History(route=route, index=index, used=used, max_attempts=5, **more)  # type: ignore[arg-type]


def throttled(retry_after_s: float | None) -> Throttled:
    return Throttled("429", code="rate_limit", retry_after_s=retry_after_s)


DOWN = Unavailable("529", code="overloaded", status=529)
REFUSED = Rejected("400", code="bad_request", status=400)
NO_MONEY = Rejected("spend limit", code="spend_limit", status=429, account_wide=True)
CUT = Broken("cut", code="cut_stream", billed=None)

failures = st.sampled_from([DOWN, REFUSED, NO_MONEY, CUT]) | st.builds(
    throttled, st.none() | st.floats(0, 5000, allow_nan=False)
)


@pytest.mark.parametrize("failure", [DOWN, CUT, REFUSED, NO_MONEY])
def test_a_failure_moves_the_job_to_the_next_lane(failure: ProviderError) -> None:
    decision = decide(failure, history(), jitter=0.5)

    assert isinstance(decision, Reroute)
    assert decision.index == 1
    assert "m0" in decision.reason
    assert "m1" in decision.reason


def test_a_short_throttle_snoozes_no_earlier_than_asked_and_uses_no_attempt() -> None:
    decision = decide(throttled(7), history(), jitter=0.0)

    assert isinstance(decision, Snooze)
    assert decision.delay_s >= 7


def test_an_overload_on_the_last_lane_is_tried_again_no_earlier_than_asked() -> None:
    asked = Unavailable("529", code="overloaded", status=529, retry_after_s=9)

    decision = decide(asked, history(models=1), jitter=0.0)

    assert isinstance(decision, Retry)
    assert decision.delay_s >= 9


def test_a_retry_that_would_come_after_the_deadline_is_given_up_at_once() -> None:
    asked = Unavailable("529", code="overloaded", status=529, retry_after_s=9)

    decision = decide(asked, history(models=1, slack_s=5.0), jitter=0.0)

    assert isinstance(decision, GiveUp)
    assert decision.code == "deadline"


def test_a_throttle_longer_than_parking_goes_to_the_next_lane() -> None:
    assert isinstance(decide(throttled(PARK_MAX_S + 1), history(), jitter=0), Reroute)


def test_a_throttle_on_the_last_lane_is_waited_out_however_long() -> None:
    decision = decide(throttled(3600), history(models=1), jitter=0)

    assert isinstance(decision, Snooze)
    assert decision.delay_s >= 3600


def test_a_throttle_beyond_the_deadline_says_so_at_once() -> None:
    decision = decide(throttled(30), history(models=1, slack_s=10.0), jitter=0)

    assert isinstance(decision, GiveUp)
    assert decision.code == "deadline"


def test_an_outage_of_the_last_lane_is_retried_until_the_budget_is_used_up() -> None:
    assert isinstance(decide(DOWN, history(models=1, used=4), jitter=0), Retry)
    last = decide(DOWN, history(models=1, used=5), jitter=0)

    assert isinstance(last, GiveUp)
    assert last.code == "attempts_exhausted"


def test_a_rejected_request_on_the_last_lane_is_final() -> None:
    decision = decide(REFUSED, history(models=1), jitter=0)

    assert isinstance(decision, GiveUp)
    assert decision.code == "bad_request"


def test_after_the_first_delta_nothing_starts_again_silently() -> None:
    decision = decide(DOWN, history(streamed=True), jitter=0)

    assert isinstance(decision, GiveUp)
    assert decision.code == "stream_broken"


@given(st.lists(failures, min_size=200, max_size=200), st.integers(1, 4), st.floats(0, 1))
def test_every_chain_of_failures_ends_and_no_lane_is_visited_again(
    chain: list[ProviderError], models: int, jitter: float
) -> None:
    index, used, same, visited, decision = 0, 0, 1, [0], None
    for failure in chain:
        decision = decide(failure, history(models, index, used + 1, same_lane=same), jitter=jitter)
        if isinstance(decision, GiveUp):
            break
        same += 1
        if isinstance(decision, Snooze):
            assert decision.delay_s >= 0
            continue
        used += 1
        if isinstance(decision, Reroute):
            index, same = decision.index, 1
            assert index not in visited
            visited.append(index)
    assert used <= 5
    only_throttled = all(isinstance(failure, Throttled) for failure in chain)
    assert isinstance(decision, GiveUp) or only_throttled or _may_wait(chain, decision)


def _may_wait(chain: list[ProviderError], decision: Decision | None) -> bool:
    """Throttling uses no attempt, so a chain of it may still be waiting; anything else uses the budget up."""
    return sum(not isinstance(failure, Throttled) for failure in chain) < 5 + 4 and decision is not None


# --- cheap lanes ------------------------------------------------------------------------------------------------------

EXPIRED = Unavailable("expired", code="batch_expired", billed=False)
FULL = Throttled("429", code="no_capacity", retry_after_s=None)


def cheap(service: str, **more: object) -> History:
    lane = Candidate("p", "m0", service, "why", Decimal(1), leave_s=60.0, again_s=900.0)
    route = [lane, Candidate("p", "m0", "interactive", "why", Decimal(2)), Candidate("p", "m1", "interactive", "why")]
    return History(route=route, index=0, used=1, max_attempts=5, **more)  # type: ignore[arg-type]


def test_a_row_that_was_not_done_goes_to_the_batch_lane_again_while_there_is_time() -> None:
    assert isinstance(decide(EXPIRED, cheap("batch", due_s=3600.0), jitter=0.5), Retry)


@pytest.mark.parametrize("more", [{"due_s": 600.0}, {"due_s": None}, {"due_s": 3600.0, "same_lane": 3}])
def test_a_row_without_time_or_tries_goes_to_the_interactive_lane_of_its_model(more: dict[str, object]) -> None:
    decision = decide(EXPIRED, cheap("batch", **more), jitter=0.5)

    assert isinstance(decision, Reroute)
    assert decision.index == 1


def test_a_row_that_may_have_been_billed_is_not_sent_to_the_batch_lane_again() -> None:
    missing = Unavailable("missing", code="batch_missing", billed=None)

    assert isinstance(decide(missing, cheap("batch", due_s=3600.0), jitter=0.5), Reroute)


def test_a_refused_request_goes_to_another_model_not_to_another_lane_of_the_same() -> None:
    decision = decide(REFUSED, cheap("batch", due_s=3600.0), jitter=0.5)

    assert isinstance(decision, Reroute)
    assert decision.index == 2


def test_without_flex_capacity_a_job_waits_longer_and_longer_while_there_is_time() -> None:
    waits = [decide(FULL, cheap("flex", due_s=7200.0, same_lane=tries), jitter=1.0) for tries in range(1, 8)]

    assert all(isinstance(wait, Snooze) for wait in waits)
    seconds = [wait.delay_s for wait in waits if isinstance(wait, Snooze)]
    assert seconds == sorted(seconds)
    assert seconds[0] == 15


@pytest.mark.parametrize("more", [{"due_s": 905.0}, {"due_s": 86400.0, "same_lane": 8}])
def test_without_flex_capacity_and_time_the_full_price_is_paid(more: dict[str, object]) -> None:
    decision = decide(FULL, cheap("flex", **more), jitter=1.0)

    assert isinstance(decision, Reroute)
    assert decision.index == 1
