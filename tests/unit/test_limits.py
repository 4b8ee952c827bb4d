"""The arithmetic of the buckets: never over the limit in any order of arrival, refunds exact, headers only lower."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fallback import GiveUp, History, Reroute
from policies.limits import (
    COLD_IN_FLIGHT,
    HEADERS_AGREE,
    RAMP_PERIOD_US,
    RAMP_TOKENS,
    WINS_PER_STEP,
    Bucket,
    LimitSpec,
    Need,
    Settlement,
    Ticket,
    Told,
    Verdict,
    limit_class,
    spec_for,
    turned_away,
)
from waybill.contract import Candidate

SECOND = 1_000_000
NOW = 1_795_000_000 * SECOND
ROUTE = tuple(Candidate("anthropic", model, "interactive", "test") for model in ("claude-haiku-5-5", "claude-opus-5-5"))


def warm(spec: LimitSpec, *, ramp: bool = False) -> Bucket:
    """A bucket whose first answer has come."""
    bucket = Bucket(spec, ramp=ramp)
    bucket.reserve([("first", Need(0, 0))], is_batch=False, now=NOW)
    bucket.settle(Settlement("first", Need(0, 0), 0, 0), now=NOW)
    bucket.refill(NOW + 600 * SECOND)
    return bucket


def ended(
    slot: str, need: Need, used: tuple[int, int], ticket: Ticket | None = None, told: Told | None = None
) -> Settlement:
    return Settlement(slot, need, *used, ticket=ticket or Ticket(), told=told or Told())


steps = st.lists(
    st.tuples(st.integers(0, 20 * SECOND), st.integers(0, 300), st.integers(0, 300), st.booleans()), max_size=60
)


@given(steps, st.sampled_from([1.0, 10.0, 60.0]))
def test_no_window_ever_holds_more_than_a_full_bucket_and_its_refill(
    arrivals: list[tuple[int, int, int, bool]], burst_s: float
) -> None:
    bucket = warm(LimitSpec(requests_per_minute=30, input_tokens_per_minute=600, burst_s=burst_s, in_flight=10**6))
    now, admitted = NOW + 600 * SECOND, []
    for number, (gap, tokens, _, is_batch) in enumerate(arrivals):
        now += gap
        verdicts, _ = bucket.reserve([(str(number), Need(tokens, 0))], is_batch=is_batch, now=now)
        if verdicts[0].kind == "admitted":
            admitted.append((now, tokens))

    largest = max((tokens for _, tokens in admitted), default=0)
    for first, (begin, _) in enumerate(admitted):
        for end, _ in admitted[first:]:
            spent = sum(tokens for at, tokens in admitted if begin <= at <= end)
            # A call larger than the bucket goes when it is full, and the lane pays it off before the next one.
            capacity = max(600 * burst_s / 60, largest)
            assert spent <= capacity + 600 / 60 * (end - begin) / SECOND + 1e-6


@given(steps)
def test_what_was_reserved_and_not_used_comes_back_exactly(arrivals: list[tuple[int, int, int, bool]]) -> None:
    used = Bucket(LimitSpec(input_tokens_per_minute=10**6, output_tokens_per_minute=10**6, in_flight=10**6))
    told = Bucket(LimitSpec(input_tokens_per_minute=10**6, output_tokens_per_minute=10**6, in_flight=10**6))
    for bucket in (used, told):
        bucket.reserve([("first", Need(0, 0))], is_batch=False, now=NOW)
        bucket.settle(Settlement("first", Need(0, 0), 0, 0), now=NOW)
    for number, (_, tokens, output, _) in enumerate(arrivals):
        slot, exact, generous = str(number), Need(tokens, output), Need(tokens + 500, output + 4000)
        assert used.reserve([(slot, exact)], is_batch=False, now=NOW)[0][0].kind == "admitted"
        assert told.reserve([(slot, generous)], is_batch=False, now=NOW)[0][0].kind == "admitted"
        used.settle(ended(slot, exact, (tokens, output)), now=NOW)
        told.settle(ended(slot, generous, (tokens, output)), now=NOW)

        assert told.level == used.level


def test_a_settlement_that_comes_twice_gives_back_once() -> None:
    bucket = warm(LimitSpec(input_tokens_per_minute=600))
    need = Need(500, 0)
    _, ticket = bucket.reserve([("a", need)], is_batch=False, now=NOW + 600 * SECOND)

    bucket.settle(ended("a", need, (100, 0), ticket), now=NOW + 600 * SECOND)
    once = dict(bucket.level)
    bucket.settle(ended("a", need, (100, 0), ticket), now=NOW + 600 * SECOND)

    assert bucket.level == once


@given(st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 2000), st.integers(0, 600)), max_size=40))
def test_a_header_never_raises_a_level(answers: list[tuple[int, int, int]]) -> None:
    spec = LimitSpec(input_tokens_per_minute=600)
    silent, heard = warm(spec), warm(spec)
    now = NOW + 600 * SECOND
    for number, (gap, remaining, used) in enumerate(answers):
        now += gap
        need = Need(min(used, 50), 0)
        for bucket, told in ((silent, Told()), (heard, Told(remaining={"i": remaining}))):
            verdicts, ticket = bucket.reserve([(str(number), need)], is_batch=False, now=now)
            if verdicts[0].kind == "admitted":
                bucket.settle(ended(str(number), need, (need.input, 0), ticket, told), now=now)
        assert heard.level["i"] <= silent.level["i"] + 1e-9 or heard.reserved["i"] < silent.reserved["i"]


def test_a_header_that_must_be_true_is_believed_at_once() -> None:
    bucket = warm(LimitSpec(input_tokens_per_minute=600))
    need = Need(100, 0)
    now = NOW + 600 * SECOND
    _, ticket = bucket.reserve([("a", need)], is_batch=False, now=now)

    bucket.settle(ended("a", need, (100, 0), ticket, Told(remaining={"i": 30})), now=now)

    assert bucket.level["i"] == 30


def test_a_late_header_does_not_swallow_what_came_back_meanwhile() -> None:
    """The header was written before the others' reservations were given back; as a level of now it would be 400 too low."""
    bucket = warm(LimitSpec(input_tokens_per_minute=600))
    need, now = Need(200, 0), NOW + 600 * SECOND
    _, ticket = bucket.reserve([("a", need), ("b", need)], is_batch=False, now=now)
    bucket.settle(ended("b", need, (0, 0), ticket), now=now)

    bucket.settle(ended("a", need, (0, 0), ticket, Told(remaining={"i": 200})), now=now)

    assert bucket.level["i"] == 600


def test_answers_that_agree_lower_the_level_by_the_smallest_difference() -> None:
    bucket = warm(LimitSpec(input_tokens_per_minute=6000))
    now, need = NOW + 600 * SECOND, Need(10, 0)
    open_calls = []
    for number in range(HEADERS_AGREE):
        _, ticket = bucket.reserve([(str(number), need)], is_batch=False, now=now)
        open_calls.append((str(number), ticket))
    _, _ = bucket.reserve([("large", Need(1000, 0))], is_batch=False, now=now)
    before = bucket.level["i"]
    for number, (slot, ticket) in enumerate(open_calls):
        # Somebody else uses the key too: the provider has 500 less than we think, give or take.
        left = int(ticket.level["i"]) - 500 - 10 * number
        bucket.settle(ended(slot, need, (10, 0), ticket, Told(remaining={"i": left})), now=now)

    assert bucket.level["i"] == before - 500


def test_calls_in_flight_are_few_until_the_first_answer() -> None:
    bucket = Bucket(LimitSpec())
    calls = [(str(n), Need(10, 10)) for n in range(10)]
    verdicts, ticket = bucket.reserve(calls, is_batch=False, now=NOW)
    kinds = [verdict.kind for verdict in verdicts]
    assert kinds == ["admitted"] * COLD_IN_FLIGHT + ["busy"] * (10 - COLD_IN_FLIGHT)

    told = Told({"r": 100, "i": 6000}, {"r": 90, "i": 5000})
    bucket.settle(ended("0", Need(10, 10), (10, 10), ticket, told), now=NOW)

    assert bucket.limit("r") == 100
    assert bucket.limit("i") == 6000
    # 90 are left at the provider, and three calls are on their way to it.
    assert bucket.level["r"] == 87
    assert bucket.level["i"] == 4970


def test_the_smaller_of_file_and_header_holds() -> None:
    bucket = warm(LimitSpec(requests_per_minute=50))
    _, ticket = bucket.reserve([("a", Need(1, 1))], is_batch=False, now=NOW + 600 * SECOND)
    bucket.settle(ended("a", Need(1, 1), (1, 1), ticket, Told({"r": 400}, {"r": 399})), now=NOW + 600 * SECOND)
    assert bucket.limit("r") == 50

    bucket.settle(ended("b", Need(1, 1), (1, 1), ticket, Told({"r": 20}, {})), now=NOW + 600 * SECOND)
    assert bucket.limit("r") == 20
    assert bucket.level["r"] <= 20


def test_batch_work_leaves_the_reserve_to_interactive_work() -> None:
    bucket = warm(LimitSpec(input_tokens_per_minute=1000, interactive_reserve=0.1))
    now = NOW + 600 * SECOND
    assert bucket.reserve([("a", Need(900, 0))], is_batch=True, now=now)[0][0].kind == "admitted"

    waits = bucket.reserve([("b", Need(10, 0))], is_batch=True, now=now)[0][0]
    goes = bucket.reserve([("c", Need(100, 0))], is_batch=False, now=now)[0][0]

    assert waits.kind == "rate"
    assert waits.wait_s == pytest.approx(0.6, abs=0.001)
    assert goes.kind == "admitted"


def test_a_wait_is_long_enough_and_not_longer() -> None:
    bucket = warm(LimitSpec(requests_per_minute=60, burst_s=2, in_flight=100))
    now = NOW + 600 * SECOND
    bucket.reserve([("a", Need(0, 0)), ("b", Need(0, 0))], is_batch=False, now=now)
    wait = bucket.reserve([("c", Need(0, 0))], is_batch=False, now=now)[0][0].wait_us

    too_early = bucket.reserve([("c", Need(0, 0))], is_batch=False, now=now + wait - 2)[0][0]
    in_time = bucket.reserve([("c", Need(0, 0))], is_batch=False, now=now + wait)[0][0]

    assert (too_early.kind, in_time.kind) == ("rate", "admitted")


def test_what_can_never_fit_is_said_at_once_and_the_rest_of_the_chunk_goes_on() -> None:
    bucket = warm(LimitSpec(input_tokens_per_minute=1000))

    verdicts, _ = bucket.reserve(
        [("a", Need(5000, 0, least_input=3000)), ("b", Need(100, 0))], is_batch=False, now=NOW + 600 * SECOND
    )

    assert [verdict.kind for verdict in verdicts] == ["never", "admitted"]


def test_a_429_blocks_the_lane_and_a_shorter_one_does_not_shorten_it() -> None:
    bucket = warm(LimitSpec(requests_per_minute=600))
    now = NOW + 600 * SECOND
    bucket.reserve([("a", Need(1, 1)), ("b", Need(1, 1))], is_batch=False, now=now)

    bucket.settle(Settlement("a", Need(1, 1), 0, 0, "throttled", retry_us=20 * SECOND), now=now)
    bucket.settle(Settlement("b", Need(1, 1), 0, 0, "throttled", retry_us=5 * SECOND), now=now)
    verdict = bucket.reserve([("c", Need(1, 1))], is_batch=False, now=now + 6 * SECOND)[0][0]

    assert verdict == Verdict("blocked", 14 * SECOND)


def test_after_a_429_the_lane_starts_from_empty() -> None:
    bucket = warm(LimitSpec(requests_per_minute=600))
    now = NOW + 600 * SECOND
    bucket.reserve([("a", Need(1, 1))], is_batch=False, now=now)
    bucket.settle(Settlement("a", Need(1, 1), 0, 0, "throttled", retry_us=2 * SECOND), now=now)

    bucket.refill(now + 2 * SECOND)

    assert bucket.level["r"] == pytest.approx(1)


def test_overload_halves_what_is_in_flight_once_a_second_and_success_brings_it_back_slowly() -> None:
    bucket = warm(LimitSpec(requests_per_minute=10**6, in_flight=100))
    now = NOW + 600 * SECOND
    bucket.reserve([(str(n), Need(0, 0)) for n in range(40)], is_batch=False, now=now)
    for n in range(10):
        bucket.settle(Settlement(str(n), Need(0, 0), 0, 0, "overloaded"), now=now)
    assert bucket.most_in_flight() == 20

    for n in range(10, 10 + WINS_PER_STEP):
        bucket.settle(Settlement(str(n), Need(0, 0), 0, 0), now=now)
    assert bucket.most_in_flight() == 21


def test_a_provider_without_limits_in_its_headers_is_felt_for() -> None:
    bucket = Bucket(LimitSpec())
    sizes = []
    for round_number in range(4):
        calls = [(f"{round_number}:{n}", Need(1, 1)) for n in range(1000)]
        verdicts, _ = bucket.reserve(calls, is_batch=False, now=NOW)
        admitted = [slot for (slot, _), verdict in zip(calls, verdicts, strict=True) if verdict.kind == "admitted"]
        sizes.append(len(admitted))
        for slot in admitted:
            bucket.settle(ended(slot, Need(1, 1), (1, 1)), now=NOW)

    assert sizes == [4, 8, 16, 32]


def test_a_lane_opens_as_answers_begin_and_not_only_as_they_end() -> None:
    bucket = Bucket(LimitSpec())
    under_way = 0
    for round_number in range(4):
        calls = [(f"{round_number}:{n}", Need(1, 1)) for n in range(1000)]
        verdicts, _ = bucket.reserve(calls, is_batch=False, now=NOW)
        admitted = [slot for (slot, _), verdict in zip(calls, verdicts, strict=True) if verdict.kind == "admitted"]
        under_way += len(admitted)
        for slot in admitted:
            bucket.settle(Settlement(slot, Need(1, 1), 0, 0, "begun"), now=NOW)
    assert len(bucket.slots) == under_way == 4 + 8 + 16 + 32

    most = bucket.most_in_flight()
    for slot in list(bucket.slots):
        bucket.settle(Settlement(slot, Need(1, 1), 1, 1, "done"), now=NOW)
    assert not bucket.slots
    assert bucket.most_in_flight() == most  # its end is not another success


def test_slots_of_a_lost_worker_are_free_again_after_their_lease() -> None:
    bucket = warm(LimitSpec(in_flight=2))
    now = NOW + 600 * SECOND
    bucket.cap = 2
    bucket.reserve([("a", Need(1, 1)), ("b", Need(1, 1))], is_batch=False, now=now)
    assert bucket.reserve([("c", Need(1, 1))], is_batch=False, now=now + 11 * SECOND)[0][0].kind == "busy"

    assert bucket.reserve([("c", Need(1, 1))], is_batch=False, now=now + 13 * SECOND)[0][0].kind == "admitted"


def test_use_above_a_million_tokens_a_minute_grows_by_half_in_a_quarter_of_an_hour() -> None:
    bucket = warm(LimitSpec(tokens_per_minute=10_000_000, in_flight=10**6), ramp=True)
    allowed, now = [], NOW + 600 * SECOND
    bucket.refill(now)
    bucket.ramp_began = now
    for _ in range(4):
        end = now + RAMP_PERIOD_US
        spent = 0
        while now < end:
            for n in range(400):
                if bucket.reserve([(f"{now}:{n}", Need(50_000, 0))], is_batch=False, now=now)[0][0].kind == "admitted":
                    spent += 50_000
            now += 10 * SECOND
        allowed.append(spent / 15)

    assert allowed[0] <= RAMP_TOKENS * 1.1  # the first quarter's full bucket is one minute more
    for before, after in pairwise(allowed):
        assert before * 1.3 < after <= before * 1.5 + 50_000


@pytest.mark.parametrize(
    ("model", "pool"),
    [
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-opus-5", "claude-opus-5"),
        ("claude-opus-4-8", "claude-opus-4.x"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4.x"),
        ("claude-haiku-4-5", "claude-haiku-4-5"),
        ("claude-fable-5-2", "claude-fable-5.x"),
        ("gpt-6.1-sol", "gpt-6.1-sol"),
    ],
)
def test_models_that_share_limits_share_a_bucket(model: str, pool: str) -> None:
    assert limit_class(model) == pool


def test_the_most_exact_entry_of_the_file_holds() -> None:
    star, pool, own = LimitSpec(1), LimitSpec(2), LimitSpec(3)
    specs = {"*": star, "claude-opus-4.x": pool, "claude-opus-4-8": own}

    assert spec_for("claude-opus-4-8", specs) is own
    assert spec_for("claude-opus-4-7", specs) is pool
    assert spec_for("gpt-6-luna", specs) is star
    assert spec_for("gpt-6-luna", {}) == LimitSpec()


def history(*, index: int = 0, slack_s: float | None = None) -> History:
    return History(ROUTE, index, used=1, max_attempts=5, slack_s=slack_s)


MINUTES = 5 * 60 * SECOND


@pytest.mark.parametrize(
    ("verdict", "at", "is_batch", "becomes"),
    [
        (Verdict("rate", 2 * SECOND), history(), False, None),
        (Verdict("rate", MINUTES), history(), True, None),
        (Verdict("queue", MINUTES), history(), True, None),
        (Verdict("queue", MINUTES), history(), False, Reroute),
        (Verdict("blocked", MINUTES), history(), True, Reroute),
        (Verdict("blocked", MINUTES), history(index=1), True, None),
        (Verdict("blocked", 10 * SECOND), history(), False, None),
        (Verdict("queue", MINUTES), history(slack_s=60), True, Reroute),
        (Verdict("queue", MINUTES), history(index=1, slack_s=60), True, GiveUp),
        (Verdict("never"), history(), True, Reroute),
        (Verdict("never"), history(index=1), True, GiveUp),
    ],
)
def test_who_waits_and_who_goes_elsewhere(verdict: Verdict, at: History, is_batch: bool, becomes: type | None) -> None:
    decision = turned_away(verdict, at, is_batch=is_batch, jitter=0.5)

    assert decision is None if becomes is None else isinstance(decision, becomes)
