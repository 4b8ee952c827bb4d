"""The choice of a lane by when a job is due: cost against the chance to be in time, and what is done when time runs out."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.health import Outage
from policies.lanes import HEDGE_S, PRIORS, RANKS, LaneRules, Latency, Offer, Times, choose
from policies.policyfile import parse
from policies.pricing import PriceBook
from policies.routing import Request, Route, Snapshot, route, with_lanes
from waybill.contract import Job, Priority
from waybill.errors import ConfigError
from workers.runtime import SHIPPED_POLICY

POLICY = parse(SHIPPED_POLICY.read_text(), "default.toml")
PRICES = PriceBook(POLICY)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY_S = 86400.0
FULL, HALF = Decimal("0.010"), Decimal("0.005")
INTERACTIVE = Offer("interactive", FULL, Times("interactive"))
BATCH = Offer("batch", HALF, Times("batch"), wait_s=20)


def same_time(seconds: float, count: int = 10_000, answered: float = 1.0) -> Latency:
    return Latency(tuple(seconds * (1 + rank / 1e6) for rank in RANKS), count, answered)


def routed(
    intent: str = "extraction", due_s: float | None = DAY_S, **snapshot: object
) -> tuple[Route, list[dict[str, object]]]:
    request = Request(intent, 8000, due_s=due_s, priority="lo")
    now = Snapshot(off={"local": "not here"}, now=NOW, **snapshot)  # type: ignore[arg-type]
    found = route(request, POLICY, now, PRICES)
    assert isinstance(found, Route)
    return with_lanes(found, request, POLICY, now, PRICES)


@pytest.mark.parametrize(("due_s", "service"), [(60, "interactive"), (600, "interactive"), (DAY_S, "batch")])
def test_a_day_goes_to_the_batch_and_minutes_do_not(due_s: float, service: str) -> None:
    choice = choose(INTERACTIVE, [BATCH], due_s=due_s, target=0.995)

    assert choice.taken.service == service


def test_an_expected_cost_counts_the_hedge_that_may_follow() -> None:
    fast = Offer("batch", HALF, Times("batch", same_time(1000)))

    [usual, batch] = choose(INTERACTIVE, [fast], due_s=5000, target=0.995).weighed

    assert usual.expected_usd == FULL
    assert batch.expected_usd == HALF + FULL * Decimal(1 - batch.in_lane)
    assert batch.in_lane > 0.9


def test_a_cheap_lane_that_is_probably_left_again_is_not_taken() -> None:
    slow = Offer("batch", HALF, Times("batch", same_time(10_000)))

    choice = choose(INTERACTIVE, [slow], due_s=5000, target=0.995)

    assert choice.taken.service == "interactive"
    assert "no cheaper lane pays" in choice.reason


def test_where_nothing_reaches_the_target_the_likeliest_is_taken() -> None:
    choice = choose(INTERACTIVE, [BATCH], due_s=3, target=0.995)

    assert choice.taken.service == "interactive"
    assert "no lane is done by then" in choice.reason


@given(st.floats(1, 10 * DAY_S), st.floats(0.5, 0.999))
def test_what_is_taken_never_costs_more_than_interactive_on_average(due_s: float, target: float) -> None:
    choice = choose(INTERACTIVE, [BATCH, Offer("flex", HALF, Times("flex"))], due_s=due_s, target=target)

    usual = choice.weighed[0]
    if usual.in_time >= target:
        assert choice.taken.expected_usd <= usual.expected_usd
        assert choice.taken.in_time >= target


@given(st.sampled_from(sorted(PRIORS)), st.floats(0.1, 1e6), st.floats(1.0, 10.0))
def test_more_time_is_never_less_likely(service: str, within_s: float, factor: float) -> None:
    times = Times(service, Latency(PRIORS["flex"].seconds, 50))

    assert times.done_by(within_s) <= times.done_by(within_s * factor) + 1e-12


def test_the_fleets_own_times_outweigh_the_prior_as_they_come_in() -> None:
    prior = Times("batch").done_by(3600)
    few, many = (Times("batch", same_time(60, count)).done_by(3600) for count in (5, 1000))

    assert prior < few < many
    assert many > 0.97


def test_needs_is_the_inverse_of_done_by() -> None:
    times = Times("interactive")

    assert times.done_by(times.needs_s(0.9)) == pytest.approx(0.9, abs=1e-6)


def test_the_log_scale_between_two_ranks() -> None:
    latency = Latency(tuple(exp(n) for n in range(len(RANKS))), 100)

    assert latency.done_by(exp(0.5)) == pytest.approx((RANKS[0] + RANKS[1]) / 2)


# --- routes -----------------------------------------------------------------------------------------------------------


def test_each_model_has_its_cheap_lane_before_its_interactive_one() -> None:
    found, weighed = routed()

    lanes = [(candidate.model, candidate.service) for candidate in found.candidates]
    assert lanes == [
        ("claude-haiku-5-5", "batch"),
        ("claude-haiku-5-5", "interactive"),
        ("gpt-6-luna", "flex"),
        ("gpt-6-luna", "interactive"),
        ("claude-sonnet-5-5", "batch"),
        ("claude-sonnet-5-5", "interactive"),
    ]
    head = found.candidates[0]
    assert head.estimate_usd * 2 == found.candidates[1].estimate_usd
    assert head.leave_s is not None
    assert HEDGE_S < head.leave_s < 600
    assert head.carrier == "batch"
    assert [one["service"] for one in weighed if one["taken"]] == ["batch"]
    assert "expected $" in found.reason


def test_without_a_due_time_nothing_is_chosen() -> None:
    found, weighed = routed(due_s=None)

    assert {candidate.service for candidate in found.candidates} == {"interactive"}
    assert weighed == []


def test_a_lane_that_is_out_or_not_served_is_not_taken() -> None:
    out = {"anthropic/claude-haiku-5-5/batch": Outage("closed for now", wait_s=60, age_s=10)}

    with_outage, _ = routed(lanes=out)
    without_workers, _ = routed(intent="reasoning")
    no_batch = Snapshot(off={"local": "not here", "batch": "no workers"}, now=NOW)
    request = Request("reasoning", 8000, due_s=DAY_S)
    found = route(request, POLICY, no_batch, PRICES)
    assert isinstance(found, Route)
    chosen, _ = with_lanes(found, request, POLICY, no_batch, PRICES)

    assert with_outage.candidates[0].service == "interactive"
    assert without_workers.candidates[0].service == "batch"
    assert chosen.candidates[0].service == "interactive"


@pytest.mark.parametrize(
    ("fields", "due_s"),
    [
        ({}, None),
        ({"deadline_s": 60}, None),
        ({"deadline_s": 7200}, 7200),
        ({"deadline_s": 60, "priority": Priority.BATCH}, 60),
        ({"latency": "day"}, DAY_S),
        ({"latency": "day", "deadline_s": 7200}, 7200),
        ({"latency": "interactive", "deadline_s": 7200}, None),
        ({"latency": "hours", "stream": True}, None),
    ],
)
def test_when_a_job_is_due(fields: dict[str, object], due_s: float | None) -> None:
    assert Job(intent="x", prompt="y", **fields).due_s == due_s  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("[lanes]\ntarget = 2", "lanes.target"),
        ('[lanes]\nservices = ["priority"]', "lanes.services"),
        ("[batches]\nmax_rows = 60000", "batches.max_rows"),
        ("[batches]\nlinger_s = -1", "batches.linger_s"),
        ("[batches]\nsize = 3", "is not a key"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_line(lines: str, complaint: str) -> None:
    text = SHIPPED_POLICY.read_text() + f"\n{lines}\n"

    with pytest.raises(ConfigError, match=complaint):
        parse(text, "mine.toml")


def test_rules_are_read() -> None:
    text = SHIPPED_POLICY.read_text() + '\n[lanes]\ntarget = 0.9\nservices = ["batch"]\n[batches]\nlinger_s = 5\n'

    policy = parse(text, "mine.toml")

    assert policy.lanes == LaneRules(0.9, ("batch",))
    assert policy.batches.linger_s == 5
