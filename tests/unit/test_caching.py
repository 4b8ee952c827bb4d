"""When a prefix is marked: only where another use pays for the write; and nobody waits longer than it is worth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.caching import Caching, Expected, Prefix, is_worth_leading, plan, prefix_tokens, reading, wait_s
from policies.catalog import CATALOG, Model
from policies.policyfile import parse
from policies.pricing import PriceBook, Rates
from tests.fleet import ROOT

POLICY = parse((ROOT / "policies" / "default.toml").read_text(), "default.toml")
BOOK = PriceBook(POLICY)
NOW = datetime(2026, 11, 25, tzinfo=UTC)
HAIKU, SONNET, LUNA, OLD_GPT = (
    CATALOG[name] for name in ("claude-haiku-5-5", "claude-sonnet-5-5", "gpt-6-luna", "gpt-5.5")
)
PREFIX = Prefix("k" * 64, 10_000)


def decide(model: Model, expected: Expected, prefix: Prefix = PREFIX) -> Caching:
    return plan(model, prefix, expected, rates(model))


def rates(model: Model) -> Rates:
    found = BOOK.rates(model.id, "interactive", NOW)
    assert found is not None
    return found


@pytest.mark.parametrize("model", [HAIKU, SONNET, LUNA])
def test_a_prefix_that_comes_once_is_not_written(model: Model) -> None:
    assert not decide(model, Expected()).mark


@pytest.mark.parametrize("model", [HAIKU, SONNET, LUNA])
def test_one_waiting_job_pays_for_the_write(model: Model) -> None:
    found = decide(model, Expected(waiting=1))

    assert found.mark
    assert not found.is_long


@pytest.mark.parametrize(
    "model, gap_s, mark, is_long",
    [
        (HAIKU, 60, True, False),
        (HAIKU, 300, True, True),  # gone after 5 minutes, kept for an hour
        (HAIKU, 2800, True, True),
        (HAIKU, 3500, False, False),
        (LUNA, 1400, True, False),  # GPT keeps it for 30 minutes
        (LUNA, 1800, True, True),
    ],
)
def test_the_lifetime_follows_the_time_between_uses(model: Model, gap_s: float, mark: bool, is_long: bool) -> None:
    found = decide(model, Expected(gap_s=gap_s))

    assert (found.mark, found.is_long) == (mark, is_long)


def test_below_the_least_that_is_kept_nothing_is_marked() -> None:
    small = Prefix("k" * 64, 500)

    assert not decide(HAIKU, Expected(waiting=20), small).mark
    assert not is_worth_leading(HAIKU, small)
    assert is_worth_leading(HAIKU, PREFIX)


def test_a_cache_that_works_by_itself_gets_a_key_and_no_mark() -> None:
    found = decide(OLD_GPT, Expected(waiting=20))

    assert (found.mark, found.key) == (False, "k" * 32)
    assert reading(OLD_GPT, PREFIX).mark is False


def test_a_prefix_without_a_price_is_not_marked() -> None:
    assert not plan(HAIKU, PREFIX, Expected(waiting=20), None).mark


prices = st.decimals("0.01", "10", places=3)


@given(
    st.integers(0, 50), st.none() | st.floats(0, 1e5), prices, st.floats(1, 3), st.floats(0, 1),
)  # fmt: skip
def test_what_is_marked_pays_back(waiting: int, gap_s: float | None, full: Decimal, write: float, read: float) -> None:
    found_rates = Rates(
        full, full, full * Decimal(str(read)), full * Decimal(str(write)), full * Decimal(str(max(write, 2)))
    )
    found = plan(HAIKU, PREFIX, Expected(waiting, gap_s), found_rates)

    if found.mark:
        paid = found_rates.cache_write_1h if found.is_long else found_rates.cache_write
        reads = waiting if gap_s is None else max(waiting, 2)
        assert paid + reads * found_rates.cache_read <= (1 + reads) * full


@given(st.sampled_from(["hi", "lo"]), st.none() | st.floats(-5, 1e6), st.integers(0, 10**7))
def test_nobody_waits_longer_than_it_is_worth(priority: str, slack_s: float | None, size: int) -> None:
    prefix = replace(PREFIX, bytes=size)
    found = wait_s(SONNET, prefix, rates(SONNET), priority=priority, slack_s=slack_s)

    assert 0 <= found <= 30
    assert slack_s is None or found <= max(0.0, slack_s / 10) + 1e-9
    if priority == "hi":
        saved = prefix_tokens(SONNET, prefix) * (rates(SONNET).cache_write - rates(SONNET).cache_read)
        assert found <= min(2.0, float(saved) * 1000 + 1e-9)
