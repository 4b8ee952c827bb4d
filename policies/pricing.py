"""Usage -> USD. Prices come from the package genai-prices (bundled, never fetched) and from the policy file's overrides.

What decides a price: model, service, time of the call, length of the prompt (long-context bands) and kind of token. A
model without a price gives None, which the ledger keeps as `unpriced`: never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Final

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from policies.policyfile import Policy, PriceOverride
from waybill.contract import Usage

PRICE_VERSION: Final = f"genai-prices {version('genai-prices')}"
_MILLION: Final = Decimal(1_000_000)
_HALF: Final = Decimal("0.5")
LOWEST_BAND_TOKENS: Final = 100_000
"""No provider's prices depend on the prompt's length below this (Haiku 5.5: 100k, GPT: 272k)."""

_BANDS: Final = (100_000, 128_000, 200_000, 256_000, 272_000)
"""Where providers' prices jump, or once did; which of these a model has is read from the price list."""

# What an answer's tier means to the price package. Anything else is an unknown tier: priced as None, never guessed.
_CONTEXTS: Final[dict[str, dict[str, str] | None]] = {
    "interactive": None,
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
}


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per token of each kind, for prompts below the first band."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """Exact cost of `usage` at these rates."""
        return (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_write_1h_tokens * self.cache_write_1h
        )


FREE: Final = Rates(Decimal(0), Decimal(0), Decimal(0), Decimal(0), Decimal(0))


def price(policy: Policy, model_id: str, service: str, usage: Usage, at: datetime) -> Decimal | None:
    """What one call cost, in USD, exactly as the provider's list says.

    Args:
        policy: For its catalogue and overrides.
        model_id: Catalogue id.
        service: Tier that was really used: `interactive`, `flex`, `batch` or `local`.
        usage: Tokens.
        at: When the call was made (aware); prices change with time.

    Returns:
        None when there is no price for this model and service.
    """
    model = policy.models.get(model_id)
    if model is None:
        return None
    if model.provider == "local":
        return Decimal(0)
    if service not in _CONTEXTS:
        return None
    if model_id in policy.prices:
        return _override_rates(policy.prices[model_id], service, usage.prompt_tokens).cost(usage)
    try:
        return calc_price(
            PricedUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
                **({"cache_write_1h_tokens": usage.cache_write_1h_tokens} if usage.cache_write_1h_tokens else {}),
            ),
            model_ref=model_id,
            provider_id=model.provider,
            genai_request_timestamp=at,
            price_context=_CONTEXTS[service],
        ).total_price
    except LookupError:
        return None


def _override_rates(override: PriceOverride, service: str, prompt_tokens: int) -> Rates:
    share = Decimal(1) if service == "interactive" else _HALF
    if override.long_above is not None and prompt_tokens > override.long_above:
        dearer = override.long_input / override.input if override.input else Decimal(1)
        override = replace(
            override,
            input=override.long_input,
            output=override.long_output,
            cache_read=override.cache_read * dearer,
            cache_write=override.cache_write * dearer,
        )
    return Rates(
        input=override.input * share / _MILLION,
        output=override.output * share / _MILLION,
        cache_read=override.cache_read * share / _MILLION,
        cache_write=override.cache_write * share / _MILLION,
        # Providers with a long-lived cache charge 2x the input for it where they charge 1.25x for the short one.
        cache_write_1h=max(override.cache_write, override.input * 2) * share / _MILLION,
    )


@dataclass(slots=True)
class PriceBook:
    """Prices remembered by the hour, because one look-up in the package costs 0.2 ms and a table costs microseconds.

    Gives exactly what `price` gives (a property test holds them together).
    """

    policy: Policy
    _rates: dict[tuple[str, str, int], Rates | None] = field(default_factory=dict)
    _bands: dict[tuple[str, str, int], int | None] = field(default_factory=dict)

    def rates(self, model_id: str, service: str, at: datetime) -> Rates | None:
        """Rates of the first band; None when the model has no price."""
        hour = int(at.timestamp() // 3600)
        key = (model_id, service, hour)
        if key not in self._rates:
            if len(self._rates) > 10_000:
                self._rates.clear()
            self._rates[key] = self._look_up(model_id, service, at)
        return self._rates[key]

    def _look_up(self, model_id: str, service: str, at: datetime) -> Rates | None:
        n = 1000
        costs = [
            price(self.policy, model_id, service, usage, at)
            for usage in (
                Usage(input_tokens=n),
                Usage(output_tokens=n),
                Usage(cache_read_tokens=n),
                Usage(cache_write_tokens=n),
                Usage(cache_write_1h_tokens=n),
            )
        ]
        known = [cost / n for cost in costs if cost is not None]
        return Rates(*known) if len(known) == len(costs) else None

    def band(self, model_id: str, service: str, at: datetime) -> int | None:
        """The longest prompt that still has the lower price; None where the price does not jump."""
        key = (model_id, service, int(at.timestamp() // 3600))
        if key not in self._bands:
            if len(self._bands) > 10_000:
                self._bands.clear()
            own = self.policy.prices.get(model_id)
            bands = _BANDS if own is None else (own.long_above,) if own.long_above is not None else ()
            self._bands[key] = next((tokens for tokens in bands if self._jumps(model_id, service, tokens, at)), None)
        return self._bands[key]

    def _jumps(self, model_id: str, service: str, tokens: int, at: datetime) -> bool:
        below = price(self.policy, model_id, service, Usage(input_tokens=tokens), at)
        above = price(self.policy, model_id, service, Usage(input_tokens=tokens + 1), at)
        return below is not None and above is not None and above > below * Decimal("1.1")

    def cost(self, model_id: str, service: str, usage: Usage, at: datetime) -> Decimal | None:
        """As `price`, from memory where the prompt is shorter than any band."""
        if usage.prompt_tokens > LOWEST_BAND_TOKENS - 1000:
            return price(self.policy, model_id, service, usage, at)
        rates = self.rates(model_id, service, at)
        return None if rates is None else rates.cost(usage)


def uncached(usage: Usage) -> Usage:
    """The same tokens as if there were no prompt cache."""
    return Usage(input_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens)


def estimate_tokens(payload_bytes: int, bytes_per_token: float) -> int:
    """Prompt tokens that a text of this size makes, rounded up and with 10 % for the wire's own framing."""
    return int(payload_bytes / bytes_per_token * 1.1) + 16
