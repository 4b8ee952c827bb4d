"""The bill: exact arithmetic, the bands, the tiers, and figures worked out by hand from the published lists."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.bill import Bill, cost_usd, plain
from sandbox.exchange import Usage
from sandbox.models import Catalogue, Model

CATALOGUE = Catalogue()


def model(name: str) -> Model:
    found = CATALOGUE.find(name, "anthropic") or CATALOGUE.find(name, "openai")
    assert found is not None
    return found


counts = st.integers(0, 2_000_000)
usages = st.builds(
    Usage, input=counts, output=counts, cache_write_short=counts, cache_write_long=counts, cache_read=counts
)


@pytest.mark.parametrize(
    "name, usage, tier, usd",
    [
        # 2,000 in and 300 out: 2000 * 4 + 300 * 20 = 14,000 USD per million.
        ("claude-opus-5-5", Usage(2000, 300), "default", "0.014"),
        # The band turns at 100,000 prompt tokens, and takes the output with it.
        ("claude-haiku-5-5", Usage(100_000, 10_000), "default", "0.015"),
        ("claude-haiku-5-5", Usage(100_001, 10_000), "default", "0.0750005"),
        # Cache reads and writes count towards the band: 50,000 + 30,000 + 20,001 is above it.
        ("claude-haiku-5-5", Usage(50_000, 0, cache_write_short=30_000, cache_read=20_001), "default", "0.04475005"),
        ("claude-sonnet-5-5", Usage(0, 0, cache_write_long=1000), "default", "0.004"),
        ("gpt-6-luna", Usage(1000, 100, cache_write_short=2000, cache_read=4000), "flex", "0.00022"),
        ("gpt-6-luna", Usage(272_001, 0), "default", "0.0544002"),
        ("gpt-5.5", Usage(1000, 100), "priority", "0.02"),
        ("gpt-5.5", Usage(1000, 100), "batch", "0.004"),
    ],
)
def test_prices_by_hand(name: str, usage: Usage, tier: str, usd: str) -> None:
    assert cost_usd(model(name), usage, tier=tier) == Decimal(usd)


def test_a_surcharge_multiplies_everything() -> None:
    plainly = cost_usd(model("claude-opus-5-5"), Usage(1000, 100))

    assert cost_usd(model("claude-opus-5-5"), Usage(1000, 100), multiplier_permille=2200) == plainly * Decimal("2.2")


@given(name=st.sampled_from([one.id for one in CATALOGUE]), usage=usages, tier=st.sampled_from(["default", "flex"]))
def test_a_cost_is_exact_and_never_negative(name: str, usage: Usage, tier: str) -> None:
    usd = cost_usd(model(name), usage, tier=tier)

    assert usd >= 0
    # Exact: the smallest price is a hundredth of a dollar per million, halved: 12 digits hold it.
    assert usd == usd.quantize(Decimal("1e-12"))


@given(name=st.sampled_from([one.id for one in CATALOGUE]), used=st.lists(usages, max_size=20))
def test_the_total_is_the_sum_of_its_parts(name: str, used: list[Usage]) -> None:
    bill, chosen = Bill(), model(name)

    for number, usage in enumerate(used):
        usd = cost_usd(chosen, usage)
        bill.add(chosen, usage, usd, tier="default", account=f"acct_{number % 3}")

    shown = bill.shown()
    total = Decimal(shown["total_usd"])
    assert total == sum((cost_usd(chosen, usage) for usage in used), Decimal())
    assert total == sum((Decimal(line["usd"]) for line in shown["by_model"].values()), Decimal())
    assert total == sum((Decimal(line["usd"]) for line in shown["by_tier"]), Decimal())
    assert total == sum((Decimal(usd) for usd in shown["by_account"].values()), Decimal())


@given(name=st.sampled_from([one.id for one in CATALOGUE]), usage=usages)
def test_more_output_never_costs_less(name: str, usage: Usage) -> None:
    more = Usage(usage.input, usage.output + 1, usage.cache_write_short, usage.cache_write_long, usage.cache_read)

    assert cost_usd(model(name), more) > cost_usd(model(name), usage)


def test_money_is_shown_without_an_exponent() -> None:
    assert plain(Decimal("1e-7")) == "0.0000001"
    assert plain(Decimal(100)) == "100"
    assert plain(Decimal("0E-9")) == "0"
