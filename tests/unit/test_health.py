"""The breaker opens for outages and for getting worse, probes sparingly, comes back slowly, and lets patient jobs wait."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import health
from policies.detour import Wait, detour, may_wait, wait_out
from policies.fallback import History, Reroute, Snooze
from policies.health import ANY_NUMBER, Breaker, Outage, Seen, advance, grant, observe, outage
from waybill.contract import Candidate
from waybill.errors import Unavailable

LONG_AGO = -1e9


def failed(began: float = LONG_AGO) -> Seen:
    return Seen(began, failed=True, why="529")


def answered(began: float = LONG_AGO, seconds: float = 1.0, tokens: int = 100) -> Seen:
    return Seen(began, seconds=seconds, output_tokens=tokens)


def busy(now: float = 1000.0, answers: int = 100) -> Breaker:
    """A lane that has answered once every 10 ms until `now`."""
    breaker = Breaker()
    for n in range(answers):
        at = now - (answers - n) * 0.01
        breaker = observe(breaker, Seen(at, seconds=1.0 + 0.1 * (n % 3), output_tokens=100, first_token_s=0.4), at)
    return breaker


def test_a_lane_on_which_nothing_succeeds_opens_at_the_first_failure_and_only_for_a_second() -> None:
    breaker = observe(Breaker(), failed(), 1000.0)

    assert breaker.state == "open"
    assert breaker.until == 1001.0


def test_a_single_failure_among_successes_opens_nothing() -> None:
    breaker = observe(busy(), failed(), 1000.0)

    assert breaker.state == "closed"
    found = outage(breaker, 1000.0)
    assert found is not None
    assert not found.blocks(urgent=False)


def test_urgent_work_leaves_a_lane_alone_whose_last_call_failed_until_one_succeeds() -> None:
    breaker = observe(busy(), failed(), 1000.0)

    found = outage(breaker, 1001.0)
    assert found is not None
    assert found.blocks(urgent=True)
    assert grant(breaker, 1, 1001.0, urgent=True)[1] == 0
    assert outage(breaker, 1002.5) is None
    assert outage(observe(breaker, answered(), 1000.1), 1000.2) is None


def test_five_failures_that_are_half_of_the_window_open_it() -> None:
    breaker = Breaker()
    for n in range(4):
        breaker = observe(observe(breaker, answered(), 1000.0 + n), failed(), 1000.0 + n)
    assert breaker.state == "closed"

    assert observe(breaker, failed(), 1004.0).state == "open"


def test_old_failures_are_forgotten() -> None:
    breaker = observe(Breaker(), answered(), 1000.0)
    for n in range(4):
        breaker = observe(observe(breaker, answered(), 1000.0 + n), failed(), 1000.0 + n)
    breaker = observe(breaker, answered(), 1040.0)

    assert observe(breaker, failed(), 1040.1).state == "closed"


def test_each_failed_probe_doubles_the_pause_up_to_half_a_minute() -> None:
    breaker, now, pauses = observe(Breaker(), failed(), 0.0), 0.0, []
    for _ in range(7):
        now = breaker.until
        pauses.append(now - breaker.since)
        breaker, granted = grant(breaker, 1, now, urgent=False)
        assert granted == 1
        breaker = observe(breaker, failed(began=now), now)

    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_calls_that_were_under_way_when_it_opened_decide_nothing_about_the_probe() -> None:
    breaker = observe(Breaker(), failed(), 1000.0)
    breaker, _ = grant(breaker, 1, 1001.0, urgent=False)

    assert observe(breaker, answered(began=999.0), 1001.5).state == "half_open"
    assert observe(breaker, failed(began=999.0), 1001.5).state == "half_open"
    assert observe(breaker, answered(began=1001.0), 1001.5).state == "recovering"


def test_urgent_work_probes_only_when_nobody_else_does() -> None:
    breaker = observe(Breaker(), failed(), 1000.0)

    assert grant(breaker, 1, 1001.1, urgent=True)[1] == 0
    assert grant(breaker, 9, 1002.1, urgent=True)[1] == 1


def test_recovery_lets_through_a_rate_that_doubles_then_everything() -> None:
    breaker = observe(Breaker(), failed(), 0.0)
    breaker, _ = grant(breaker, 1, 1.0, urgent=False)
    breaker = observe(breaker, answered(began=1.0), 2.0)
    let_through = []
    for second in range(8):
        breaker, granted = grant(breaker, 10_000, 2.0 + second, urgent=False)
        let_through.append(granted)

    assert let_through == [2, 2, 4, 8, 16, 32, 64, 128]
    assert grant(breaker, 10_000, 10.5, urgent=False)[1] == 10_000


def test_failures_on_the_way_back_open_it_again_for_longer() -> None:
    breaker = observe(Breaker(), failed(), 0.0)
    breaker, _ = grant(breaker, 1, 1.0, urgent=False)
    breaker = observe(breaker, answered(began=1.0), 2.0)

    for _ in range(2):
        breaker = observe(breaker, failed(began=2.5), 3.0)

    assert breaker.state == "open"
    assert breaker.interval_s == 2.0


def test_an_account_is_probed_by_one_call_with_a_long_back_off() -> None:
    breaker = observe(Breaker(), failed(), 0.0, health.ACCOUNT)
    assert breaker.until == 30.0

    breaker, granted = grant(breaker, 10, 30.0, urgent=False, pace=health.ACCOUNT)
    assert granted == 1
    for _ in range(5):
        breaker, _ = grant(breaker, 1, breaker.until, urgent=False, pace=health.ACCOUNT)
        breaker = observe(breaker, failed(began=breaker.until), breaker.until, health.ACCOUNT)
    assert breaker.interval_s == 300.0


def test_slow_first_tokens_against_the_lanes_own_history_open_it() -> None:
    breaker = busy()
    for n in range(20):
        breaker = observe(breaker, Seen(LONG_AGO, first_token_s=9.0, seconds=10.0, output_tokens=900), 1000.0 + n)
        if breaker.state == "open":
            break

    assert breaker.state == "open"
    assert 2 <= n <= 12
    assert "s to the first token, 0.4 s is usual" in breaker.reason


def test_a_low_token_speed_opens_it_and_a_long_answer_at_the_usual_speed_does_not() -> None:
    long_answers = slow_answers = busy()
    for n in range(20):
        long_answers = observe(long_answers, answered(seconds=40.0, tokens=4000), 1000.0 + n)
        slow_answers = observe(slow_answers, answered(seconds=40.0, tokens=100), 1000.0 + n)

    assert long_answers.state == "closed"
    assert slow_answers.reason.startswith("slow: answers take")


def test_a_lane_that_is_three_times_slower_but_still_quick_stays_closed() -> None:
    breaker = Breaker()
    for n in range(60):
        breaker = observe(breaker, answered(seconds=0.05, tokens=20), 900.0 + n)
    for n in range(60):
        breaker = observe(breaker, answered(seconds=2.0, tokens=20), 960.0 + n)

    assert breaker.state == "closed"


def test_a_slow_probe_is_a_failed_probe_until_slow_is_the_new_normal() -> None:
    breaker = busy()
    while breaker.state == "closed":
        breaker = observe(breaker, answered(seconds=40.0), 1000.0)
    first_out = breaker.out_since

    def probe(breaker: Breaker, now: float) -> Breaker:
        breaker, granted = grant(breaker, 1, now, urgent=False)
        assert granted == 1
        return observe(breaker, answered(began=now, seconds=40.0), now)

    assert probe(breaker, breaker.until).state == "open"
    while breaker.until - first_out < health.NEW_NORMAL_S:
        breaker = probe(breaker, breaker.until)
    assert probe(breaker, breaker.until + 1).state == "recovering"


@pytest.mark.parametrize("what", ["refused", "malformed", "unfit"])
def test_rising_refusals_or_unusable_answers_open_it_and_usual_ones_do_not(what: str) -> None:
    breaker = habitual = busy(answers=200)
    for n in range(100):
        seen = Seen(LONG_AGO, **{what: n % 3 == 0})  # type: ignore[arg-type]
        habitual = observe(habitual, seen, 1000.0 + n)
    assert habitual.state == "closed"

    for n in range(12):
        if breaker.state == "closed":
            breaker = observe(breaker, Seen(LONG_AGO, **{what: True}), 1000.0 + n * 0.1)  # type: ignore[arg-type]
    assert breaker.state == "open"


def candidate(model: str, usd: str) -> Candidate:
    return Candidate("anthropic", model, "interactive", "r", Decimal(usd))


def test_one_submitters_impossible_jobs_do_not_close_a_quiet_lane_to_everybody() -> None:
    breaker = Breaker()
    for n in range(20):
        breaker = observe(breaker, Seen(LONG_AGO, unfit=True), 1000.0 + n)

    assert breaker.state == "closed"


HISTORY = History(
    route=(candidate("haiku", "0.01"), candidate("luna", "0.02"), candidate("sonnet", "0.005")),
    index=0,
    used=0,
    max_attempts=5,
)
OUT = Outage("out of order", 4.0)


def test_urgent_work_moves_at_once_and_patient_work_waits_rather_than_pay_more() -> None:
    assert detour(HISTORY, [OUT, None, None], patient=False) == Reroute(1, "haiku: out of order -> luna")
    assert isinstance(detour(HISTORY, [OUT, None, None], patient=True), Wait)


def test_patient_work_moves_where_it_costs_no_more_or_where_waiting_has_no_end() -> None:
    assert isinstance(detour(HISTORY, [OUT, OUT, None], patient=True), Reroute)
    drained = Outage("drained", 1.0, is_drained=True)
    assert isinstance(detour(HISTORY, [drained, None, None], patient=True), Reroute)


def test_a_patient_job_comes_back_to_a_lane_that_is_out_and_leaves_one_that_is_well() -> None:
    down, fallback = Unavailable("529", code="overloaded"), Reroute(1, "529 -> luna")
    lost = Unavailable("reset", code="connection_lost", billed=None)

    stays = wait_out(fallback, down, OUT, HISTORY, patient=True, delay_s=3.0)
    assert isinstance(stays, Snooze)
    assert stays.delay_s == 3.0
    for decision in (
        wait_out(fallback, down, OUT, HISTORY, patient=False, delay_s=3.0),
        wait_out(fallback, down, None, HISTORY, patient=True, delay_s=3.0),
        wait_out(fallback, down, replace(OUT, spare=ANY_NUMBER), HISTORY, patient=True, delay_s=3.0),
        wait_out(fallback, lost, OUT, HISTORY, patient=True, delay_s=3.0),
    ):
        assert decision is fallback
    to_cheaper = Reroute(2, "529 -> sonnet")
    assert wait_out(to_cheaper, down, OUT, HISTORY, patient=True, delay_s=3.0) is to_cheaper


def test_with_no_other_lane_everybody_waits() -> None:
    assert detour(HISTORY, [OUT, OUT, OUT], patient=False) == Wait(4.0, "haiku: out of order")


@pytest.mark.parametrize(
    ("priority", "slack_s", "outage_s", "waits"),
    [("lo", None, 0, True), ("hi", None, 0, False), ("lo", 60, 0, False), ("lo", 3600, 0, True), ("lo", None, 1801, False)],
)  # fmt: skip
def test_who_waits_out_an_outage(priority: str, slack_s: float | None, outage_s: float, waits: bool) -> None:
    assert may_wait(priority=priority, slack_s=slack_s, outage_s=outage_s) is waits


# --- properties -------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.floats(0, 20, allow_nan=False),
        st.one_of(
            st.integers(0, 50).map(lambda n: ("grant", n)),
            st.sampled_from(
                [
                    ("see", Seen(LONG_AGO, failed=True, why="x")),
                    ("see", Seen(1e12, failed=True, why="x")),
                    ("see", Seen(1e12, malformed=True, why="x")),
                    ("see", Seen(1e12, refused=True)),
                    ("see", Seen(1e12, unfit=True)),
                    ("see", Seen(1e12, seconds=0.0, output_tokens=0, first_token_s=0.0)),
                    ("see", Seen(1e12, seconds=1.0, output_tokens=50, first_token_s=0.3)),
                    ("see", Seen(1e12, seconds=90.0, output_tokens=50, first_token_s=60.0)),
                ]
            ),
        ),
    ),
    max_size=120,
)


def play(moves: list[tuple[float, tuple[str, object]]]) -> tuple[Breaker, float, list[tuple[float, str, int, float]]]:
    """Final breaker and time; every grant with time, state before, number and interval."""
    breaker, now, grants = Breaker(), 1000.0, []
    for pause, (what, value) in moves:
        now += pause
        if what == "grant":
            before = advance(breaker, now)
            breaker, granted = grant(breaker, value, now, urgent=False)  # type: ignore[arg-type]
            assert 0 <= granted <= value  # type: ignore[operator]
            grants.append((now, before.state, granted, before.interval_s))
        else:
            breaker = observe(breaker, value, now)  # type: ignore[arg-type]
    return breaker, now, grants


@given(steps)
def test_an_open_lane_gets_no_call_and_a_half_open_one_at_most_two_in_an_interval(moves: list) -> None:  # type: ignore[type-arg]
    _, _, grants = play(moves)

    assert not [g for g in grants if g[1] == "open" and g[2]]
    probes = [g for g in grants if g[1] == "half_open" and g[2]]
    for at, _, _, interval in probes:
        together = sum(n for other, _, n, i in probes if at <= other < at + interval and i == interval)
        assert together <= health.LANE.probes


@given(steps, st.floats(0, 5))
def test_it_always_comes_back_when_the_provider_does(moves: list, pause: float) -> None:  # type: ignore[type-arg]
    breaker, now, _ = play(moves)

    end = now + 30 + 30 + health.RAMP_S + 1
    while now < end and advance(breaker, now).state != "closed":
        now += 0.05 + pause / 10
        breaker, granted = grant(breaker, 1, now, urgent=False)
        if granted:
            breaker = observe(breaker, answered(began=now, seconds=0.5), now)

    assert advance(breaker, now).state == "closed"


@given(steps)
def test_it_survives_being_shared(moves: list) -> None:  # type: ignore[type-arg]
    breaker, _, _ = play(moves)

    assert Breaker.from_json(breaker.to_json()) == breaker
    assert all(math.isfinite(norm.mean) and norm.variance >= 0 for norm in (breaker.first, breaker.speed))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"state": 1', '{"first": 3}'])
def test_what_cannot_be_read_is_a_lane_nothing_is_known_about(text: str) -> None:
    assert Breaker.from_json(text) == Breaker()
