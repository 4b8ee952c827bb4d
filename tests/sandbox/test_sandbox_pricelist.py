"""The sandbox's own price table against a catalogue others keep: same tokens, same money.

The sandbox must not read that catalogue (its bill would no longer be a second opinion); the test may.
"""

from __future__ import annotations

from decimal import Decimal

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price

from sandbox.bill import cost_usd
from sandbox.exchange import Usage
from sandbox.models import Catalogue

# Not in the catalogue yet.
UNKNOWN_THERE = {"gpt-6.2-astra", "gpt-6.2-sol"}
# Small, and above every band of a model that takes so much.
CASES = [
    (model.id, scale)
    for model in Catalogue()
    for scale in (1, 200)
    if model.id not in UNKNOWN_THERE and 2200 * scale <= model.context
]


@pytest.mark.parametrize("name, scale", CASES)
def test_every_token_class_costs_what_the_catalogue_says(name: str, scale: int) -> None:
    model = next(model for model in Catalogue() if model.id == name)
    anthropic = model.provider == "anthropic"
    writes = 300 * scale if model.charges_writes else 0
    long_writes = 200 * scale if anthropic else 0
    ours = Usage(
        1000 * scale, 500 * scale, cache_write_short=writes, cache_write_long=long_writes, cache_read=700 * scale
    )

    theirs = calc_price(
        TheirUsage(
            input_tokens=ours.prompt,
            output_tokens=ours.output,
            cache_read_tokens=ours.cache_read,
            cache_write_tokens=ours.cache_write,
            cache_write_1h_tokens=long_writes or None,
        ),
        name,
        provider_id=model.provider,
    )

    assert cost_usd(model, ours) == Decimal(theirs.total_price)
