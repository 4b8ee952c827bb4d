"""What a call reserves, and what becomes of it when that is not left."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.budgets import (
    LEAST_OUTPUT_TOKENS,
    Account,
    Ask,
    AtCap,
    Hold,
    Rates,
    View,
    affordable_tokens,
    ask,
    cheaper,
    settle_for,
    turned_down,
)
from policies.fallback import GiveUp, Reroute

usd = st.decimals(min_value=0, max_value=10, places=6)
rates = st.builds(Rates, prompt_usd=usd, token_usd=st.decimals(min_value=0, max_value=Decimal("0.0001"), places=9))
limits = st.integers(1, 128_000)


@given(rates, limits, st.none() | st.integers(0, 128_000))
def test_an_amount_is_never_more_than_the_call_can_cost(rate: Rates, limit: int, learned: int | None) -> None:
    wanted = ask(rate, limit=limit, learned=learned)

    assert 0 <= wanted.least <= wanted.amount <= rate.prompt_usd + limit * rate.token_usd


def test_what_is_known_from_experience_is_reserved_whatever_the_client_allows() -> None:
    rate = Rates(Decimal("0.01"), Decimal("0.000025"))

    known = ask(rate, limit=64_000, learned=200)
    unknown = ask(rate, limit=64_000, learned=None)

    assert known.amount < Decimal("0.02")
    assert unknown.amount > Decimal("1.6")
    assert unknown.least < Decimal("0.04")


@given(usd, usd, usd)
def test_nothing_is_reserved_that_is_not_left(amount: Decimal, least: Decimal, left: Decimal) -> None:
    wanted = Ask(max(amount, least), min(amount, least))

    taken = settle_for(wanted, left)

    assert taken is None or wanted.least <= taken <= min(left, wanted.amount)
    assert (taken is None) == (left < wanted.least or (left <= 0 and wanted.amount > 0))


@given(rates, limits, usd)
def test_no_call_may_write_more_than_what_is_left_pays_for(rate: Rates, limit: int, left: Decimal) -> None:
    tokens = affordable_tokens(rate, limit=limit, left_usd=left)

    assert tokens <= max(limit, LEAST_OUTPUT_TOKENS)
    assert tokens in (limit, LEAST_OUTPUT_TOKENS) or rate.prompt_usd + tokens * rate.token_usd <= left


@given(
    usd,
    st.lists(
        st.tuples(usd, st.decimals(min_value=0, max_value=1, places=3), st.booleans()),
        max_size=30,
    ),
)
def test_calls_that_cost_no_more_than_they_reserved_never_pass_the_cap(
    cap: Decimal, calls: list[tuple[Decimal, Decimal, bool]]
) -> None:
    account, under_way = Account(cap), []
    for amount, share, ends in calls:
        taken = account.reserve(amount)
        if taken is not None:
            account = taken
            under_way.append((amount, amount * share))
        if ends and under_way:
            released, spent = under_way.pop(0)
            account = account.book(released=released, spent=spent)

        assert account.spent_usd + account.reserved_usd <= cap
    for released, spent in under_way:
        account = account.book(released=released, spent=spent)
    assert account.reserved_usd == 0
    assert account.spent_usd <= cap


@given(usd, st.lists(st.tuples(usd, usd), max_size=20))
def test_the_cap_is_passed_by_no_more_than_what_calls_under_way_cost_above_their_reservation(
    cap: Decimal, calls: list[tuple[Decimal, Decimal]]
) -> None:
    account, excess = Account(cap), Decimal(0)
    for amount, cost in calls:
        taken = account.reserve(amount)
        if taken is not None:
            account = taken.book(released=amount, spent=cost)
            excess += max(Decimal(0), cost - amount)

    assert account.spent_usd <= cap + excess


def refusing(at_cap: AtCap, *, spent: str = "4.95", reserved: str = "0", resets_in_s: float | None = None) -> View:
    return View("tenant", "month", Decimal(5), Decimal(spent), Decimal(reserved), at_cap, resets_in_s)


WANTED = Ask(Decimal("0.1"), Decimal("0.1"))


def test_a_job_waits_while_others_hold_what_it_needs() -> None:
    verdict = turned_down([refusing(AtCap.STOP, spent="1", reserved="3.95")], WANTED, index=0, likely=[WANTED.least])

    assert isinstance(verdict, Hold)
    assert verdict.code == "budget_busy"


def test_at_the_cap_a_job_ends_waits_or_takes_a_cheaper_model() -> None:
    likely = [Decimal("0.1"), Decimal("0.3"), Decimal("0.04"), Decimal(0)]

    stopped = turned_down([refusing(AtCap.STOP)], WANTED, index=0, likely=likely)
    parked = turned_down([refusing(AtCap.PARK, resets_in_s=7.0)], WANTED, index=0, likely=likely)
    moved = turned_down([refusing(AtCap.CHEAPER)], WANTED, index=0, likely=likely)
    none_left = turned_down([refusing(AtCap.CHEAPER)], WANTED, index=0, likely=likely[:2])

    assert isinstance(stopped, GiveUp)
    assert stopped.code == "budget_exhausted"
    assert "tenant's budget of $5 per month" in stopped.reason
    assert parked == Hold(7.0, "budget_exhausted", stopped.reason)
    assert moved == Reroute(2, stopped.reason)
    assert isinstance(none_left, GiveUp)


def test_the_strictest_of_several_budgets_speaks() -> None:
    views = [refusing(AtCap.PARK), refusing(AtCap.STOP)]

    assert isinstance(turned_down(views, WANTED, index=0, likely=[WANTED.least]), GiveUp)


@pytest.mark.parametrize(
    ("likely", "room", "index"),
    [
        ([Decimal(1), Decimal("0.5")], "2", 1),
        ([Decimal(1), None, Decimal(0)], "0", 2),
        ([Decimal(1), Decimal(2)], "9", None),
        ([Decimal(1), Decimal("0.5")], "0.4", None),
        ([None, Decimal("0.5")], "1", 1),
    ],
)
def test_a_cheaper_model_must_cost_less_and_fit(likely: list[Decimal | None], room: str, index: int | None) -> None:
    assert cheaper(likely, 0, Decimal(room)) == index
