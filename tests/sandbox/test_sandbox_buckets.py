"""Token buckets: what fits, what comes back with time, and that no order of calls beats the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox.buckets import MINUTE_NS, Bucket, Cost, Limits, Meter, Meters

SECOND_NS = 1_000_000_000


def test_a_bucket_of_sixty_a_minute_gives_one_back_each_second() -> None:
    bucket = Bucket(60, burst_s=60, now_ns=0)
    bucket.take(60)

    bucket.refill(SECOND_NS - 1)
    just_before = bucket.fits(1)
    bucket.refill(SECOND_NS)

    assert not just_before
    assert bucket.fits(1)
    assert not bucket.fits(2)


def test_a_clock_that_goes_back_counts_as_no_time_passed() -> None:
    bucket = Bucket(60, burst_s=60, now_ns=10 * SECOND_NS)
    bucket.take(30)

    bucket.refill(5 * SECOND_NS)

    assert bucket.remaining == 30


def test_a_smaller_burst_is_a_smaller_bucket() -> None:
    bucket = Bucket(60, burst_s=10, now_ns=0)

    assert bucket.fits(10)
    assert not bucket.fits(11)


@given(
    limit=st.integers(1, 10_000),
    calls=st.lists(st.tuples(st.integers(0, 5 * SECOND_NS), st.integers(1, 500)), max_size=60),
)
def test_no_order_of_calls_takes_more_than_the_burst_and_the_refill(limit: int, calls: list[tuple[int, int]]) -> None:
    bucket = Bucket(limit, burst_s=60, now_ns=0)
    now_ns = taken = 0

    for gap_ns, cost in calls:
        now_ns += gap_ns
        bucket.refill(now_ns)
        if bucket.fits(cost):
            bucket.take(cost)
            taken += cost

    assert taken * MINUTE_NS <= limit * MINUTE_NS + limit * now_ns


@given(
    limit=st.integers(1, 10_000),
    spent=st.integers(0, 10_000),
    splits=st.lists(st.integers(0, SECOND_NS), min_size=1, max_size=20),
)
def test_asking_often_neither_gains_nor_loses(limit: int, spent: int, splits: list[int]) -> None:
    often, once = Bucket(limit, burst_s=60, now_ns=0), Bucket(limit, burst_s=60, now_ns=0)
    often.take(spent)
    once.take(spent)

    now_ns = 0
    for gap_ns in splits:
        now_ns += gap_ns
        often.refill(now_ns)
    once.refill(now_ns)

    assert (often.remaining, often.full_in_ns) == (once.remaining, once.full_in_ns)


@given(limit=st.integers(1, 10_000), spent=st.integers(0, 20_000), cost=st.integers(1, 10_000))
def test_after_the_wait_the_cost_fits_unless_it_never_can(limit: int, spent: int, cost: int) -> None:
    bucket = Bucket(limit, burst_s=60, now_ns=0)
    bucket.take(spent)

    # A nanosecond more: the wait is a float, the bucket is exact.
    bucket.refill(int(bucket.wait_s(cost) * 1e9) + 1)

    assert bucket.fits(min(cost, limit))


@given(limit=st.integers(1, 10_000), spent=st.integers(0, 20_000))
def test_the_reset_is_the_first_moment_the_bucket_is_full(limit: int, spent: int) -> None:
    bucket = Bucket(limit, burst_s=60, now_ns=0)
    bucket.take(spent)
    full_ns = bucket.full_in_ns

    bucket.refill(full_ns - 1)
    before = bucket.full_in_ns
    bucket.refill(full_ns)

    assert before == (1 if full_ns else 0)
    assert bucket.full_in_ns == 0


def test_a_refused_claude_call_takes_nothing_from_any_bucket() -> None:
    meter = Meter("anthropic", Limits(requests=10, input_tokens=100, output_tokens=50), burst_s=60, now_ns=0)

    empty = meter.admit(Cost(input_tokens=10, output_tokens=51, tokens=61), 0)

    assert empty is not None
    assert empty.which == "output tokens"
    assert (meter.requests.remaining, meter.input_tokens.remaining, meter.output_tokens.remaining) == (10, 100, 50)


def test_a_refused_openai_call_still_counts_as_a_request() -> None:
    meter = Meter("openai", Limits(requests=10, tokens=100), burst_s=60, now_ns=0)

    meter.admit(Cost(0, 0, tokens=101), 0)

    assert (meter.requests.remaining, meter.tokens.remaining) == (9, 100)


def test_settling_gives_back_what_was_reserved_and_not_used() -> None:
    meter = Meter("anthropic", Limits(requests=10, input_tokens=100, output_tokens=50), burst_s=60, now_ns=0)
    reserved = Cost(input_tokens=20, output_tokens=50, tokens=70)
    meter.admit(reserved, 0)

    meter.settle(reserved, Cost(input_tokens=20, output_tokens=8, tokens=28), 0)

    assert (meter.input_tokens.remaining, meter.output_tokens.remaining) == (80, 42)


def test_an_excess_is_owed_and_delays_the_next_call() -> None:
    meter = Meter("openai", Limits(requests=10, tokens=60), burst_s=60, now_ns=0)
    reserved = Cost(0, 0, tokens=10)
    meter.admit(reserved, 0)

    meter.settle(reserved, Cost(0, 0, tokens=70), 0)
    empty = meter.admit(Cost(0, 0, tokens=1), 0)

    assert empty is not None
    assert empty.retry_after_s == 11.0


def test_each_account_has_its_own_meters_and_models_of_a_class_share_one() -> None:
    meters = Meters()

    first = meters.meter("acct_a", "anthropic", "claude-fable-5.x", 0)

    assert meters.meter("acct_a", "anthropic", "claude-fable-5.x", 0) is first
    assert meters.meter("acct_b", "anthropic", "claude-fable-5.x", 0) is not first
