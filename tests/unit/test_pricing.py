"""Prices: exact, additive, never zero for the unknown, and the remembered ones equal to the looked-up ones."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.policyfile import parse
from policies.pricing import PriceBook, estimate_tokens, price
from waybill.contract import Usage

POLICY = parse((Path(__file__).parent.parent.parent / "policies" / "default.toml").read_text(), "default.toml")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
BOOK = PriceBook(POLICY)
PAID = sorted(model for model, entry in POLICY.models.items() if entry.provider != "local")

counts = st.integers(0, 30_000)
usages = st.builds(Usage, counts, st.integers(0, 100_000), counts, counts, st.just(0))
models = st.sampled_from(PAID)
services = st.sampled_from(["interactive", "batch"])


@pytest.mark.parametrize(
    ("model", "service", "usage", "usd"),
    [
        # USD per million tokens from the providers' lists of November 2026 (reference: providers' price pages).
        ("claude-opus-5-5", "interactive", Usage(1_000_000, 0), "4"),
        ("claude-opus-5-5", "interactive", Usage(0, 1_000_000), "20"),
        ("claude-opus-5-5", "interactive", Usage(0, 0, 0, 0, 90_000), "0.72"),
        ("claude-sonnet-5-5", "interactive", Usage(0, 0, 90_000), "0.009"),
        ("claude-haiku-5-5", "interactive", Usage(2000, 300), "0.00035"),
        ("claude-haiku-5-5", "interactive", Usage(100_000, 10_000), "0.0150"),
        ("claude-haiku-5-5", "interactive", Usage(100_001, 10_000), "0.0750005"),
        ("claude-haiku-5-5", "batch", Usage(2000, 300), "0.000175"),
        ("gpt-6-luna", "interactive", Usage(1000, 100), "0.00015"),
        ("gpt-6-luna", "flex", Usage(1000, 100), "0.000075"),
        ("gpt-5.5", "interactive", Usage(1000, 100), "0.008"),
        ("gpt-6.2-sol", "interactive", Usage(1000, 100), "0.003"),
        ("gpt-6.2-astra", "batch", Usage(1000, 100), "0.006"),
        ("gpt-6.2-sol", "interactive", Usage(272_000, 1000), "0.554"),
        ("gpt-6.2-sol", "interactive", Usage(272_001, 1000), "1.103004"),
        ("gpt-6.2-sol", "flex", Usage(0, 0, 300_000), "0.03"),
        ("smollm2-135m-instruct", "local", Usage(1000, 100), "0"),
    ],
)
def test_known_prices(model: str, service: str, usage: Usage, usd: str) -> None:
    assert price(POLICY, model, service, usage, NOW) == Decimal(usd)


def test_an_unknown_model_or_tier_has_no_price_rather_than_none_to_pay() -> None:
    assert price(POLICY, "claude-opus-9", "interactive", Usage(1, 1), NOW) is None
    assert price(POLICY, "claude-opus-5-5", "priority", Usage(1, 1), NOW) is None
    assert BOOK.cost("claude-opus-5-5", "priority", Usage(1, 1), NOW) is None


@given(models, services, usages)
def test_the_book_gives_what_the_package_gives(model: str, service: str, usage: Usage) -> None:
    assert BOOK.cost(model, service, usage, NOW) == price(POLICY, model, service, usage, NOW)


@given(models, services, usages, usages)
def test_costs_add_up_below_the_bands(model: str, service: str, one: Usage, other: Usage) -> None:
    both = Usage(*(getattr(one, name) + getattr(other, name) for name in list(Usage.__slots__)))
    if both.prompt_tokens > 90_000:
        return
    parts = [BOOK.cost(model, service, usage, NOW) for usage in (one, other)]

    assert None not in parts
    assert BOOK.cost(model, service, both, NOW) == sum(parts)  # type: ignore[arg-type]


@given(models, usages)
def test_a_cost_is_finite_and_never_negative_and_batch_is_half(model: str, usage: Usage) -> None:
    full, half = (BOOK.cost(model, service, usage, NOW) for service in ("interactive", "batch"))

    assert full is not None
    assert half is not None
    assert full.is_finite()
    assert full >= 0
    assert half * 2 == full


@given(st.integers(0, 10_000_000), st.floats(0.5, 20))
def test_token_estimates_grow_with_the_text(size: int, bytes_per_token: float) -> None:
    assert estimate_tokens(size, bytes_per_token) >= size / bytes_per_token
    assert estimate_tokens(size + 1000, bytes_per_token) >= estimate_tokens(size, bytes_per_token)
