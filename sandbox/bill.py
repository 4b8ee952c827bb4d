"""The bill: what the sandbox would charge, in exact decimals, from its own price table.

Billed is what was generated. A request that was answered by an error, or refused by a limit, costs nothing. A complete
(not streamed) answer is billed whole, also when the client had left before it was delivered. A stream is
billed for its whole prompt and for the output produced until it ended or was cut. Faults say for themselves whether a
model ran (faults.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sandbox.exchange import Usage
from sandbox.models import Model

_MTOK = Decimal(1_000_000)
_HALF = Decimal("0.5")
_ONE = Decimal(1)


def cost_usd(model: Model, usage: Usage, *, tier: str = "default", multiplier_permille: int = 1000) -> Decimal:
    """Return the exact price of one answer.

    Args:
        model: Prices; a prompt above `long_above` tokens (cache included) moves all its tokens to the long prices.
        usage: What was used.
        tier: The tier served: batch and flex halve, priority multiplies by the model's factor, anything else is plain.
        multiplier_permille: A further surcharge on every token, 1000 for none.
    """
    prices = model.prices
    if model.long_prices is not None and model.long_above is not None and usage.prompt > model.long_above:
        prices = model.long_prices
    total = usage.input * prices.input + usage.output * prices.output
    if usage.cache_read:
        total += usage.cache_read * prices.read
    if usage.cache_write_short:
        total += usage.cache_write_short * prices.write_short
    if usage.cache_write_long:
        total += usage.cache_write_long * prices.write_long
    factor = _HALF if tier in ("batch", "flex") else model.priority_factor if tier == "priority" else _ONE
    return total * factor * multiplier_permille / 1000 / _MTOK


@dataclass(slots=True)
class _Line:
    requests: int = 0
    input: int = 0
    cache_write_short: int = 0
    cache_write_long: int = 0
    cache_read: int = 0
    output: int = 0
    thinking: int = 0
    usd: Decimal = field(default_factory=Decimal)

    def add(self, usage: Usage, usd: Decimal) -> None:
        self.requests += 1
        self.input += usage.input
        self.cache_write_short += usage.cache_write_short
        self.cache_write_long += usage.cache_write_long
        self.cache_read += usage.cache_read
        self.output += usage.output
        self.thinking += usage.thinking
        self.usd += usd

    def shown(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "input_tokens": self.input,
            "cache_write_tokens": self.cache_write_short,
            "cache_write_long_tokens": self.cache_write_long,
            "cache_read_tokens": self.cache_read,
            "output_tokens": self.output,
            "thinking_tokens": self.thinking,
            "usd": plain(self.usd),
        }


class Bill:
    """Counters by model and by model and tier; its size depends on the models used, not on the requests."""

    def __init__(self) -> None:
        self._models: dict[str, _Line] = {}
        self._tiers: dict[tuple[str, str], _Line] = {}
        self._accounts: dict[str, Decimal] = {}
        self.total_usd = Decimal()
        self.requests = 0

    def add(self, model: Model, usage: Usage, usd: Decimal, *, tier: str, account: str) -> None:
        """Add one billed answer."""
        self._models.setdefault(model.id, _Line()).add(usage, usd)
        self._tiers.setdefault((model.id, tier), _Line()).add(usage, usd)
        self._accounts[account] = self._accounts.get(account, Decimal()) + usd
        self.total_usd += usd
        self.requests += 1

    def shown(self) -> dict[str, Any]:
        """Return the bill as JSON; money is a plain decimal string, never a float."""
        return {
            "currency": "USD",
            "total_usd": plain(self.total_usd),
            "requests": self.requests,
            "by_model": {name: line.shown() for name, line in sorted(self._models.items())},
            "by_tier": [
                {"model": name, "tier": tier, **line.shown()} for (name, tier), line in sorted(self._tiers.items())
            ],
            "by_account": {account: plain(usd) for account, usd in sorted(self._accounts.items())},
        }


def plain(usd: Decimal) -> str:
    """Return `usd` with every digit, without an exponent or trailing zeros."""
    text = format(usd, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
